"""`--trainer.strategy fsdp2` and `fsdp` from the command line, in processes of its own."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from ranks import on_ranks
from safetensors.torch import load_file
from tiny_experiment import curves, results
from torch.testing import assert_close

from ftlab.cli import main

TWO = ["--trainer.strategy", "fsdp2", "--trainer.devices", "2", "--data.batch_size", "2"]


def begin(verb: str, name: str, *options: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "ftlab", verb, "-c", "tiny.yaml", "--run.name", name, *TWO, *options]
    return subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and what was said."""
    _, err = process.communicate(timeout=300)
    assert "Traceback" not in err, err
    return process.returncode, err


WHOLE = ["--model.method", "Full"]
ALL = "weights, gradients and moments"
FROZEN = "frozen tensors of decoder blocks"


@pytest.mark.parametrize(
    ("strategy", "method", "what"), [("fsdp2", [], ALL), ("fsdp", [], FROZEN), ("fsdp", WHOLE, ALL)]
)
def test_a_run_in_shards_is_that_of_one_process(
    strategy: str, method: list[str], what: str, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", "-c", "tiny.yaml", *method, "--run.name"]
    assert on_ranks(2, partial(main, [*fit, "shards", *TWO, "--trainer.strategy", strategy])) == [0, 0]
    assert capfd.readouterr().err.count(f"trainer.strategy {strategy}: {what} in shards") == 1
    assert on_ranks(1, partial(main, [*fit, "alone"])) == [0]
    shards, alone = Path("runs/tiny/shards"), Path("runs/tiny/alone")
    weights = "model/model.safetensors" if method else "model/adapter_model.safetensors"
    ours, theirs = (load_file(run / weights) for run in (shards, alone))
    assert_close(ours, theirs, rtol=1e-3, atol=1e-5)  # sums of float32 in another order
    assert len(curves(shards)) == len(curves(alone)) == 1 + 4
    ours, theirs = (json.loads((run / "provenance.json").read_text()) for run in (shards, alone))
    assert ours["frozen_base"] == theirs["frozen_base"]
    assert (ours["cost"]["in_shards"], theirs["cost"].get("in_shards")) == (what, None)
    for count in ("parameters", "trainable_parameters"):
        assert ours["cost"][count] == theirs["cost"][count]
    assert on_ranks(1, partial(main, ["generate", str(shards), "--prompt", "Zeno asks"])) == [0]


@pytest.mark.resume
@pytest.mark.parametrize(
    "method", [["--model.method.dropout", "0.2"], [*WHOLE, "--trainer.strategy", "fsdp"]], ids=["fsdp2", "fsdp full"]
)
def test_told_to_stop_it_goes_on_to_the_bit_and_is_judged(method: list[str], workplace: Path) -> None:
    many = [*method, "--trainer.max_steps", "24", "--run.checkpoints.every_n_steps", "1"]
    many += ["--trainer.val_check_interval", "7"]
    run = Path("runs/tiny/stopped")
    process = begin("fit", run.name, *many)
    while not any(int(path.name.split("-")[1]) >= 5 for path in run.glob("checkpoints/last-*.ckpt")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert code == 75, said
    assert "stopped by SIGTERM at step" in said.splitlines()[-1]
    for name in (run.name, "whole"):
        code, said = ended(begin("fit", name, *many))
        assert code == 0, said
    assert results(run) == results(run.with_name("whole"))
    code, said = ended(begin("test", run.name, *many))
    assert code == 0, said
    assert len((run / "predictions/test.jsonl").read_text().splitlines()) == 4


def test_a_quantised_base_is_refused(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one = ["--trainer.strategy", "fsdp2", "--trainer.devices", "1", "--model.method", "QLoRA"]
    assert on_ranks(1, partial(main, ["fit", "-c", "tiny.yaml", *one])) == [1]  # its process group ends with it
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("ftlab: trainer.strategy fsdp2: a base in nf4 comes out of it damaged (bitsandbytes #1945)")
    assert not list(Path("runs").glob("*/*"))
