"""Submits a job once: the same command again finds it, wherever the first was interrupted."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ftlab.cluster import slurm
from ftlab.cluster.profile import Profile
from ftlab.cluster.scripts import Task, array_script
from ftlab.errors import UserError
from ftlab.runs.directory import LOGS_OF_JOBS
from ftlab.runs.files import read_json, write_atomically

_PATIENCE = 300
"""Seconds in which another launcher of the same job must be done."""


_MARK = "ftlab:"


def mark_of(directory: Path) -> str:
    """The comment by which the job that works in `directory` is found."""
    return f"{_MARK}{directory.resolve()}"


def directory_of(job: slurm.Job) -> Path | None:
    """Where a job works; None for one that is not ftlab's."""
    return Path(job.mark.removeprefix(_MARK)) if job.mark.startswith(_MARK) else None


def job_of(directory: Path, jobs: Sequence[slurm.Job]) -> list[slurm.Job]:
    """The jobs, of an array several, that are to work or at work in `directory`.

    Args:
        directory: Of a run.
        jobs: Those that there are.
    """
    noted = read_json(directory / LOGS_OF_JOBS / "job.json")
    return [
        job
        for job in jobs
        if not job.over
        and (job.mark == mark_of(directory) or (job.number, job.name) == (noted.get("job"), noted.get("name")))
    ]


def submit_once(
    directory: Path,
    name: str,
    script: str,
    facts: Mapping[str, Any],
    check: Callable[[], None] = lambda: None,
) -> tuple[slurm.Job, bool]:
    """Submits a script for `directory`, unless there is a job for it.

    Args:
        directory: Where the job works; made where it is not there, and taken away again where the job is refused.
        name: The job's.
        script: What sbatch is given; its comment is `mark_of(directory)`.
        facts: What job.json says beside.
        check: Is called before a new job is submitted, and may refuse it.

    Returns:
        The job, and whether it is a new one.

    Raises:
        UserError: There is no SLURM, or it refuses the job.
    """
    slurm.require("sbatch", "squeue")
    slurm.jobs()  # where it does not answer, nothing is made
    place = directory / LOGS_OF_JOBS
    with _made(place), _alone(place):
        there = job_of(directory, slurm.jobs())
        if there:
            _note(place, there[0], facts)
            return there[0], False
        check()
        write_atomically(place / "job.sh", script)
        try:
            job = slurm.Job(slurm.submit(place / "job.sh"), "PENDING", name=name)
        except slurm.UnreachableError:
            there = job_of(directory, slurm.jobs())  # it may have taken the job before it fell silent
            if not there:
                raise
            job = there[0]
        _note(place, job, facts)
        return job, True


def submit_array(
    commands: Sequence[Sequence[str]],
    directory: Path,
    profile: Profile,
    at_once: int | None = None,
    processes: int = 1,
) -> tuple[slurm.Job, bool]:
    """Submits an array of jobs, each of which runs one command of ftlab; once, as `submit_once`.

    Args:
        commands: A command for each, from the verb on. Where all are the same, they are workers.
        directory: Whose they are: their logs lie in its `slurm/`.
        profile: What each job asks for.
        at_once: How many may run at the same time.
        processes: Of each job.

    Raises:
        UserError: There is no command, no SLURM, or it refuses the jobs.
    """
    if not commands:
        raise UserError(f"{directory}: there is nothing to submit: give at least one command")
    name = f"ftlab-{directory.resolve().name}"
    task = Task(name, mark_of(directory), directory.resolve() / LOGS_OF_JOBS, processes=processes)
    facts = {"commands": [list(words) for words in commands]}
    return submit_once(directory, name, array_script(task, profile, commands, at_once), facts)


def _note(place: Path, job: slurm.Job, facts: Mapping[str, Any]) -> None:
    """Writes job.json, unless it tells of this job already."""
    if read_json(place / "job.json").get("job") != job.number:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        said = {"job": job.number, "name": job.name, "submitted": now, **facts}
        write_atomically(place / "job.json", json.dumps(said, indent=2) + "\n")


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    lock = FileLock(place / ".lock", timeout=_PATIENCE)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another command is submitting a job for {place.parent}: wait for it to end") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _made(place: Path) -> Iterator[None]:
    """The directory of logs; where the job is refused, what was made for it is taken away again."""
    new = [path for path in (place, *place.parents) if not path.exists()]
    new_files = [path for path in (place / "job.sh", place / ".lock") if not path.exists()]
    place.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except slurm.UnreachableError:
        raise  # the job may be there, and needs a place for its logs
    except UserError:
        for path in new_files:
            path.unlink(missing_ok=True)
        for path in new:
            with contextlib.suppress(OSError):  # others have put something there
                os.rmdir(path)
        raise
