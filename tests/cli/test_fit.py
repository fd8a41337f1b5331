"""`ftlab fit`: what a run leaves behind, what the same command does again, and how a run is stopped."""

import hashlib
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forked import Forked
from safetensors.torch import load_file
from tiny_experiment import curves

from ftlab.modules import FinetuneModule

MODEL_FILES = {
    "full": {"config.json", "generation_config.json", "model.safetensors"},
    "lora": {"adapter_config.json", "adapter_model.safetensors", "base.json"},
    "qlora": {"adapter_config.json", "adapter_model.safetensors", "base.json"},
    "zeroshot": {"base.json"},
}
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def contents(directory: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of every file."""
    return {
        str(file.relative_to(directory)): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in directory.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_run_directory_holds_what_the_design_says(method: str, finished: Callable[[str], Path]) -> None:
    run = finished(method)
    assert {path.name for path in run.iterdir() if not path.name.startswith(".")} == {
        "config.yaml", "provenance.json", "metrics.csv", "scores.json", "checkpoints", "model",
    }  # fmt: skip
    links = {path.name for path in (run / "checkpoints").iterdir() if path.is_symlink()}
    assert links == {"last.ckpt", "best.ckpt"}
    assert {path.name for path in (run / "model").iterdir()} == MODEL_FILES[method] | TOKENIZER_FILES


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_what_a_run_says_of_itself(method: str, finished: Callable[[str], Path]) -> None:
    run = finished(method)
    provenance = json.loads((run / "provenance.json").read_text())
    trained = sum(t.numel() for t in torch.load(run / "checkpoints/best.ckpt")["state_dict"].values())
    assert provenance["state"] == "finished"
    assert provenance["cost"]["trainable_parameters"] == trained
    assert provenance["cost"]["model_bytes"] == sum(file.stat().st_size for file in (run / "model").iterdir())
    assert set(provenance["versions"]) >= {"python", "ftlab", "torch", "lightning", "transformers", "peft"}
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    assert {"step", "train_loss", "val_loss", "lr", "grad_norm"} <= set(header.split(","))
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3", "4"]


def test_zero_shot_validates_only(finished: Callable[[str], Path]) -> None:
    run = finished("zeroshot")
    assert not (run / "checkpoints").exists()
    assert {path.name for path in (run / "model").iterdir()} == MODEL_FILES["zeroshot"] | TOKENIZER_FILES
    assert json.loads((run / "scores.json").read_text())["val_loss"] > 0
    assert json.loads((run / "provenance.json").read_text())["cost"]["trainable_parameters"] == 0


def test_a_run_without_a_name_is_called_by_its_configuration(workplace: Path, ftlab: Callable[..., Any]) -> None:
    def name(*options: object) -> str:
        before = set(Path("runs/tiny").glob("*"))
        assert ftlab("fit", "-c", "tiny.yaml", "--model.method", "ZeroShot", *options).code == 0
        return next(iter(set(Path("runs/tiny").glob("*")) - before), Path("again")).name

    first = name()
    assert len(first) == 8
    assert name("--trainer.enable_progress_bar", "true", "--wandb.project", "other") == "again"
    assert name("--seed_everything", 7) not in (first, "again")


def test_the_same_command_again_changes_nothing(finished: Callable[[str], Path], ftlab: Callable[..., Any]) -> None:
    run = finished("lora")
    before = contents(run)
    answer = ftlab("fit", "-c", "tiny.yaml", "--run.name", "lora")
    assert answer.code == 0
    assert answer.err == f"ftlab: {run} has finished; another --run.name repeats it\n"
    assert contents(run) == before


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_another_name_repeats_the_run_to_the_byte(
    method: str, finished: Callable[[str], Path], ftlab: Callable[..., Any]
) -> None:
    run = finished(method)
    answer = ftlab("fit", "-c", run / "config.yaml", "--run.name", "again")
    again = run.with_name("again")
    assert (answer.code, Path(answer.out.strip()).resolve()) == (0, again.resolve())
    assert f"score it with ftlab test -c {answer.out.strip()}/config.yaml" in answer.err
    for weights in (run / "model").glob("*.safetensors"):
        assert (again / "model" / weights.name).read_bytes() == weights.read_bytes()
    assert json.loads((again / "scores.json").read_text()) == json.loads((run / "scores.json").read_text())


def test_a_profiled_run_is_the_same_and_does_not_ask_for_it_again(workplace: Path, ftlab: Callable[..., Any]) -> None:
    six = ("fit", "-c", "tiny.yaml", "--trainer.max_steps", "6", "--run.name")
    assert ftlab(*six, "plain").code == 0
    answer = ftlab(*six, "profiled", "--profile")
    assert answer.code == 0, answer.err
    plain, run = (workplace / "runs" / "tiny" / name for name in ("plain", "profiled"))
    summary, directory, _ = answer.out.rsplit("\n", 2)
    assert f"{summary}\n" == (run / "profile" / "summary.txt").read_text()
    assert Path(directory).resolve() == run.resolve()
    assert answer.out.startswith("a step of 2 profiled: ")
    assert yaml.safe_load((run / "config.yaml").read_text())["run"]["profile"] is False
    assert curves(run) == curves(plain)


def test_the_name_of_another_run_is_refused(finished: Callable[[str], Path], refused: Callable[..., str]) -> None:
    run = finished("lora")
    before = contents(run)
    sentence = refused("fit", "-c", "tiny.yaml", "--run.name", "lora", "--model.method.r", 4, "--data.batch_size", 2)
    assert sentence.startswith(f"{run} holds another run: there model.method.init_args.r is 16, here 4; there ")
    assert contents(run) == before


def test_a_directory_with_something_else_in_it_is_refused(workplace: Path, refused: Callable[..., str]) -> None:
    (workplace / "runs/tiny/mine").mkdir(parents=True)
    (workplace / "runs/tiny/mine/thesis.tex").touch()
    assert "is not empty and holds no run" in refused("fit", "-c", "tiny.yaml", "--run.name", "mine")
    assert (workplace / "runs/tiny/mine/thesis.tex").is_file()


def test_one_file_is_split_by_hash(
    workplace: Path, write_lines: Callable[..., Path], ftlab: Callable[..., Any]
) -> None:
    write_lines(workplace / "all.jsonl", [{"prompt": f"question {n}", "response": "answer"} for n in range(60)])
    shares = ["--data.splits.validation", 0.2, "--data.splits.test", 0.2]
    assert ftlab("fit", "-c", "tiny.yaml", "--run.name", "one", "--data.path", "all.jsonl", *shares).code == 0
    assert ftlab("test", "-c", "runs/tiny/one/config.yaml").code == 0
    sizes = json.loads(Path("runs/tiny/one/provenance.json").read_text())["data"]
    tested = len(Path("runs/tiny/one/predictions/test.jsonl").read_text().splitlines())
    assert sizes["train_rows"] + sizes["validation_rows"] + tested == 60
    assert min(sizes["train_rows"], sizes["validation_rows"], tested) > 0


def _stop_at(batch: int, patch: pytest.MonkeyPatch) -> None:
    step = FinetuneModule.training_step

    def interrupted(self: FinetuneModule, batch_of_rows: dict[str, Any], batch_idx: int) -> Any:
        if self.global_step == batch:
            raise KeyboardInterrupt
        return step(self, batch_of_rows, batch_idx)

    patch.setattr(FinetuneModule, "training_step", interrupted)


def test_an_interrupted_run_goes_on_to_the_same_weights(
    finished: Callable[[str], Path], ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finished("lora")
    command = ["fit", "-c", "tiny.yaml", "--run.name", "halting", "--run.checkpoints.every_n_steps", 1]
    run = whole.with_name("halting")
    with monkeypatch.context() as patch:
        _stop_at(3, patch)
        answer = ftlab(*command)
    assert answer.code == 130
    assert answer.err.endswith(
        f"ftlab: stopped: the same command goes on from {(run / 'checkpoints/last.ckpt').resolve()}\n"
    )
    assert json.loads((run / "provenance.json").read_text())["state"] == "interrupted"
    assert torch.load(run / "checkpoints/last.ckpt")["global_step"] == 3
    assert ftlab(*command).code == 0
    weights = "model/adapter_model.safetensors"
    assert (run / weights).read_bytes() == (whole / weights).read_bytes()
    losses = [
        [line.split(",")[:2] for line in (place / "metrics.csv").read_text().splitlines()] for place in (run, whole)
    ]
    assert losses[0] == losses[1]
    sessions = json.loads((run / "provenance.json").read_text())["sessions"]
    assert [(session["state"], session["from_step"]) for session in sessions] == [("interrupted", 0), ("finished", 3)]


def test_stopped_before_its_first_checkpoint_a_run_leaves_nothing(
    workplace: Path, ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _stop_at(1, monkeypatch)
    answer = ftlab("fit", "-c", "tiny.yaml")
    assert answer.code == 130
    assert answer.err.endswith("there is no checkpoint yet: the same command starts anew\n")
    assert not Path("runs").exists()


def test_a_signal_in_the_middle_of_training(workplace: Path) -> None:
    options = ["--trainer.max_steps", "100000", "--run.checkpoints.every_n_steps", "5", "--run.name", "long"]
    process = Forked(["fit", "-c", "tiny.yaml", *options])
    checkpoint = Path("runs/tiny/long/checkpoints/last.ckpt")
    try:
        while not checkpoint.is_file():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    step = torch.load(checkpoint)["global_step"]
    assert err.splitlines()[-1].startswith(f"ftlab: stopped by SIGINT at step {step}: the same command goes on from /")
    assert "Traceback" not in err


def test_the_configuration_of_a_run_is_whole(finished: Callable[[str], Path]) -> None:
    config = yaml.safe_load((finished("lora") / "config.yaml").read_text())
    assert config["seed_everything"] == 42
    assert config["model"]["method"]["init_args"]["r"] == 16
    assert {"root": "runs", "experiment": "tiny", "name": "lora"}.items() <= config["run"].items()


def test_the_best_weights_are_the_ones_that_are_saved(finished: Callable[[str], Path]) -> None:
    run = finished("full")
    best = torch.load(run / "checkpoints/best.ckpt")["state_dict"]
    saved = load_file(run / "model/model.safetensors")
    for name, tensor in best.items():
        assert torch.equal(saved[name.removeprefix("network.")], tensor)
