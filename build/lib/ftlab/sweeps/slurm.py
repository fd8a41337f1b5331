"""The launcher for SLURM: an array of jobs, each a worker of the sweep, which share out its trials among themselves.

This process only watches. Ended, however it is, it leaves the jobs to work on; the same command finds them and watches
again. `ftlab sweep stop` ends them, with a checkpoint of every trial.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ftlab import cluster
from ftlab.errors import UserError
from ftlab.runs.directory import LOGS_OF_JOBS
from ftlab.sweeps.directory import SweepDirectory

_LOOK = 2.0
"""Seconds between looks at the queue."""


@dataclass(frozen=True)
class OnSlurm:
    """A launcher whose jobs ask for what a profile says.

    Args:
        profile: Its name. Each worker asks for all of it, for one trial at a time.
    """

    profile: str

    def __call__(self, directory: SweepDirectory, workers: int, watch: Callable[[], None]) -> None:
        """Submits the workers, or finds them, and returns when all have ended.

        Raises:
            UserError: SLURM refuses them, or a worker could not go on.
        """
        worker = ["sweep", "work", os.fspath(directory.path.resolve())]
        profile = cluster.load_profile(self.profile)
        job, new = cluster.submit_array([worker] * workers, directory.path, profile)
        number = job.id.partition("_")[0]
        what = f"submitted, with {workers} workers" if new else "there already, and nothing is submitted"
        print(f"ftlab: job {number} is {what}; it works on when this command is ended", file=sys.stderr, flush=True)
        while not (workers_now := _jobs(number)) or not all(each.over for each in workers_now):
            time.sleep(_LOOK)
            watch()
        failed = [each for each in workers_now if each.state != "COMPLETED"]
        if failed:
            raise UserError(why_it_ended(failed[0], directory.path / LOGS_OF_JOBS))


def _jobs(number: str) -> list[cluster.Job]:
    return [job for job in cluster.jobs() if job.id.partition("_")[0] == number]


def why_it_ended(job: cluster.Job, logs: Path) -> str:
    """A sentence with the last that a job has said of itself.

    Args:
        job: One that has not come to its end.
        logs: The directory of what its sweep's jobs print.
    """
    log = logs / f"{job.id}.out"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # srun tells only that a task has ended, before or after what the task itself has said.
    said = next((line for line in reversed(lines) if not line.startswith("srun: ")), (lines or ["it said nothing"])[-1])
    return f"job {job.id} is {job.state.lower()}: {said.removeprefix('ftlab: ')}; see {log}"
