"""What is said of a job that has failed; that jobs work on a sweep is tried in tests/cluster."""

from pathlib import Path

import pytest

from ftlab.cluster import Job
from ftlab.sweeps.slurm import why_it_ended

TASK = "ftlab: rates: its directory is gone"
SRUN = "srun: launch/slurm: _step_signal: Terminating StepId=17.0"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (f"{TASK}\n{SRUN}\n", "rates: its directory is gone"),
        (f"{SRUN}\n{TASK}\n\n", "rates: its directory is gone"),  # in any order: two processes write
        (f"{SRUN}\n", SRUN),
        ("", "it said nothing"),
        (None, "it said nothing"),
    ],
)
def test_the_task_is_heard_before_srun(tmp_path: Path, log: str | None, said: str) -> None:
    if log is not None:
        (tmp_path / "17_0.out").write_text(log)
    sentence = why_it_ended(Job("17_0", "FAILED", name="worker"), tmp_path)
    assert sentence == f"job 17_0 is failed: {said}; see {tmp_path / '17_0.out'}"
