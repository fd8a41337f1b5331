"""Prepares every set of experiments/data that is at hand, twice, and prints the tables of docs/results/data.md.

    python scripts/prepare_all.py DATA TOKENIZER NETWORK

DATA holds the sets, each where SETS says. TOKENIZER has a chat template; NETWORK has none and a context of 512 tokens.
Every preparation is a process of its own; the cache is one that is made for this and removed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ftlab.data.records import SPLITS

TOP = Path(__file__).resolve().parent.parent
SETS = {
    "e2e": "e2e",
    "dialogsum": "dialogsum",
    "gsm8k": "gsm8k",
    "scitldr": "scitldr",
    "t0_mix": "t0_mix",
    "tinyshakespeare": "tinyshakespeare",
    "alpaca": "instruct_demo/alpaca_en_demo.json",
    "dpo": "instruct_demo/dpo_en_demo.json",
    "kto": "instruct_demo/kto_en_demo.json",
    "toolcalls": "instruct_demo/glaive_toolcall_en_demo.json",
    "identity": "instruct_demo/identity.json",
}
PLAIN = {"e2e", "tinyshakespeare"}
HEADERS = (
    "set|read|left out, by rule|evaluation records found in training|train|validation|test",
    "set|tokens|learned|median|p95|longest|rows cut|pad|bucket|pack|first start, s|second, s",
)


def main() -> None:
    """Prepares each set, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "tokenizer", "network"):
        parser.add_argument(name, type=Path)
    places = parser.parse_args()
    cards = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, path in SETS.items():
            network = places.network if name in PLAIN else places.tokenizer
            cards[name] = [_card(name, places.data / path, network, Path(scratch)) for _ in range(2)]
    for header, cells in zip(HEADERS, (_records, _tokens), strict=True):
        columns = header.split("|")
        print(f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}")
        for name, pair in cards.items():
            print(f"| {name} | {' | '.join(cells(*pair))} |")
        print()


def _card(name: str, path: Path, network: Path, scratch: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "ftlab", "prepare", "-c", TOP / "experiments" / "data" / f"{name}.yaml"]
    command += ["--data.path", path, "--model.network.path", network, "--out", scratch / name]
    environment = os.environ | {"FTLAB_CACHE": str(scratch / "cache")}
    subprocess.run(list(map(str, command)), check=True, env=environment, stdout=subprocess.DEVNULL)
    return json.loads((scratch / name / "data_card.json").read_text(encoding="utf-8"))


def _records(first: dict[str, Any], _: dict[str, Any]) -> list[str]:
    dropped = [f"{rule} {count:,}" for rule, count in first["dropped"].items()]
    leaks = [f"{kind} {count:,}" for kind, count in first["leaks"]["counts"].items() if count]
    evaluated = sum(first["leaks"]["evaluated"].values())
    rows = [f"{first['splits'][split]['rows']:,}" if split in first["splits"] else "" for split in SPLITS]
    return [f"{first['read']:,}", ", ".join(dropped) or "0", f"{', '.join(leaks) or 0} of {evaluated:,}", *rows]


def _tokens(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    splits = first["splits"].values()
    tokens, learned = (sum(sizes[name] for sizes in splits) for name in ("tokens", "supervised_tokens"))
    lengths = first["splits"]["train"]["length_percentiles"]
    return [
        f"{tokens:,}",
        f"{learned / tokens:.1%}",
        *(f"{lengths[p]:,}" for p in ("50", "95", "100")),
        f"{first['truncated']:,}",
        *(f"{first['padding_waste'][kind]:.1%}" for kind in ("pad", "bucket", "pack")),
        f"{first['seconds']}",
        f"{second['seconds']}",
    ]


if __name__ == "__main__":
    main()
