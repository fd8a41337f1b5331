"""How far a run is, from files written by hand; and what `ftlab jobs` makes of them."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from job_watching import Answer

from ftlab.cluster import Progress, progress
from ftlab.cluster.progress import at_work_here
from ftlab.cluster.submission import mark_of
from ftlab.runs import Run
from ftlab.runs.lock import locked

CURVES = """step,train_loss,total_tokens,tokens_per_second,val_loss
10,2.5,1000,50,
20,1.5,2000,100,
20,,,,1.25
"""


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run at step 20 of 50, of 100 tokens each, of which it does 100 a second."""
    monkeypatch.chdir(tmp_path)
    run = Run(Path("runs/e/half"))
    run.directory.mkdir(parents=True)
    run.config.write_text("trainer: {max_steps: 50}\n")
    run.metrics.write_text(CURVES)
    return run


def test_curves_tell_how_far_it_is(half: Run) -> None:
    assert progress(half) == Progress(step=20, steps=50, tokens_per_second=100.0, seconds_left=30.0, loss=1.5)


def test_a_later_checkpoint_tells_more(half: Run) -> None:
    half.checkpoints.directory.mkdir()
    (half.checkpoints.directory / "last-00000030-0123456789abcdef.ckpt").touch()
    half.last.symlink_to("last-00000030-0123456789abcdef.ckpt")
    assert (progress(half).step, progress(half).seconds_left) == (30, 20.0)


def test_epochs_are_counted_by_the_run_itself(half: Run) -> None:
    half.config.write_text("trainer: {max_steps: -1, max_epochs: 2}\n")
    assert (progress(half).steps, progress(half).seconds_left) == (None, None)
    half.note(steps=40)
    assert (progress(half).steps, progress(half).seconds_left) == (40, 20.0)


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    assert progress(Run(tmp_path)) == Progress()


@pytest.mark.parametrize("text", ["", "step\n", "\0\n", "step,train_loss\n10,half"])
def test_damaged_curves_tell_nothing(half: Run, text: str) -> None:
    half.metrics.write_text(text)
    assert progress(half).loss is None


def test_who_works_here(half: Run) -> None:
    owner = half.directory / ".owner"
    assert not at_work_here(half)
    with locked(half.directory):
        assert at_work_here(half)
        owner.write_text(f"process {os.getpid()} on elsewhere")
        assert not at_work_here(half)
    assert not at_work_here(half)
    owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")  # killed, and its number taken by this one
    assert not at_work_here(half)
    owner.write_text(f"process {2**22 + 1} on {socket.gethostname()}")  # above any number that Linux gives
    assert not at_work_here(half)


class TestJobs:
    def test_without_slurm(self, half: Run, ftlab: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        word = "ftlab: SLURM is not installed (squeue is not found): listing the runs of this machine alone\n"
        nothing = ftlab("jobs")
        assert (nothing.code, nothing.out) == (0, "")
        assert nothing.err == f"{word}ftlab: nothing is running or queued under runs\n"
        with locked(half.directory):
            answer = ftlab("jobs", "--json")
            table = ftlab("jobs").out
        assert (answer.code, answer.err) == (0, word)
        assert json.loads(answer.out) == [
            {
                "run": "runs/e/half",
                "state": "running",
                "job": None,
                "node": socket.gethostname(),
                "why": None,
                "step": 20,
                "steps": 50,
                "tokens_per_second": 100.0,
                "seconds_left": 30.0,
                "loss": 1.5,
            }
        ]
        assert "20 of 50" in table

    def test_with_slurm(self, half: Run, ftlab: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
        listed = (
            f"12|RUNNING|n1|None|a|{mark_of(half.directory)}\n"
            f"13_0|PENDING||Resources|b|ftlab:/else/where\n"
            f"14|COMPLETED|n1|None|c|ftlab:/else/where\n"
            f"15|RUNNING|n2|None|d|(null)\n"
        )
        Path("listed").write_text(listed)
        Path("bin").mkdir()
        Path("bin/squeue").write_text(f"#!/bin/sh\ncat {Path('listed').resolve()}\n")
        Path("bin/squeue").chmod(0o755)
        monkeypatch.setenv("PATH", f"{Path('bin').resolve()}:/usr/bin:/bin")
        answer = ftlab("jobs", "--json")
        lines = [
            (each["run"], each["job"], each["state"], each["node"], each["why"]) for each in json.loads(answer.out)
        ]
        assert answer.err == ""
        assert lines == [
            ("runs/e/half", "12", "running", "n1", None),
            ("/else/where", "13_0", "queued", None, "Resources"),
        ]

    def test_slurm_does_not_answer(
        self, half: Run, ftlab: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("bin").mkdir()
        Path("bin/squeue").write_text(
            "#!/bin/sh\necho 'squeue: error: Unable to contact slurm controller' >&2; exit 1\n"
        )
        Path("bin/squeue").chmod(0o755)
        monkeypatch.setenv("PATH", f"{Path('bin').resolve()}:/usr/bin:/bin")
        answer = ftlab("jobs")
        assert answer.code == 0
        assert "squeue: Unable to contact slurm controller" in answer.err
