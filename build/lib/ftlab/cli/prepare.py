"""`ftlab prepare`: the data of an experiment alone, prepared, counted and shown; a run then finds it in the cache."""

from __future__ import annotations

import difflib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from ftlab.cli import VERBS
from ftlab.cli.compose import as_text, config_files, expand, experiment_name
from ftlab.cli.sentences import own_parser, parse
from ftlab.console import new_console
from ftlab.data import FinetuneData
from ftlab.errors import UserError
from ftlab.reports.data_card import data_card, histogram, markdown, shown, tables

_OF_EXPERIMENTS = ("seed_everything", "trainer", "model", "data", "run", "wandb")
_FILES = ("data_card.md", "data_card.json", "lengths.png", "dropped.jsonl", "leaks.jsonl")
_DESCRIPTION = f"""{VERBS["prepare"]}.

Prints tables, and writes into --out: data_card.md and data_card.json (the same figures), lengths.png (a histogram),
dropped.jsonl (each record that was left out, and its rule) and leaks.jsonl (evaluation records found in training).
A file of experiments/data is enough with --data.path and --model.network.path; of a whole experiment its data, network
and seed count."""


def run(verb: str, arguments: Sequence[str]) -> int:
    """Prepares, prints the tables, and writes what the help says."""
    options = parse(_parser(verb), list(_of_data(expand(arguments))))
    if options.show < 0:
        raise UserError(f"show is {options.show}; give the number of rows to print, from 0 on")
    data: FinetuneData = options.data
    card = data_card(data)
    out = options.out or Path("prepared") / experiment_name(config_files(arguments), "data")
    written = _write(data, card, out)
    if options.json:
        print(json.dumps(card, indent=2, ensure_ascii=False))
        return 0
    console = new_console()
    for table in tables(card):
        console.print(table)
    if "layout" in card:
        console.print(f"batches: {card['layout']['kind']}: {card['layout']['why']}", highlight=False, markup=False)
    if data.streaming:
        print("data.streaming: training rows are prepared while training runs; what judges was prepared here")
    for row in shown(data, options.show):
        console.print(row)
    print(f"prepared in {card['seconds']} s; {out}: {', '.join(written)}")
    return 0


def _write(data: FinetuneData, card: dict[str, Any], out: Path) -> list[str]:
    """Writes the card, the histogram and the lists of records, all or none of them; returns the files' names.

    Raises:
        UserError: `out` cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            if (out / name).is_dir():
                raise IsADirectoryError(None, f"{name} is a directory")
        # in `out`, which alone may be writable, or a file system of its own
        with tempfile.TemporaryDirectory(prefix=".", dir=out, ignore_cleanup_errors=True) as partial:
            written = _write_files(data, card, Path(partial))
            for name in _FILES:
                if name in written:
                    (Path(partial) / name).replace(out / name)
                else:
                    (out / name).unlink(missing_ok=True)  # of an earlier preparation
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"out: {out} cannot be written to ({reason}); mend that, or name another directory") from error
    return written


def _write_files(data: FinetuneData, card: dict[str, Any], directory: Path) -> list[str]:
    (directory / "data_card.md").write_text(markdown(card), encoding="utf-8")
    (directory / "data_card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if card["splits"]:
        histogram(data, directory / "lengths.png")
    for name in ("dropped.jsonl", "leaks.jsonl"):
        if (data.prepared.directory / name).is_file():
            shutil.copy(data.prepared.directory / name, directory / name)
    return [name for name in _FILES if (directory / name).is_file()]


def _parser(verb: str) -> ArgumentParser:
    parser = own_parser(verb, _DESCRIPTION)
    parser.add_argument("--config", "-c", action="config", help="an experiment, or a file of experiments/data")
    parser.add_argument("--seed_everything", type=int, default=42, help="chooses the order of training records")
    parser.add_argument("--show", type=int, default=0, help="training rows to print, what is learned in ⟦brackets⟧")
    parser.add_argument("--json", action="store_true", help="print the data card as JSON, for programs, and no tables")
    parser.add_argument("--out", type=Path | None, help="directory to write; prepared/EXPERIMENT by default")
    parser.add_class_arguments(FinetuneData, "data")
    parser.link_arguments("seed_everything", "data.seed")
    return parser


def _of_data(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments of an experiment without what is not about its data; model.network is data.network here."""
    take = False
    for argument in arguments:
        if take:
            yield as_text(_data_of(yaml.safe_load(argument)))
        else:
            yield argument.replace("--model.network.", "--data.network.", 1)
        take = argument == "--config"


def _data_of(config: dict[str, Any]) -> dict[str, Any]:
    """What a file says of data, network and seed.

    Raises:
        UserError: A key is none of an experiment's; what is not about data is not looked into.
    """
    for key in config:
        if key not in _OF_EXPERIMENTS:
            near = difflib.get_close_matches(str(key), _OF_EXPERIMENTS, n=1)
            rest = f"did you mean {near[0]}?" if near else f"there are {', '.join(_OF_EXPERIMENTS)}"
            raise UserError(f"there is no key {key}: {rest}")
    kept = {key: value for key, value in config.items() if key in ("data", "seed_everything")}
    model = config.get("model")
    for key, value in model.items() if isinstance(model, dict) else ():
        if key == "network":
            kept["data"] = {**(kept.get("data") or {}), "network": value}
        elif difflib.get_close_matches(str(key), ["network"], cutoff=0.75):
            raise UserError(f"there is no key model.{key}: did you mean model.network?")
    return kept
