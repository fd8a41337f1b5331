"""What the benchmarks share: how figures are told, and data that is trained as it stands."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, smallest, largest."""
    return statistics.median(values), min(values), max(values)


def as_it_stands(file: Path) -> dict[str, Any]:
    """Options of `data` under which nothing of a JSONL file is split off, compared or put into a template.

    Args:
        file: With prompt and completion, or with dialogue and summary.
    """
    with file.open(encoding="utf-8") as lines:
        first = json.loads(lines.readline())
    return {
        "path": str(file),
        "template": "plain",
        "splits": {"validation": 0.0, "test": 0.0},
        "duplicates": {"exact": False},
        **({} if "completion" in first else {"prompt": "{dialogue}\n", "response": "{summary}"}),
    }


def data_module(file: Path, tokenizer: str, **options: Any) -> Any:
    """FinetuneData over `file` as it stands, with the tokenizer in the directory `tokenizer`."""
    from ftlab.data import FinetuneData
    from ftlab.data.assignment import Splits
    from ftlab.data.duplicates import Duplicates
    from ftlab.networks import Network

    plain = as_it_stands(file)
    plain |= {"splits": Splits(**plain["splits"]), "duplicates": Duplicates(**plain["duplicates"])}
    return FinetuneData(Network(tokenizer), **plain, **options)
