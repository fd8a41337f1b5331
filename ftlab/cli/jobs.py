"""`ftlab jobs`: the runs that are running or queued, and how far they are."""

from __future__ import annotations

import dataclasses
import json
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from ftlab import cluster
from ftlab.cli import VERBS
from ftlab.cli.sentences import own_parser, parse
from ftlab.cluster.progress import at_work_here
from ftlab.cluster.slurm import in_words, installed
from ftlab.cluster.submission import directory_of
from ftlab.console import clock, new_console
from ftlab.errors import UserError
from ftlab.runs import Run

_DESCRIPTION = f"""{VERBS["jobs"]}.

Looks into the run directories and asks SLURM, where there is one. Steps, tokens a second, the time left and the last
loss are those of the curves as they were last written. Jobs of runs that are not under --root are listed, too."""


@dataclass(frozen=True)
class Line:
    """A run that is running or queued, or a job of one.

    Args:
        run: Its directory.
        state: running, queued, or SLURM's word.
        job: SLURM's number; None where it is no job.
        node: Where it runs, or ran last.
        why: For what it waits, in SLURM's word.
        progress: How far it is.
    """

    run: Path
    state: str
    job: str | None
    node: str | None
    why: str | None
    progress: cluster.Progress


def run(verb: str, arguments: Sequence[str]) -> int:
    """Prints a line for each."""
    parser = own_parser(verb, _DESCRIPTION)
    parser.add_argument("--root", type=Path, default=Path("runs"), help="directory of all runs (default: runs)")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    options = parse(parser, arguments)
    lines = list(_lines(options.root, _jobs()))
    if options.json:
        print(json.dumps([_plain(line) for line in lines], indent=2))
    elif lines:
        new_console().print(_table(lines))
    else:
        print(f"ftlab: nothing is running or queued under {options.root}", file=sys.stderr)
    return 0


def _jobs() -> list[cluster.Job]:
    """SLURM's jobs of ftlab that are not over; none, with a word about it, where it cannot be asked."""
    why = "SLURM is not installed (squeue is not found)"
    if installed("squeue"):
        try:
            return [job for job in cluster.jobs() if not job.over]
        except UserError as error:
            why = str(error)
    print(f"ftlab: {why}: listing the runs of this machine alone", file=sys.stderr)
    return []


def _lines(root: Path, jobs: Sequence[cluster.Job]) -> Iterator[Line]:
    listed = set()
    for directory in sorted({path.parent for path in root.glob("*/*/config.yaml")} | _submitted(root)):
        found = Run(directory)
        own = cluster.job_of(directory, jobs)
        listed |= {job.id for job in own}
        yield from (_of_job(found, job) for job in own)
        if not own and at_work_here(found):
            yield Line(directory, "running", None, socket.gethostname(), None, cluster.progress(found))
    for job in jobs:
        elsewhere = directory_of(job)
        if job.id not in listed and elsewhere:
            yield _of_job(Run(elsewhere), job)


def _submitted(root: Path) -> set[Path]:
    return {path.parent.parent for path in root.glob("*/*/slurm/job.json")}


def _of_job(found: Run, job: cluster.Job) -> Line:
    why = job.reason if job.state == "PENDING" else None
    return Line(found.directory, in_words(job.state), job.id, job.nodes or None, why or None, cluster.progress(found))


def _plain(line: Line) -> dict[str, object]:
    said = dataclasses.asdict(line) | {"run": str(line.run)}
    return {key: value for key, value in said.items() if key != "progress"} | dataclasses.asdict(line.progress)


def _table(lines: Sequence[Line]) -> Table:
    columns = ("run", "job", "state", "node", "step", "tokens/s", "left", "loss")
    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for line in lines:
        far = line.progress
        steps = f"{far.step:,} of {far.steps:,}" if far.steps else f"{far.step:,}"
        table.add_row(
            *map(
                Text,
                (
                    str(line.run),
                    line.job or "",
                    f"{line.state} ({line.why})" if line.why else line.state,
                    line.node or "",
                    steps,
                    "" if far.tokens_per_second is None else f"{far.tokens_per_second:,.0f}",
                    "" if far.seconds_left is None else clock(far.seconds_left),
                    "" if far.loss is None else f"{far.loss:.4f}",
                ),
            )
        )
    return table
