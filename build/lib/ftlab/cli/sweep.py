"""`ftlab sweep run FILE` and what else is done with a sweep: status, resume, stop, best, retry-failed, work."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich import box
from rich.table import Table
from rich.text import Text

from ftlab.cli import VERBS
from ftlab.cli.sentences import own_parser, parse
from ftlab.console import new_console
from ftlab.errors import UserError
from ftlab.sweeps import Launcher, Status, Study, SweepDirectory, local, read_sweep_file, status, work
from ftlab.sweeps.best import write_best
from ftlab.sweeps.directory import disk_errors
from ftlab.sweeps.sweep_file import checked_budgets

_WORDS = {
    "run": "run the trials of a sweep file; the same file again goes on with the sweep that is there",
    "status": "say where a sweep stands",
    "resume": "go on with a sweep that was stopped",
    "stop": "have the workers of a sweep save their trials and end",
    "best": "print the best trial, write its configuration as best.yaml, and plots",
    "retry-failed": "try failed trials again, and go on",
    "work": "be one worker of a sweep: launchers start these, on as many machines as share the directory",
}
_USAGE = """usage: ftlab sweep [-h] {words} ...

{does}.

{list}

ftlab sweep WORD --help lists the options of each. SWEEP_DIR is runs/<name of the sweep>."""


def run(verb: str, arguments: Sequence[str]) -> int:
    """Does what the first word says."""
    if not arguments or arguments[0] in ("-h", "--help"):
        listed = "\n".join(f"  {word:<14}{does}" for word, does in _WORDS.items())
        print(_USAGE.format(words="|".join(_WORDS), does=VERBS[verb], list=listed))
        return 0 if arguments else 2
    word, *rest = arguments
    if word not in _WORDS:
        raise UserError(f"there is no ftlab sweep {word}: there are {', '.join(_WORDS)}")
    with disk_errors():
        return _DOES[word](rest)


def _run(arguments: Sequence[str]) -> int:
    parser = _parser("run")
    parser.add_argument("file", type=Path, help="sweep file, as W&B has them")
    _add_launch_options(parser)
    parser.add_argument("--name", type=str | None, help="of the sweep (default: the file's key name, or its name)")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="directory of all runs")
    options = parse(parser, arguments)
    file = read_sweep_file(options.file)
    directory = SweepDirectory(options.root / (options.name or file.name))
    budgets = {**file.budgets, **_budgets(options)}
    if directory.there:
        directory.refuse_other(file)
    else:
        from ftlab.cli.sweep_check import planned  # imports torch, which workers need not

        directory.found(options.file, planned(file, options.file, _profile(options.on)))
    return _launch(directory, options, budgets)


def _resume(arguments: Sequence[str]) -> int:
    parser = _parser_of_one("resume")
    _add_launch_options(parser)
    options = parse(parser, arguments)
    directory = SweepDirectory(options.sweep_dir).required()
    return _launch(directory, options, {**directory.budgets(), **_budgets(options)})


def _retry_failed(arguments: Sequence[str]) -> int:
    parser = _parser_of_one("retry-failed")
    _add_launch_options(parser)
    options = parse(parser, arguments)
    directory = SweepDirectory(options.sweep_dir).required()
    budgets = {**directory.budgets(), **_budgets(options)}
    count = Study(directory).retry_failed()
    _say(f"{count} failed trial{'' if count == 1 else 's'} will be tried again")
    return _launch(directory, options, budgets)


def _status(arguments: Sequence[str]) -> int:
    parser = _parser_of_one("status")
    parser.add_argument("--json", action="store_true", help="print it as JSON, for programs")
    options = parse(parser, arguments)
    now = status(Study(SweepDirectory(options.sweep_dir)))
    if options.json:
        print(json.dumps(dataclasses.asdict(now), indent=2))
    else:
        _print(now)
    return 0


def _stop(arguments: Sequence[str]) -> int:
    options = parse(_parser_of_one("stop"), arguments)
    SweepDirectory(options.sweep_dir).required().stop()
    _say(f"the workers of {options.sweep_dir} save their trials and end; ftlab sweep resume goes on")
    return 0


def _best(arguments: Sequence[str]) -> int:
    parser = _parser_of_one("best")
    parser.add_argument(
        "--plots", action="store_true", help="draw importance.png and parallel.png, and write trials.html, too"
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON, for programs")
    options = parse(parser, arguments)
    study = Study(SweepDirectory(options.sweep_dir))
    best = write_best(study)
    now = status(study)
    assert now.best is not None
    said = {
        "run": str(study.directory.run(now.best["run"]).directory),
        "metric": now.metric,
        "value": best.value,
        "parameters": now.best["parameters"],
        "config": str(study.directory.best),
    }
    if not options.json:
        print(f"{said['run']}: {now.metric} {best.value:.6g}")
        for name, value in now.best["parameters"].items():
            print(f"  {name} {value}")
        print(study.directory.best)
    if options.plots:
        from ftlab.sweeps.plots import importances, write_plots

        plots, shares = write_plots(study), importances(study)
        said |= {"plots": list(map(str, plots)), "importances": shares}
        if not options.json:
            for path in plots:
                print(path)
            for name, share in shares.items():
                print(f"  {name}: {share:.0%} of what the trials differ in")
    if options.json:
        print(json.dumps(said, indent=2))
    return 0


def _work(arguments: Sequence[str]) -> int:
    parser = _parser_of_one("work")
    parser.add_argument(
        "--wait",
        type=bool,
        default=True,
        help="stay while others work, to take up the trial of one that is killed",
    )
    options = parse(parser, arguments)
    work(SweepDirectory(options.sweep_dir).required(), options.wait)
    return 0


_DOES: dict[str, Callable[[Sequence[str]], int]] = {
    "run": _run,
    "status": _status,
    "resume": _resume,
    "stop": _stop,
    "best": _best,
    "retry-failed": _retry_failed,
    "work": _work,
}


def _parser(word: str) -> ArgumentParser:
    return own_parser(f"sweep {word}", f"{_WORDS[word].capitalize()}.")


def _parser_of_one(word: str) -> ArgumentParser:
    parser = _parser(word)
    parser.add_argument("sweep_dir", type=Path, help="directory of the sweep: runs/<its name>")
    return parser


def _add_launch_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--on", type=str, default="local", help="where workers run: local, slurm, or slurm:PROFILE of slurm/profiles/"
    )
    parser.add_argument("--workers", type=int, default=1, help="trials at a time")
    for option, kind, does in (
        ("max-trials", int, "trials in all"),
        ("hours", float, "hours from now, after which trials are saved and nothing more is trained"),
        ("gpu-hours", float, "hours times devices, likewise"),
        ("target", float, "value of the metric that is good enough"),
    ):
        parser.add_argument(f"--{option.replace('-', '_')}", f"--{option}", type=kind | None, help=does)


def _budgets(options: Namespace) -> dict[str, float]:
    """What the command says of when to stop, once what it says of the launch makes sense."""
    _profile(options.on)
    if options.workers < 1:
        raise UserError(f"--workers is {options.workers}: give a number from 1 on")
    said = {
        "run_cap": options.max_trials,
        "hours": options.hours,
        "gpu_hours": options.gpu_hours,
        "target": options.target,
    }
    return checked_budgets({key: value for key, value in said.items() if value is not None})


def _launcher(on: str) -> Launcher:
    profile = _profile(on)
    if profile is None:
        return local
    from ftlab.sweeps.slurm import OnSlurm  # what fills in job scripts, which status need not wait for

    return OnSlurm(profile)


def _profile(on: str) -> str | None:
    """Of SLURM, that workers run by; None where they run on this machine."""
    kind, colon, profile = on.partition(":")
    if on == "local":
        return None
    if kind == "slurm" and bool(profile) == bool(colon):
        return profile or "default"
    raise UserError(f"--on is {on!r}: it must be local, slurm, or slurm: and the name of a profile")


def _launch(directory: SweepDirectory, options: Namespace, budgets: dict[str, float]) -> int:
    """Has the trials run; returns 1 where one has failed, and says which."""
    directory.begin(budgets)
    study = Study(directory)
    _say(f"sweep {directory.path}: ftlab sweep status {directory.path} says where it stands")
    watch = _Watch(study)
    watch()
    if not status(study).over:
        _launcher(options.on)(directory, options.workers, watch)
    watch()
    now = status(study)
    _print(now)
    return 1 if now.failed else 0


class _Watch:
    """Says of every trial that has ended how far the sweep is."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._ended = 0

    def __call__(self) -> None:
        now = status(self._study)
        if now.ended == self._ended:
            return
        self._ended = now.ended
        of = f" of {now.trials}" if now.trials else ""
        best = f"; best {now.metric} {now.best['value']:.6g} by {now.best['run']}" if now.best else ""
        failed = f", {now.states['failed']} failed" if now.failed else ""
        _say(f"{now.ended}{of} trials ended{failed}{best}")


