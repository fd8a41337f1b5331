"""`ftlab fit … --on slurm`: the same command, as a job. Nothing is trained, opened or loaded here."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftlab import cluster
from ftlab.cli.unopened import Unopened, refuse_what_would_fail
from ftlab.cluster.slurm import in_words
from ftlab.cluster.submission import mark_of
from ftlab.errors import UserError
from ftlab.runs import Run, short_hash
from ftlab.runs.directory import LOGS_OF_JOBS
from ftlab.runs.lock import locked

_SUBMITTED = "FTLAB_SUBMITTED"
_OPTIONS = {"--on": "on", "--after": "after"}
_FLAGS = ("--dry-run", "--dry_run")


@dataclass(frozen=True)
class Submission:
    """What a command says of its job.

    Args:
        profile: Its name.
        dry_run: Whether the script is only to be printed.
        after: Jobs that it waits for.
    """

    profile: str
    dry_run: bool
    after: str | None


def asked_for(verb: str, arguments: Sequence[str]) -> tuple[Submission | None, list[str]]:
    """What the arguments of a verb say of a job, and the others; None where they say nothing.

    Raises:
        UserError: They ask for what there is not.
    """
    if verb != "fit":
        return None, list(arguments)
    said, dry_run, rest = _taken_out(arguments)
    place, after = said.get("on"), said.get("after")
    if place is None:
        for option, given in {"--dry-run": dry_run, "--after": after is not None}.items():
            if given:
                raise UserError(f"{option} says something of a job: give --on slurm, too")
        return None, rest
    kind, colon, name = place.partition(":")
    if kind != "slurm" or (colon and not name):
        raise UserError(f"--on is {place!r}: it must be slurm, or slurm: and the name of a profile")
    return Submission(name or "default", dry_run, after), rest


def _taken_out(arguments: Sequence[str]) -> tuple[dict[str, str], bool, list[str]]:
    said: dict[str, str] = {}
    rest: list[str] = []
    words = [word for word in arguments if word not in _FLAGS]
    expected = None
    for word in words:
        option, equals, value = word.partition("=")
        if expected:
            said[expected], expected = word, None
        elif option in _OPTIONS and equals:
            said[_OPTIONS[option]] = value
        elif word in _OPTIONS:
            expected = _OPTIONS[word]
        else:
            rest.append(word)
    if expected:
        raise UserError(f"--{expected} needs a value after it")
    return said, len(words) < len(arguments), rest


def submit(submission: Submission, arguments: Sequence[str]) -> int:
    """Submits a job that gives the command `fit` with these arguments, or finds the one that does; prints its number.

    Raises:
        UserError: The configuration or the profile is wrong, or SLURM refuses the job.
    """
    experiment = Unopened(arguments)
    refuse_what_would_fail(experiment)
    run, config = experiment.run, experiment.resolved()
    profile = cluster.load_profile(submission.profile, after=submission.after)
    processes = processes_of(config["trainer"], profile, submission.profile)
    run.admitted(config, force=experiment.config.run.resume == "force")
    if run.finished_as(config):
        _say(f"{run.directory} has finished; another --run.name repeats it")
        return 0
    directory = run.directory.resolve()
    task = cluster.Task(
        name=f"ftlab-{directory.parent.name}-{directory.name}",
        mark=mark_of(directory),
        logs=directory / LOGS_OF_JOBS,
        nodes=config["trainer"]["num_nodes"],
        processes=processes,
        environment=((_SUBMITTED, short_hash(config)),),
        checkpoint=Run(directory).last,
    )
    words = ["fit", *arguments]
    script = cluster.script(task, profile, words)
    if submission.dry_run:
        print(script, end="")
        return 0
    job, new = cluster.submit_once(
        run.directory, task.name, script, {"profile": submission.profile, "command": words}, lambda: _refuse_busy(run)
    )
    print(job.id)  # for --after of another
    if new:
        _say(
            f"job {job.id} is submitted for {run.directory}; ftlab jobs says how far it is, {LOGS_OF_JOBS}/ holds logs"
        )
    else:
        _say(f"job {job.id} is there for {run.directory} already ({in_words(job.state)}): nothing is submitted")
    return 0


def unchanged(run: Run, config: Mapping[str, Any]) -> None:
    """Sees to it that a job trains what was submitted: its files may have been edited while it was queued.

    Raises:
        UserError: They were.
    """
    submitted = os.environ.get(_SUBMITTED)
    if submitted and submitted != short_hash(config):
        raise UserError(
            f"the configuration is not the one that was submitted (it was {submitted}, it is {short_hash(config)}, for "
            f"{run.directory}): put it back and submit it again, or submit the new one"
        )


def processes_of(trainer: Mapping[str, Any], profile: cluster.Profile, name: str) -> int:
    """Processes on each node: one for each device.

    Raises:
        UserError: Devices and the profile's GPUs do not fit.
    """
    nodes, accelerator, gpus = trainer["num_nodes"], str(trainer["accelerator"]), profile.gpu_count
    if nodes < 1:
        raise UserError(f"trainer.num_nodes is {nodes}: give a number from 1 on")
    devices = devices_of_a_node(trainer["devices"])
    on_gpus = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    if not on_gpus:
        return devices or 1
    if not gpus:
        raise UserError(
            f"slurm/profiles/{name}.yaml has gpus: 0, and trainer.accelerator is {accelerator}: give a profile with "
            "GPUs (--on slurm:PROFILE), or --trainer.accelerator cpu"
        )
    if devices not in (None, gpus):
        raise UserError(
            f"slurm/profiles/{name}.yaml has gpus: {gpus}, and trainer.devices is {trainer['devices']}: give "
            f"--trainer.devices {gpus}, or a profile with gpus: {devices} (--on slurm:PROFILE)"
        )
    return gpus


def devices_of_a_node(said: Any) -> int | None:
    """How many devices of a node are asked for; None for all that there are."""
    if isinstance(said, str) and "," in said:
        return len([part for part in said.split(",") if part.strip()])
    if isinstance(said, list):
        return len(said)
    number = int(said) if str(said).lstrip("-").isdigit() else -1
    return None if number == -1 else number


def _refuse_busy(run: Run) -> None:
    """A job would find the directory taken."""
    if (run.directory / ".lock").exists():
        with locked(run.directory):
            pass


def _say(sentence: str) -> None:
    print(f"ftlab: {sentence}", file=sys.stderr)
