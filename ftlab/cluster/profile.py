"""What a job asks a cluster for, and what it finds there: one file of slurm/profiles/ for each kind of job."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ftlab.cluster.places import find, profiles
from ftlab.errors import UserError
from ftlab.runs.redaction import secret_in
from ftlab.yaml_files import read_mapping

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
_GPUS = re.compile(r"(?:[\w.-]+:)?\d+")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Profile:
    """A kind of job.

    Args:
        partition: As `sinfo` lists them; by default the cluster's default.
        account: Whom it is charged to.
        qos: Quality of service.
        gpus: GPUs of each node: how many (`4`), or of which type (`a100:4`); `trainer.devices` must be as many.
        cpus: CPU cores of each process; data workers and tokenizers run on them, too.
        memory: Memory of each node, such as 64G.
        time: The longest that one start of the job may take, in quotes, such as "24:00:00" or "2-12:00:00". Training
            that takes longer is saved, queued again and goes on.
        constraint: Features that nodes must have.
        after: Jobs that must have come to a good end before this one starts: 12, 12:13, or as `--dependency` has it.
        lead_seconds: How long before its end a job is told, with SIGUSR1: it must do to end a step and to save.
        modules: What `module load` is called with.
        container: The command that runs another one in a container, such as "apptainer exec --nv image.sif".
        python: The interpreter; by default the one that submits, or `python` in a container.
        environment: Variables that the job sets, with their values.
        setup: Lines of shell before training.
        options: More options of sbatch, such as --exclude=n13.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gpus: int | str = 0
    cpus: int = 1
    memory: str | int | None = None
    time: str | None = None
    constraint: str | None = None
    after: str | int | None = None
    lead_seconds: int = 120
    modules: list[str] = field(default_factory=list)
    container: str | None = None
    python: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)

    @property
    def gpu_count(self) -> int:
        """GPUs of each node."""
        return int(str(self.gpus).rpartition(":")[2])

    @property
    def dependency(self) -> str | None:
        """`after` as `--dependency` takes it."""
        said = str(self.after) if self.after is not None else None
        return f"afterok:{said}" if said and re.fullmatch(r"[\d_:]+", said) else said


def load_profile(name: str = "default", **changed: Any) -> Profile:
    """The profile of that name.

    Args:
        name: Of a file under slurm/profiles/, without .yaml.
        changed: Keys with values in place of the file's; None leaves the file's.

    Raises:
        UserError: It is not there, is not YAML, or says what no profile can.
    """
    file = find(f"profiles/{name}.yaml")
    if file is None:
        there = f"there are {', '.join(profiles())}" if profiles() else "there is none"
        raise UserError(f"there is no profile slurm/profiles/{name}.yaml: {there}")
    said = read_mapping(file, "profile", "a profile is a mapping such as 'partition: gpu'")
    return _checked(file, said | {key: value for key, value in changed.items() if value is not None})


def seconds(time: str) -> int | None:
    """What a time limit of SLURM comes to; None for one that never ends.

    Raises:
        ValueError: It is none.
    """
    if time.lower() in ("unlimited", "infinite"):
        return None
    match = _TIME.fullmatch(time)
    if not match:
        raise ValueError(time)
    first, second, third = (int(match[part] or 0) for part in ("first", "second", "third"))
    if match["days"] or match["third"]:
        hours, minutes, rest = first, second, third
    else:  # 90 and 90:00 are minutes
        hours, minutes, rest = 0, first, second
    return ((int(match["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + rest


def _checked(file: Path, said: dict[str, Any]) -> Profile:
    types = {each.name: str(each.type) for each in fields(Profile)}
    for key, value in said.items():
        if key not in types:
            near = difflib.get_close_matches(str(key), types, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(types)}"
            raise UserError(f"{file}: there is no key {key}: {hint}")
        if value is None and "None" in types[key]:
            continue
        if not _fits(value, types[key]):
            raise UserError(f"{file}: {key} is {value!r}: it must be {_in_words(key, types[key])}")
    profile = Profile(**said)
    _check_numbers(file, profile)
    for key, value in profile.environment.items():
        if not _VARIABLE.fullmatch(str(key)):
            raise UserError(
                f"{file}: environment: {key!r} cannot be the name of a variable: take letters, digits and _"
            )
        if found := secret_in(str(value)):
            raise UserError(
                f"{file}: environment.{key} holds {found}, and the script is kept: leave it out, the job inherits the "
                "environment that submits it"
            )
    return profile


def _check_numbers(file: Path, profile: Profile) -> None:
    if not _GPUS.fullmatch(str(profile.gpus)):
        raise UserError(f"{file}: gpus is {profile.gpus!r}: give a number, or a type and a number such as a100:4")
    for key, least in {"cpus": 1, "lead_seconds": 1}.items():
        if getattr(profile, key) < least:
            raise UserError(f"{file}: {key} is {getattr(profile, key)}: give a number from {least} on")
    if profile.time is None:
        return
    try:
        limit = seconds(profile.time)
    except ValueError:
        raise UserError(
            f'{file}: time is {profile.time!r}: give it as "HOURS:MINUTES:SECONDS" or "DAYS-HOURS"'
        ) from None
    if limit is not None and limit <= profile.lead_seconds:
        raise UserError(
            f"{file}: a job of time {profile.time} would be told to stop {profile.lead_seconds} s before its end, as "
            "it starts, and never get anywhere: give more time, or less lead_seconds"
        )


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, list):
        return kind.startswith("list") and all(_is_line(each) for each in value)
    if isinstance(value, dict):
        plain = all(_is_line(each) or type(each) in (int, float) for each in value.values())
        return kind.startswith("dict") and plain
    if type(value) is int:
        return "int" in kind
    return (kind.startswith("str") and _is_line(value)) or (kind == "int | str" and _is_line(value))


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _in_words(key: str, kind: str) -> str:
    if key == "time":
        return 'in quotes, such as "24:00:00": without them YAML makes another number of it'
    if kind.startswith("list"):
        return "a list of single lines of text"
    if kind.startswith("dict"):
        return "names, each with a text (in quotes where YAML would take it for something else) or a number"
    return "a whole number" if kind == "int" else "a single line of text" + (" or a number" if "int" in kind else "")
