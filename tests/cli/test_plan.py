"""`ftlab plan`, `data.micro_batch`, and what is said where memory runs out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import Namespace

from ftlab.cli import breakdowns
from ftlab.cli.open_choices import split_batches
from ftlab.cli.plan import _steps
from ftlab.cli.planned import memory_limits, processes_of, step_of
from ftlab.cli.unopened import Unopened
from ftlab.errors import UserError
from ftlab.planning import Device, device_named, memory_of, plan

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture
def at_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOP)


def test_of_a_network_that_is_not_here_for_a_device_that_is_not_here(at_top: None, ftlab: Any) -> None:
    command = ["plan", "-c", "experiments/e2e_qlora.yaml", "--device", "RTX 4090", "--trainer.precision", "bf16-mixed"]
    answer = ftlab(*command, "--lengths", "64")
    assert answer.code == 0
    assert "QLoRA of openai-community/gpt2: " in answer.out
    assert " on RTX 4090:" in answer.out
    assert " of 24.41 GB usable" in answer.out
    assert "the largest micro-batch that fits: " in answer.out
    assert "(at 35 % of its peak); 300 steps: about 1 min" in answer.out
    assert not (TOP / "runs" / "e2e_qlora").exists()


def test_what_does_not_fit_says_what_would(workplace: Path, ftlab: Any) -> None:
    answer = ftlab("plan", "-c", "tiny.yaml", "--device", "0.6012 GB", "--lengths", "128", "--batches", "64")
    assert answer.code == 1
    assert answer.err.startswith("ftlab: 64 rows of 128 tokens take ")
    assert ", and 0.6012 GB has 1.16 MB: take " in answer.err
    assert answer.err.count("\n") == 1


def test_time_from_the_data_that_is_here(workplace: Path, ftlab: Any) -> None:
    command = ["plan", "-c", "tiny.yaml", "--device", "H100"]
    assert "; how fast H100 is in 32-true is not known" in ftlab(*command).out
    command += ["--trainer.precision", "bf16-true"]
    assert " tokens/s (at 35 % of its peak); 4 steps: about 1 min" in ftlab(*command).out
    epochs = ["--trainer.max_steps", "-1", "--trainer.max_epochs", "3"]
    assert "; 12 steps: " in ftlab(*command, *epochs).out
    assert "; 6 steps: " in ftlab(*command, *epochs, "--trainer.limit_train_batches", "0.5").out
    assert "; 3 steps: " in ftlab(*command, *epochs, "--trainer.limit_train_batches", "1").out


@pytest.mark.parametrize(("words", "share"), [
    (["--data.batch_size", "4", "--data.batching", "pad"], None),
    (["--data.batch_tokens", "256", "--data.batching", "bucket"], 1.0),
    (["--data.batching", "pack"], 1.0),
])  # fmt: skip
def test_how_full_batches_are(words: list[str], share: float | None, workplace: Path) -> None:
    experiment = Unopened(["-c", "tiny.yaml", *words])
    found = plan(step_of(experiment, True), device_named("H100"), processes_of(experiment))
    data = experiment.datamodule
    data.setup("fit")
    if share is None:  # of the longest of each batch, as training has them
        positions = [batch["input_ids"].shape[1] for batch in data.train_dataloader()]
        share = sum(positions) / len(positions) / 128
    assert _steps(experiment, found)[1] == pytest.approx(share, rel=0.02)


def test_a_table_and_its_figures(workplace: Path, ftlab: Any) -> None:
    for name in ("full", "lora"):
        method = {"model": {"method": {"class_path": f"ftlab.methods.{'Full' if name == 'full' else 'LoRA'}"}}}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(method))
    command = ["plan", "-c", "tiny.yaml", "--device", "16 GB", "--methods", "full.yaml,lora.yaml", "--batches", "1,4"]
    answer = ftlab(*command, "--lengths", "32,64", "--checkpointing", "false,true", "--json", "plan.json")
    assert answer.code == 0
    assert "16 GB, 14.94 GB usable" in answer.out
    found = json.loads(Path("plan.json").read_text())
    cells = [(cell["method"], cell["rows"], cell["length"], cell["checkpointing"]) for cell in found]
    assert len(set(cells)) == 2 * 2 * 2 * 2
    peaks = dict(zip(cells, (cell["peak"] for cell in found), strict=True))
    assert peaks["full.yaml", 4, 64, False] > peaks["full.yaml", 1, 64, False]
    assert peaks["full.yaml", 4, 64, False] > peaks["full.yaml", 4, 32, False]
    assert peaks["full.yaml", 4, 64, False] > peaks["lora.yaml", 4, 64, False] > peaks["lora.yaml", 4, 64, True]
    assert all(sum(cell["parts"].values()) == cell["peak"] and cell["fits"] for cell in found)


def test_what_cannot_be_planned_does_not_take_the_rest_along(workplace: Path, ftlab: Any) -> None:
    for name in ("LoRA", "LISA"):
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"model": {"method": {"class_path": f"ftlab.methods.{name}"}}}))
    command = ["plan", "-c", "tiny.yaml", "--device", "16 GB", "--methods", "LISA.yaml,LoRA.yaml", "--batches", "1,4"]
    answer = ftlab(*command, "--json", "plan.json")
    assert answer.code == 1
    assert [cell["method"] for cell in json.loads(Path("plan.json").read_text())] == ["LoRA.yaml", "LoRA.yaml"]
    assert "LoRA.yaml" in answer.out
    assert answer.err.count("ftlab: not in the table: ftlab plan: LISA looks at ") == 1


@pytest.mark.parametrize(("words", "said"), [
    ([], "ftlab plan needs an experiment: give -c FILE, as to ftlab fit"),
    (["-c", "tiny.yaml", "--device", "RTX 4080"], "device: there is no 'RTX 4080'; did you mean RTX 4090"),
    (["-c", "tiny.yaml", "--batches", "0"], "argument --batches: '0' are no numbers from 1 on"),
    (["-c", "tiny.yaml", "--methods", "nope"], "methods: there is no experiments/method/nope.yaml"),
    (["-c", "tiny.yaml", "--trainer.max_stps", "3"], "there is no key trainer.max_stps: did you mean"),
    (["-c", "tiny.yaml", "--model.network.path", "nobody/nothing"], "ftlab plan knows the shape of "),
    (["-c", "tiny.yaml", "--trainer.precision", "16-true"], "trainer.precision 16-true cannot be planned"),
    (["-c", "tiny.yaml", "--json", "no/such/place"], "json: no/such/place cannot be written"),
    (["-c", "tiny.yaml", "--data.micro_batch", "auto"], "data.micro_batch auto asks the device that trains"),
    (["-c", "tiny.yaml", "--model.gradient_checkpointing", "auto"], "auto asks the device that trains, which is not"),
    (["-c", "tiny.yaml", "--checkpointing", "selective", "--model.compile", "true"], "selective is not for blocks"),
    (["-c", "tiny.yaml", "--checkpointing", "both"], "argument --checkpointing: 'both' is none of false,"),
])  # fmt: skip
def test_bad_input(words: list[str], said: str, workplace: Path, refused: Callable[..., str]) -> None:
    assert said in refused("plan", *words)


def test_what_does_not_fit_may_fit_with_more_computed_again(workplace: Path, ftlab: Any) -> None:
    command = ["plan", "-c", "tiny.yaml", "--lengths", "128", "--batches", "64", "--json", "plan.json"]
    answer = ftlab(*command, "--device", "16 GB", "--checkpointing", "all")
    found = json.loads(Path("plan.json").read_text())
    assert [cell["checkpointing"] for cell in found] == [False, "selective", True, "offloaded"]
    assert " selective " in answer.out
    peaks = [cell["peak"] for cell in found]
    assert peaks[:3] == sorted(peaks[:3], reverse=True)
    assert peaks[3] <= 1.01 * peaks[2]  # two blocks have next to nothing to take away
    between = (peaks[0] + peaks[1]) / 2 / 0.97 + 0.6e9  # what a GPU must have for so much to be usable
    answer = ftlab(*command, "--device", f"{between / 1e9:.6f} GB")
    assert answer.code == 1
    assert " or model.gradient_checkpointing selective, with up to " in answer.err
    assert "gradient_checkpointing true" not in answer.err


def test_offloading_is_for_a_gpu(workplace: Path, refused: Callable[..., str]) -> None:
    said = refused("plan", "-c", "tiny.yaml", "--checkpointing", "offloaded")
    assert "this machine's CPU has no memory beside the host's: offloaded is for a GPU (--device)" in said


def test_help_lists_its_options(ftlab: Any) -> None:
    answer = ftlab("plan", "--help")
    assert answer.code == 0
    for option in ("--device", "--methods", "--batches", "--lengths", "--checkpointing", "--json"):
        assert option in answer.out


# ---------------------------------------------------------------- data.micro_batch


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 100))
def test_the_batch_of_a_step_stays(batch: int, accumulate: int, most: int) -> None:
    data = Namespace(micro_batch="auto", micro_batch_memory=None, batch_size=batch, batch_tokens=None)
    trainer = Namespace(accumulate_grad_batches=accumulate, val_check_interval=0.5, limit_train_batches=None)
    config = Namespace(data=data, trainer=trainer)
    split_batches(config, lambda: most)
    assert config.data.batch_size * config.trainer.accumulate_grad_batches == batch * accumulate
    assert config.data.batch_size <= most
    sizes = [size for size in range(1, batch * accumulate + 1) if batch * accumulate % size == 0 and size <= most]
    assert (config.data.batch_size, config.data.micro_batch) == (max(sizes), None)


@pytest.mark.parametrize(("batches", "said"), [
    ({"micro_batch": 3}, "data.micro_batch is 3, and an optimiser step has 8 rows"),
    ({"micro_batch": 0}, "data.micro_batch is 0, and an optimiser step has 8 rows"),
    ({"micro_batch": 8}, "trainer.val_check_interval is 3 micro-batches of 4 rows, which is no number of such of 8"),
    ({"micro_batch": 2, "micro_batch_memory": "1 GB"}, "data.micro_batch_memory is what data.micro_batch auto"),
    ({"micro_batch": 2, "batch_tokens": 100}, "data.micro_batch counts rows, and data.batch_tokens tokens"),
])  # fmt: skip
def test_a_batch_that_does_not_go_into_such_pieces(batches: dict[str, Any], said: str) -> None:
    data = Namespace(**{"batch_size": 4, "batch_tokens": None, "micro_batch_memory": None} | batches)
    trainer = Namespace(accumulate_grad_batches=2, val_check_interval=3, limit_train_batches=None)
    config = Namespace(data=data, trainer=trainer)
    with pytest.raises(UserError, match=said):
        split_batches(config, lambda: 1)


def test_a_step_in_pieces_is_the_step(workplace: Path, ftlab: Any) -> None:
    """A LoRA, whose dropout is 0 by default: the loss is the same but for rounding."""
    losses = {}
    for name, words in {"whole": (), "pieces": ("--data.micro_batch", 2)}.items():
        assert ftlab("fit", "-c", "tiny.yaml", "--run.name", name, *words).code == 0
        (run,) = Path("runs").glob(f"*/{name}")
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["data"]["micro_batch"] is None
        shape = config["data"]["batch_size"], config["trainer"]["accumulate_grad_batches"]
        assert shape == ((4, 1) if name == "whole" else (2, 2))
        assert config["trainer"]["val_check_interval"] == (2 if name == "whole" else 4)
        losses[name] = json.loads((run / "scores.json").read_text())["val_loss"]
    assert losses["pieces"] == pytest.approx(losses["whole"], rel=1e-4)


def test_auto_takes_what_fits(workplace: Path, ftlab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    room = {"bytes": 0.0}
    monkeypatch.setattr(
        "ftlab.cli.by_plan.device_of_this_machine", lambda _: Device("a small one", room["bytes"], is_gpu=False)
    )
    command = ["fit", "-c", "tiny.yaml", "--data.micro_batch", "auto", "--trainer.max_steps", 1]
    answer = ftlab(*command)
    assert answer.code == 1
    assert "not one row of 128 tokens fits a small one: see ftlab plan, and lower data.max_length" in answer.err
    for rows in (1, 4):
        assert ftlab("plan", "-c", "tiny.yaml", "--batches", rows, "--device", "1 GB", "--json", "found.json").code == 0
        room["bytes"] = 1.02 * json.loads(Path("found.json").read_text())[0]["peak"]
        assert ftlab(*command, "--run.name", f"rows{rows}").code == 0
        (run,) = Path("runs").glob(f"*/rows{rows}")
        assert yaml.safe_load((run / "config.yaml").read_text())["data"]["batch_size"] == rows


def test_auto_takes_no_more_than_it_is_given(workplace: Path, ftlab: Any, refused: Any) -> None:
    assert ftlab("plan", "-c", "tiny.yaml", "--batches", 2, "--json", "found.json").code == 0
    bytes_of_two = json.loads(Path("found.json").read_text())[0]["peak"]
    words = ["fit", "-c", "tiny.yaml", "--data.micro_batch", "auto", "--trainer.max_steps", 1, "--run.name", "run"]
    words.append("--data.micro_batch_memory")
    assert ftlab(*words, f"{1.02 * bytes_of_two / 1e6:.3f} MB").code == 0
    config = yaml.safe_load(next(Path("runs").glob("*/run/config.yaml")).read_text())
    assert (config["data"]["batch_size"], config["trainer"]["accumulate_grad_batches"]) == (2, 2)
    assert (config["data"]["micro_batch"], config["data"]["micro_batch_memory"]) == (None, None)
    assert "not one row of 128 tokens fits data.micro_batch_memory 0.1 MB" in refused(*words, "0.1 MB")
    assert "give a size such as '20 GB'" in refused(*words, "much")
    assert "this machine's CPU has " in refused(*words, "900000 GB")


# ---------------------------------------------------------------- memory that runs out


class At:
    shape = (64, 128)


def test_what_fits_is_said_where_memory_runs_out(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftlab.cli.experiment import Experiment

    experiment = Experiment(["-c", "tiny.yaml"])
    monkeypatch.setattr(experiment, "whereabouts", At())
    step = step_of(experiment, False, rows=64)
    again = memory_of(replace(step, checkpointing=True, counted=False), processes_of(experiment))
    for memory, said in (
        (0.9 * again, "give data.micro_batch 4, which fits a CPU by plan"),
        (1.01 * again, "give data.micro_batch 4 or model.gradient_checkpointing true, with up to "),
        (1e12, ""),
    ):
        device = Device("a CPU", memory, is_gpu=False)
        monkeypatch.setattr("ftlab.cli.planned.device_of_this_machine", lambda _, device=device: device)
        told = breakdowns._what_fits(experiment)
        assert [part[: len(said)] for part in told] == ([said] if said else [])


def test_memory_of_this_machine() -> None:
    from ftlab.cli.planned import device_of_this_machine

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    device = device_of_this_machine("cpu")
    assert (device.is_gpu, device.usable) == (False, 0.8 * min([total, *memory_limits()]))


def test_limits_of_all_groups_that_a_process_is_in(tmp_path: Path) -> None:
    groups, proc = tmp_path / "cgroup", tmp_path / "self"
    second, first = groups / "slurm" / "job_7", groups / "memory" / "slurm" / "job_7"
    for group in (second, first):
        group.mkdir(parents=True)
    (groups / "slurm" / "memory.max").write_text("3000\n")
    (second / "memory.max").write_text("max\n")
    (first / "memory.limit_in_bytes").write_text("2000\n")
    (groups / "memory" / "memory.limit_in_bytes").write_text("9000\n")
    (groups / "memory.max").write_text("1\n")  # of the second version, under the first's names
    assert memory_limits(proc, groups) == []
    proc.write_text("0::/slurm/job_7\n")
    assert memory_limits(proc, groups) == [3000, 1]
    proc.write_text("5:cpu,cpuacct:/slurm\n4:memory:/slurm/job_7\n")
    assert memory_limits(proc, groups) == [2000, 9000]
    proc.write_text("4:memory:/of/another/namespace\n")
    assert memory_limits(proc, groups) == [9000]


# ---------------------------------------------------------------- model.gradient_checkpointing


def test_auto_computes_again_what_it_must(workplace: Path, ftlab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    room = {"bytes": 0.0}
    monkeypatch.setattr(
        "ftlab.cli.by_plan.device_of_this_machine", lambda _: Device("a small one", room["bytes"], is_gpu=False)
    )
    command = ["fit", "-c", "tiny.yaml", "--model.gradient_checkpointing", "auto", "--trainer.max_steps", 1]
    answer = ftlab(*command)
    assert answer.code == 1
    assert "4 rows of 128 tokens do not fit a small one, whatever is computed again" in answer.err
    answer = ftlab(*command, "--data.micro_batch", "auto")
    assert answer.code == 1
    assert "is for a micro-batch that is given, and data.micro_batch is auto, too" in answer.err
    ftlab("plan", "-c", "tiny.yaml", "--checkpointing", "selective", "--json", "found.json")
    selective = json.loads(Path("found.json").read_text())[0]["peak"]
    for number, (bytes_, budget) in enumerate(((selective, ()), (1e12, (f"{selective / 1e6:.6f} MB",)))):
        room["bytes"] = bytes_
        within = [word for size in budget for word in ("--data.micro_batch_memory", size)]
        assert ftlab(*command, *within, "--run.name", number).code == 0
        (file,) = Path("runs").glob(f"*/{number}/config.yaml")
        config = yaml.safe_load(file.read_text())
        assert config["model"]["gradient_checkpointing"] == "selective"
        assert config["data"]["micro_batch_memory"] is None
