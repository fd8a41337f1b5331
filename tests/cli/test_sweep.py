"""`ftlab sweep`: real trials from a sweep file to the best one, and what is refused before anything is launched."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

COMMAND = ["${env}", "${interpreter}", "-m", "ftlab", "fit", "-c", "tiny.yaml", "${args}"]
LR = {"model.optimizer.lr": {"values": [1e-4, 0.03]}}


@pytest.fixture
def write_sweep(workplace: Path) -> Callable[..., Path]:
    """Writes sweep.yaml over the tiny experiment; what is given replaces its keys, and None takes one out."""

    def write(**changes: Any) -> Path:
        content: dict[str, Any] = {
            "method": "grid",
            "metric": {"name": "val_loss", "goal": "minimize"},
            "parameters": LR,
            "command": COMMAND,
        }
        content |= changes
        path = Path("sweep.yaml")
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    return write


def test_from_a_sweep_file_to_the_best_trial(write_sweep: Callable[..., Path], ftlab: Callable[..., Any]) -> None:
    """Two methods in files of their own, at two rates, of which the second has an option the first would refuse."""
    Path("methods").mkdir()
    Path("methods/full.yaml").write_text("model: {method: {class_path: ftlab.methods.Full, init_args: {}}}")
    files = {"values": ["methods/full.yaml"]}
    write_sweep(name="both", parameters={"config": files, **LR}, project="demo")
    answer = ftlab("sweep", "run", "sweep.yaml", "--workers", "2")
    assert answer.code == 0, answer.err
    assert "2 finished of 2" in answer.out
    runs = sorted(path.parent for path in Path("runs/both").glob("*/config.yaml"))
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
    assert {config["model"]["optimizer"]["init_args"]["lr"] for config in configs} == {1e-4, 0.03}
    assert {config["model"]["method"]["class_path"] for config in configs} == {"ftlab.methods.Full"}
    wandb = {"group": "both", "job_type": "sweep", "tags": ["both"], "project": "demo"}
    assert {key: configs[0]["wandb"][key] for key in wandb} == wandb
    losses = {run.name: json.loads((run / "scores.json").read_text())["val_loss"] for run in runs}

    began = [len(json.loads((run / "provenance.json").read_text())["sessions"]) for run in runs]
    again = ftlab("sweep", "run", "sweep.yaml")
    assert again.code == 0
    assert [len(json.loads((run / "provenance.json").read_text())["sessions"]) for run in runs] == began

    told = json.loads(ftlab("sweep", "status", "runs/both", "--json").out)
    assert told["states"] == {"finished": 2, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}
    best = min(losses, key=losses.__getitem__)
    assert (told["best"]["run"], told["best"]["value"]) == (best, losses[best])

    said = ftlab("sweep", "best", "runs/both", "--plots")
    assert said.code == 0, said.err
    assert said.out.startswith(f"runs/both/{best}: val_loss ")
    for plot in ("importance.png", "parallel.png"):
        assert (Path("runs/both") / plot).read_bytes().startswith(b"\x89PNG")
    plain = json.loads(ftlab("sweep", "best", "runs/both", "--json").out)
    assert (plain["run"], plain["value"]) == (f"runs/both/{best}", losses[best])
    assert (plain["metric"], plain["config"]) == ("val_loss", "runs/both/best.yaml")
    assert plain["parameters"] == told["best"]["parameters"]
    page = (Path("runs/both") / "trials.html").read_text()
    assert all(run.name in page for run in runs)
    composed = ftlab("fit", "-c", "runs/both/best.yaml", "--print_config")
    assert composed.code == 0
    theirs = next(config for run, config in zip(runs, configs, strict=True) if run.name == best)
    assert yaml.safe_load(composed.out)["model"] == theirs["model"]

    other = write_sweep(name="both", parameters={"model.optimizer.lr": {"values": [0.5]}})
    refusal = ftlab("sweep", "run", other)
    assert refusal.code == 1
    assert "runs/both holds another sweep: parameters is" in refusal.err


def test_a_failed_trial_is_listed_and_the_exit_code_says_so(
    write_sweep: Callable[..., Path], ftlab: Callable[..., Any]
) -> None:
    program = "import sys; print('first'); sys.exit('ftlab: there is no luck today')"
    write_sweep(parameters={"x": {"values": [1]}}, command=["python", "-c", program, "${args}"])
    answer = ftlab("sweep", "run", "sweep.yaml")
    assert answer.code == 1
    assert "1 failed of 1" in answer.out
    told = json.loads(ftlab("sweep", "status", "runs/sweep", "--json").out)
    [failed] = told["failed"]
    assert failed["error"] == "there is no luck today"
    assert "there is no luck today" in answer.out
    again = ftlab("sweep", "retry-failed", "runs/sweep")
    assert again.code == 1
    assert "1 failed of 1" in again.out
    assert Path("runs/sweep/logs").joinpath(f"{failed['run']}.log").read_text().count("first") == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metod": "grid"}, "has an unknown key 'metod': did you mean method?"),
        ({"method": "gird"}, "method is 'gird': did you mean grid?"),
        ({"method": None}, "method is None: give grid, random or bayes"),
        ({"metric": None}, "metric is missing: give {name: val_loss, goal: minimize}"),
        ({"metric": {"name": "val_loss", "goal": "min"}}, "metric.goal is 'min': give minimize or maximize"),
        ({"metric": {"name": "val_los"}}, "no trial logs val_los: metric.name can be val_loss, val_perplexity, val_"),
        ({"metric": {"name": "test_loss"}}, "no trial logs test_loss"),
        ({"parameters": None}, "has no parameters"),
        ({"parameters": {"model.optimizer.lrr": {"value": 1}}}, "would be refused: there is no key"),
        ({"parameters": {"trainer.max_stps": {"value": 1}}}, "did you mean trainer.max_steps?"),
        ({"parameters": {"model.method.r": {"values": [4, "many"]}}}, "would be refused: model.method"),
        ({"parameters": {"model.optimizer.lr": {"min": 0.1, "max": 1.0}}}, "which a grid cannot go through"),
        # of the right type, and refused by a class alone
        ({"parameters": {"model.method.r": {"values": [4, 0]}}}, "would be refused: method.r is 0"),
        ({"parameters": {"model.method.dropout": {"values": [0.0, 2.0]}}}, "lora_dropout is 2.0: it is a share"),
        ({"parameters": {"data.batch_size": {"values": [4, 0]}}}, "would be refused: data.batch_size is 0"),
        ({"parameters": {"model.optimizer.lr": {"values": [0.1, -0.1]}}}, "optimizer: Invalid learning rate: -0.1"),
        ({"parameters": {"trainer.gradient_clip_val": {"value": -1.0}}}, "trainer.gradient_clip_val is -1.0: give 0"),
        ({"parameters": {"trainer.max_steps": {"values": [4, -1]}}}, "nothing says when training ends"),
        # never validated
        (
            {"parameters": {"trainer.max_steps": {"values": [4, 1]}}},
            "no trial logs val_loss: training ends after 1 batches",
        ),
        ({"parameters": {"trainer.limit_val_batches": {"value": 0}}}, "trainer.limit_val_batches is 0"),
        ({"parameters": {"config": {"values": ["nowhere.yaml"]}}}, "names nowhere.yaml, which is neither beside it"),
        ({"command": ["ftlab", "fit"]}, "command has no ${args}"),
        ({"command": ["ftlab", "fit", "${arg}", "${args}"]}, "${arg}, which is none of W&B's macros"),
        ({"command": None}, "does not say what runs a trial"),
        ({"run_cap": 0}, "run_cap is 0: give a whole number from 1 on"),
        ({"early_terminate": {"type": "hyperband"}}, "needs min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "mni_iter": 3}}, "did you mean min_iter?"),
        ({"controller": {"type": "cloud", "sampler": "tpu"}}, "controller.sampler is 'tpu': did you mean tpe?"),
        ({"controller": {"seeds": 3}}, "did you mean seed?"),
        ({"name": "a/b"}, "give a name that can be a directory's"),
        (
            {
                "metric": {"name": "val_rougeL", "goal": "maximize"},
                "early_terminate": {"type": "hyperband", "min_iter": 1},
            },
            "early_terminate needs a metric that training logs",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_launched(
    changes: dict[str, Any], sentence: str, write_sweep: Callable[..., Path], refused: Callable[..., str]
) -> None:
    said = refused("sweep", "run", write_sweep(**changes))
    assert sentence in said
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fly"], "there is no ftlab sweep fly: there are run, status"),
        (["run", "nowhere.yaml"], "there is no sweep file nowhere.yaml"),
        (["status", "nowhere"], "there is no sweep at nowhere"),
        (["resume", "nowhere"], "there is no sweep at nowhere"),
        (["best", "nowhere"], "there is no sweep at nowhere"),
        (["stop", "nowhere"], "there is no sweep at nowhere"),
        (["run", "sweep.yaml", "--workers", "0"], "--workers is 0"),
        (["run", "sweep.yaml", "--on", "moon"], "--on is 'moon': it must be local, slurm, or slurm: and"),
        (["run", "sweep.yaml", "--max-trials", "0"], "run_cap is 0"),
    ],
)
def test_commands_that_make_no_sense(
    words: list[str], sentence: str, write_sweep: Callable[..., Path], refused: Callable[..., str]
) -> None:
    write_sweep()
    assert sentence in refused("sweep", *words)


@pytest.mark.parametrize("word", ["run", "status", "resume", "stop", "best", "retry-failed", "work"])
def test_each_word_has_help(word: str, ftlab: Callable[..., Any]) -> None:
    assert word in ftlab("sweep", "--help").out
    answer = ftlab("sweep", word, "--help")
    assert answer.code == 0
    assert answer.out.startswith(f"usage: ftlab sweep {word}")


@pytest.mark.slow
def test_a_text_score_is_told_by_validate(write_sweep: Callable[..., Path], ftlab: Callable[..., Any]) -> None:
    metric = {"name": "val_chrf", "goal": "maximize"}
    write_sweep(metric=metric, parameters={"model.optimizer.lr": {"value": 0.01}})
    answer = ftlab("sweep", "run", "sweep.yaml")
    assert answer.code == 0, answer.out
    told = json.loads(ftlab("sweep", "status", "runs/sweep", "--json").out)
    scores = json.loads((Path("runs/sweep") / told["best"]["run"] / "scores.json").read_text())
    assert told["best"]["value"] == scores["val_chrf"]
