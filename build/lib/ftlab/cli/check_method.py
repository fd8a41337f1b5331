"""`ftlab check-method my.py:MyMethod`: whether a method keeps what ftlab relies on, check by check."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Sequence
from typing import Literal

import transformers
from jsonargparse import ArgumentParser
from rich.table import Table
from rich.text import Text

from ftlab.cli import VERBS
from ftlab.cli.sentences import own_parser, parse
from ftlab.console import new_console
from ftlab.errors import UserError
from ftlab.methods import Method
from ftlab.methods.lookup import method_class
from ftlab.networks import Network
from ftlab.testing import Report, examine

Base = Literal["full", "nf4", "fp4", "int8"]

_COLOURS = {"passed": "green", "failed": "bold red", "refused": "yellow", "not tried": "dim"}


def run(verb: str, arguments: Sequence[str]) -> int:
    """Prints a line for every check and returns 1 where one failed."""
    transformers.utils.logging.disable_progress_bar()
    target = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if target is None and not {"-h", "--help"} & set(arguments):
        raise UserError("which method? give it first, as in ftlab check-method my.py:MyMethod --method.r 4")
    options = parse(_parser(verb, method_class(target) if target else None), arguments)
    report = examine(
        options.method,
        options.network,
        bases=options.bases,
        steps=options.steps,
        parameters=options.parameters,
        processes=options.processes,
    )
    if options.json:
        outcomes = [dataclasses.asdict(outcome) for outcome in report.outcomes]
        print(json.dumps({"method": report.method, "outcomes": outcomes}, indent=2, ensure_ascii=False))
    else:
        _print(report)
    return 1 if report.failures else 0


def _parser(verb: str, method: type[Method] | None) -> ArgumentParser:
    said = f"ftlab {verb} my.py:MyMethod --help also shows the method's options."
    if method:
        said = (inspect.getdoc(method) or "").split("\n\nArgs:")[0]  # which stand among the options
    parser = own_parser(verb, f"{VERBS[verb]}.\n\n{said}")
    parser.add_argument("target", type=str, help="my.py:MyMethod, a dotted path, or a short name")
    if method:
        parser.add_class_arguments(method, "method")
    parser.add_argument("--network", type=Network | None, help="a small one to try it on; by default what ships")
    parser.add_argument("--bases", type=list[Base] | None, help="by default all that the method declares")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of a training")
    parser.add_argument("--parameters", type=int | None, help="how many parameters it should train")
    parser.add_argument(
        "--processes", type=bool, default=False, help="also load in a fresh process, and train on two devices"
    )
    parser.add_argument("--json", action="store_true", help="print every outcome as JSON, for programs")
    return parser


def _print(report: Report) -> None:
    table = Table("check", "base", "", box=None, pad_edge=False)
    table.add_column(overflow="fold")  # a tensor's name must not be cut
    for outcome in report.outcomes:
        status = Text(outcome.status, style=_COLOURS[outcome.status])
        table.add_row(outcome.check, outcome.base, status, Text(outcome.remark))
    new_console().print(table)
    counts = {status: sum(o.status == status for o in report.outcomes) for status in _COLOURS}
    print(f"{report.method}: {', '.join(f'{number} {status}' for status, number in counts.items() if number)}")
