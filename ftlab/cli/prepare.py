"""`ftlab prepare`: the data of an experiment alone, prepared, counted and shown; a run then finds it in the cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console

from ftlab.cli import VERBS
from ftlab.cli.compose import config_files, expand
from ftlab.cli.sentences import own_parser, parse
from ftlab.data import FinetuneData
from ftlab.reports.data_card import data_card, histogram, markdown, shown, tables


def run(verb: str, arguments: Sequence[str]) -> int:
    """Prepares, prints the tables, and writes data_card.md, data_card.json, lengths.png and dropped.jsonl."""
    options = parse(_parser(verb), list(_of_data(expand(arguments))))
    data: FinetuneData = options.data
    card = data_card(data)
    files = config_files(arguments)
    out = options.out or Path("prepared") / (files[-1].stem if files else "data")
    out.mkdir(parents=True, exist_ok=True)
    (out / "data_card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "data_card.md").write_text(markdown(card), encoding="utf-8")
    histogram(data, out / "lengths.png")
    for name in ("dropped.jsonl", "leaks.jsonl"):
        (out / name).unlink(missing_ok=True)
        if (data.prepared.directory / name).is_file():
            shutil.copy(data.prepared.directory / name, out / name)
    console = Console()
    for table in tables(card):
        console.print(table)
    if "layout" in card:
        console.print(f"batches: {card['layout']['kind']}: {card['layout']['why']}", highlight=False)
    for row in shown(data, options.show):
        console.print(row)
    console.print(f"{out}: data_card.md, data_card.json, lengths.png, dropped.jsonl", highlight=False)
    return 0


def _parser(verb: str) -> ArgumentParser:
    parser = own_parser(verb, VERBS[verb])
    parser.add_argument("--config", "-c", action="config", help="an experiment; of it the data and the network count")
    parser.add_argument("--seed_everything", type=int, default=42, help="chooses the order of training records")
    parser.add_argument("--show", type=int, default=0, help="training rows to print as the network sees them")
    parser.add_argument("--out", type=Path | None, help="directory to write; prepared/EXPERIMENT by default")
    parser.add_class_arguments(FinetuneData, "data")
    parser.link_arguments("seed_everything", "data.seed")
    return parser


def _of_data(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments of an experiment without what is not about its data; model.network is data.network here."""
    take = False
    for argument in arguments:
        if take:
            yield yaml.safe_dump(_data_of(yaml.safe_load(argument)), sort_keys=False)
        else:
            yield argument.replace("--model.network.", "--data.network.", 1)
        take = argument == "--config"


def _data_of(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key in ("data", "seed_everything")}
    network = (config.get("model") or {}).get("network")
    if network:
        kept["data"] = {**(kept.get("data") or {}), "network": network}
    return kept
