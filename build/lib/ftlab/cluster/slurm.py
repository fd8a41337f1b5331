"""SLURM's own commands: what is asked of them, and how their answers are read. None of them needs accounting."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ftlab.errors import UserError

_OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
_FORMAT = "%i|%T|%N|%r|%j|%k"
_PATIENCE = 120
"""Seconds that an answer may take; a busy controller takes some."""


class UnreachableError(UserError):
    """SLURM is there and does not answer: nobody knows what it has done."""


@dataclass(frozen=True)
class Job:
    """A job as squeue lists it.

    Args:
        id: Its number; of an array's job with the job's own, as 12_3.
        state: SLURM's word, such as PENDING or RUNNING.
        nodes: Where it runs; empty where it does not.
        reason: Why it does not run.
        name: Its name.
        mark: Its comment.
    """

    id: str
    state: str
    nodes: str = ""
    reason: str = ""
    name: str = ""
    mark: str = ""

    @property
    def number(self) -> str:
        """Of the job, or of the array that it belongs to."""
        return self.id.partition("_")[0]

    @property
    def over(self) -> bool:
        """Whether it has come to an end, good or bad, and will not run again."""
        return self.state in _OVER


def installed(*commands: str) -> bool:
    """Whether these commands of SLURM are there."""
    return all(shutil.which(command) for command in commands)


def require(*commands: str) -> None:
    """Sees to it that these commands of SLURM are there.

    Raises:
        UserError: One is not.
    """
    for command in commands:
        if not installed(command):
            raise UserError(
                f"there is no SLURM on this machine ({command} is not found): give the command where jobs are "
                "submitted from, or leave out --on slurm"
            )


def jobs() -> list[Job]:
    """All of this user's jobs that SLURM still knows of, those that are over for some minutes.

    Raises:
        UserError: There is no SLURM, or it does not answer.
    """
    answer = _ask("squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", f"--format={_FORMAT}")
    return parse(answer)


def parse(answer: str) -> list[Job]:
    """The jobs in what squeue has printed."""
    rows = [line.split("|", 5) for line in answer.splitlines() if line.count("|") >= 5]
    return [
        Job(number, state, nodes, "" if reason == "None" else reason, name, "" if mark == "(null)" else mark)
        for number, state, nodes, reason, name, mark in rows
    ]


def submit(script: Path) -> str:
    """Submits a script and returns the number of the job.

    Raises:
        UserError: SLURM refuses it; its own words are in the sentence.
    """
    return _ask("sbatch", "--parsable", str(script)).strip().split(";")[0]


def _ask(command: str, *options: str) -> str:
    require(command)
    # what is set in a job must not have a say in one that is submitted from within it
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"}
    try:
        done = subprocess.run(
            [command, *options], capture_output=True, text=True, env=clean, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"{command} has not answered for {_PATIENCE} s: give the command again later") from error
    if done.returncode == 0:
        return done.stdout
    words = _words(done.stderr or done.stdout)
    if any(sign in words.lower() for sign in ("timed out", "unable to contact", "could not establish", "connect")):
        raise UnreachableError(f"SLURM does not answer ({command}: {words}): give the command again when it does")
    raise UserError(f"SLURM refuses: {words}; nothing was submitted: change the profile, or ask who runs the cluster")


def _words(text: str) -> str:
    """What a command of SLURM has said, in one line."""
    lines = [line.partition(": error: ")[2] or line.partition(": fatal: ")[2] or line for line in text.splitlines()]
    return "; ".join(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip())) or "without a word"


def in_words(state: str) -> str:
    """A state for people: `queued`, or SLURM's word in small letters."""
    return "queued" if state in ("PENDING", "REQUEUED", "REQUEUE_HOLD") else state.lower()
