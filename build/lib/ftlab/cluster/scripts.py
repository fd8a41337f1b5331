"""The scripts that sbatch is given: the templates of slurm/, filled."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from ftlab.cluster.places import places
from ftlab.cluster.profile import Profile
from ftlab.errors import UserError, one_line

_PLAIN = re.compile(r"[\w./:=@%+,\-\[\]]+")


@dataclass(frozen=True)
class Task:
    """What a job is, beside what it asks for.

    Args:
        name: As squeue lists it.
        mark: The job's comment: by it the job is found again.
        logs: The directory of what it prints; absolute.
        nodes: How many.
        processes: On each node.
        environment: Variables that are set for it alone.
        checkpoint: The link that moves whenever training has saved; None where nothing is known of it.
    """

    name: str
    mark: str
    logs: Path
    nodes: int = 1
    processes: int = 1
    environment: tuple[tuple[str, str], ...] = ()
    checkpoint: Path | None = None


def script(task: Task, profile: Profile, words: Sequence[str]) -> str:
    """The script of a job that runs one command of ftlab in every process.

    Args:
        task: The job.
        profile: What it asks for.
        words: The command, from the verb on.

    Raises:
        UserError: A template cannot be filled.
    """
    template = "single_node.sh.j2" if task.nodes == 1 else "several_nodes.sh.j2"
    return _filled(template, task, profile, command=_command(profile, words))


def array_script(task: Task, profile: Profile, commands: Sequence[Sequence[str]], at_once: int | None = None) -> str:
    """The script of an array of jobs, each of which runs one command of ftlab.

    Args:
        task: The array; `nodes` is that of each job, and 1.
        profile: What each job asks for.
        commands: A command for each, from the verb on.
        at_once: How many may run at the same time.

    Raises:
        UserError: A template cannot be filled.
    """
    whole = [_command(profile, words) for words in commands]
    limit = f"0-{len(whole) - 1}" + (f"%{at_once}" if at_once else "")
    same = len({tuple(each) for each in whole}) == 1  # workers that share out the work among themselves
    return _filled("array.sh.j2", task, profile, commands=whole[:1] if same else whole, array=limit)


def _command(profile: Profile, words: Sequence[str]) -> list[str]:
    python = profile.python or ("python" if profile.container else sys.executable)
    return [*shlex.split(profile.container or ""), python, "-m", "ftlab", *words]


def _filled(template: str, task: Task, profile: Profile, **values: Any) -> str:
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(places()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    engine.filters |= {
        "option": _option,
        "quoted": lambda value: shlex.quote(str(value)),
        "joined": shlex.join,
        "escaped": _escaped,
    }
    try:
        return engine.get_template(template).render(task=task, profile=profile, here=Path.cwd(), **values)
    except jinja2.TemplateError as error:
        where = getattr(error, "name", None) or template
        raise UserError(f"slurm/{where} cannot be filled ({one_line(error)}): mend the template") from error


def _option(value: Any) -> str:
    """A value as sbatch reads it from a #SBATCH line, which no shell sees."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _escaped(path: str) -> str:
    """A path in which sbatch would take %j for the job's number."""
    return path.replace("%", "%%")
