"""`ftlab compare RUN …`: methods side by side, with what may be said of their differences and what they cost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich import box
from rich.table import Table
from rich.text import Text

from ftlab.cli import VERBS
from ftlab.cli.sentences import own_parser, parse
from ftlab.console import new_console
from ftlab.errors import UserError
from ftlab.evaluation.resampling import CONFIDENCE, RESAMPLES
from ftlab.reports.compare import Comparison, Options, compare, find_runs, unscored
from ftlab.reports.compare.judged import ALLOWED
from ftlab.reports.compare.tables import csv_text, json_text, latex, markdown, sentences, tables
from ftlab.runs.files import write_together

_DESCRIPTION = f"""{VERBS["compare"]}.

Runs that differ in their seeds alone are one method. Each row gives the mean over seeds with a 95 % interval, how much
it is beside the baseline's, and whether that may be chance: docs/how-to/compare.md says how each number is got. Runs
whose data, test records, network or decoding differ are refused."""


_TEXTS: dict[str, Callable[[Comparison], str]] = {
    "markdown": markdown,
    "csv": csv_text,
    "json": json_text,
    "latex": latex,
}


def run(verb: str, arguments: Sequence[str]) -> int:
    """Prints the comparison, and writes it into the files that are named."""
    options = parse(_parser(verb), arguments)
    if unknown := [word for word in options.allow if word not in ALLOWED]:
        raise UserError(f"--allow {unknown[0]}: there are {', '.join(ALLOWED)}")
    asked = Options(
        baseline=options.baseline,
        metric=options.metric,
        price=options.price,
        quality=options.quality,
        tuned=options.tuned,
        allowed=options.allow,
        skip_unscored=options.skip_unscored,
        confidence=options.confidence,
        resamples=options.resamples,
    )
    if options.wandb:
        from ftlab.cli.wandb_comparison import refuse_disabled

        refuse_disabled()
    runs = find_runs(options.runs)
    if options.unscored:
        print("".join(f"{run.run.config}\n" for run in unscored(runs, asked)), end="")
        return 0
    comparison, groups = compare(runs, asked)
    texts = {Path(path): make(comparison) for name, make in _TEXTS.items() if (path := options[name])}
    if options.html:
        from ftlab.reports.compare.page import page  # which draws

        texts[Path(options.html)] = page(comparison, groups)
    printed = None if options.format == "terminal" else _TEXTS[options.format](comparison)
    files = {path: text.encode() for path, text in texts.items()}
    if options.plots:
        from ftlab.reports.compare.plots import drawn  # with matplotlib

        files |= drawn(Path(options.plots), comparison, groups)
    _write(files)
    if options.wandb:
        from ftlab.cli.wandb_comparison import tell_comparison  # which draws, and imports W&B

        tell_comparison(options.wandb, comparison, groups)
    if printed is None:
        _print(comparison)
    else:
        print(printed, end="")
    return 0


def _write(files: Mapping[Path, bytes]) -> None:
    try:
        write_together(files)
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be written ({error.strerror}): give another place, or make room there; nothing "
            "has been written"
        ) from error
    for path in files:
        print(f"ftlab: wrote {path}", file=sys.stderr)


def _parser(verb: str) -> ArgumentParser:
    parser = own_parser(verb, _DESCRIPTION)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN | SWEEP | GLOB",
        help="directories of runs, directories that hold some (an experiment's, a sweep's), or patterns; NAME=… names "
        "the method",
    )
    parser.add_argument("--baseline", help="method to compare with, or a run of it (default: the first)")
    parser.add_argument(
        "--metric", help="of test records, such as rougeL, or with its prefix, such as val_loss (default: rougeL)"
    )
    parser.add_argument("--price", type=float, help="dollars of one device for an hour")
    parser.add_argument(
        "--quality",
        type=float,
        help="validation loss to which the time is taken (default: the least that every run came to)",
    )
    parser.add_argument(
        "--tuned",
        nargs="+",
        default=[],
        metavar="KEY",
        help="of the values of this key that were tried, take each method's best by validation loss",
    )
    parser.add_argument("--allow", nargs="+", default=[], metavar="WHAT", help=f"what may differ: {', '.join(ALLOWED)}")
    parser.add_argument(
        "--skip_unscored",
        "--skip-unscored",
        action="store_true",
        help="leave out runs that have no scores or have not come to their end, and say which",
    )
    parser.add_argument(
        "--unscored", action="store_true", help="print the configurations of runs that still need scores, and no more"
    )
    parser.add_argument("--confidence", type=float, default=CONFIDENCE, help="of intervals")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="how often records are drawn")
    parser.add_argument("--format", choices=["terminal", *_TEXTS], default="terminal", help="what is printed")
    for name in _TEXTS:
        parser.add_argument(f"--{name}", metavar="FILE", help=f"write the comparison as {name}, too")
    parser.add_argument("--plots", metavar="DIR", help="draw figures there, as PDF and PNG")
    parser.add_argument(
        "--html", metavar="FILE", help="write one page with figures and answers, which needs no network"
    )
    parser.add_argument(
        "--wandb", metavar="PROJECT", help="log tables, figures and the page to this project of Weights & Biases"
    )
    return parser


def _print(comparison: Comparison) -> None:
    # a file has no width: 80 would fold numbers
    console = new_console(width=None if sys.stdout.isatty() else 160)
    for each in tables(comparison):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for number, name in enumerate(each.header):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in each.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        console.print()
    for sentence in sentences(comparison):
        console.print(Text(sentence), soft_wrap=True)