def _print(now: Status) -> None:
    console = new_console()
    of = f" of {now.trials}" if now.trials else ""
    states = ", ".join(f"{count} {state}" for state, count in now.states.items() if count)
    console.print(Text(f"{now.sweep}: {states or 'nothing begun'}{of}"), soft_wrap=True)
    if now.best:
        console.print(Text(f"best {now.metric} {now.best['value']:.6g}: {_told(now.best)}"), soft_wrap=True)
    if now.spent:
        console.print(Text(f"nothing more is trained: {now.spent}"), soft_wrap=True)
    if now.running:
        rows = [[_number(r), r["run"], _or_dash(r["step"]), _or_dash(r["value"]), _values(r)] for r in now.running]
        console.print(_table(["running", "run", "step", now.metric, "parameters"], rows))
    if now.failed:
        rows = [[_number(f), f["run"], f["error"], _values(f)] for f in now.failed]
        console.print(_table(["failed", "run", "its last line", "parameters"], rows))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _number(trial: dict[str, Any]) -> str:
    return str(trial["number"])


def _told(trial: dict[str, Any]) -> str:
    return f"{trial['run']}, {_values(trial)}"


def _values(trial: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in trial["parameters"].items())


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else _short(value)


def _say(sentence: str) -> None:
    print(f"ftlab: {sentence}", file=sys.stderr, flush=True)
