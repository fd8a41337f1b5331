"""`ftlab rm RUN …`: deletes runs, those that nobody works in, each wholly or not at all."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ftlab import cluster
from ftlab.cli import VERBS
from ftlab.cli.facts_of_runs import RunFacts, size, worker_elsewhere
from ftlab.cli.sentences import own_parser, parse
from ftlab.cluster.progress import at_work_here
from ftlab.cluster.slurm import installed
from ftlab.errors import UserError
from ftlab.runs import Run
from ftlab.runs.directory import LOGS_OF_JOBS
from ftlab.runs.finding import directories
from ftlab.runs.lock import OWNER, locked, owner_of

_DESCRIPTION = f"""{VERBS["rm"]}.

Asks first; where there is no terminal to ask on, --yes is needed. A run that somebody works in, or for which a job is
queued, is refused, and then none is deleted. Of a trial of a sweep the sweep keeps what it came to."""

_REMOVED = ".{}.removed"


def run(verb: str, arguments: Sequence[str]) -> int:
    """Deletes the runs that are named, after all of them have been looked at."""
    parser = own_parser(verb, _DESCRIPTION)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directories of runs")
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
    options = parse(parser, arguments)
    found = list({path.resolve(): RunFacts(_run(path)) for path in options.runs}.values())
    for each in found:
        _refuse_at_work(each.run)
    if not options.yes and not _agreed(found):
        print("ftlab: nothing is deleted", file=sys.stderr)
        return 1
    for each in found:
        freed = each.bytes
        delete(each.run)
        print(f"ftlab: {each.run.directory} is deleted, {size(freed)}", file=sys.stderr)
    return 0


def _run(path: Path) -> Run:
    if path.is_symlink():
        raise UserError(f"{path} is a link to {path.resolve()}: give that directory itself")
    if (path / "config.yaml").is_file():
        return Run(path)
    if within := list(directories(str(path), depth=2)) if path.is_dir() else []:
        raise UserError(
            f"{path} is no run but holds {len(within):,}, the first {within[0]}: name them, as in ftlab rm {path}/*"
        )
    raise UserError(
        f"there is no run at {path}: it has no config.yaml, and nothing else is deleted; ftlab ls lists runs"
    )


def _refuse_at_work(run: Run) -> None:
    """Raises:
    UserError: A process works in the directory, or will.
    """
    if at_work_here(run):
        process = owner_of(run.directory) or "a process"
        raise UserError(f"{run.directory} is being worked in by {process}: end that first, with Ctrl-C or kill")
    if run.record().get("state") == "running" and (who := worker_elsewhere(run)):
        owner = run.directory / OWNER
        raise UserError(
            f"{run.directory} is being worked in by {who}: end that first, or where it is gone, delete {owner}"
        )
    lease = run.directory.resolve().parent / "leases" / run.directory.resolve().name
    if lease.is_file():
        from ftlab.sweeps.leases import working  # with Optuna

        if working(lease):
            raise UserError(f"{run.directory} is a trial that a worker of its sweep is at: ftlab sweep stop ends that")
    submitted = (run.directory / LOGS_OF_JOBS / "job.json").is_file() and installed("squeue")
    if submitted and (own := cluster.job_of(run.directory, cluster.jobs())):
        raise UserError(f"{run.directory} is that of job {own[0].id}: scancel {own[0].id} first")


def _agreed(found: Sequence[RunFacts]) -> bool:
    """Whether the user says so.

    Raises:
        UserError: There is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise UserError("there is no terminal to ask on, and nothing is deleted unasked: --yes says that it may be")
    for each in found:
        of_sweep = (each.run.directory.resolve().parent / "study.journal").is_file()
        rest = "; its sweep keeps what it came to" if of_sweep else ""
        print(f"{each.run.directory}: {each.state}, {each.method}, {size(each.bytes)}{rest}", file=sys.stderr)
    print(f"delete {'these' if len(found) > 1 else 'it'}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def delete(run: Run) -> None:
    """Deletes a run. It is out of the way at once, under another name, and then its files go: a process that is killed
    meanwhile leaves no half of a run, and the next deletion beside it finishes the work.

    Raises:
        UserError: Somebody has begun to work in it, or its files cannot be deleted.
    """
    directory = run.directory.resolve()
    aside = directory.with_name(_REMOVED.format(directory.name))
    try:
        for left in directory.parent.glob(_REMOVED.format("*")):
            shutil.rmtree(left)
        with locked(directory):
            directory.rename(aside)
        shutil.rmtree(aside)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be deleted ({error.strerror}): see whose it is") from error
    with contextlib.suppress(OSError):  # it was the last of its experiment
        directory.parent.rmdir()
