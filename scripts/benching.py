"""What the benchmarks share: how figures are told, and data that is trained as it stands."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[1]
ASSETS = TOP / "ftlab" / "assets"
SURE = 0.93
"""How often an interval around a median is to hold the true one: as often as five turns allow."""


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, smallest, largest."""
    return statistics.median(values), min(values), max(values)


def interval(values: list[float]) -> tuple[float, float] | None:
    """Bounds that hold the median of what was drawn in `SURE` of all cases, whatever its distribution (the sign test's:
    order statistics); None of fewer than five values, which cannot tell."""
    count = len(values)
    within = [k for k in range(1, count // 2 + 1) if 1 - 2 * _at_most(k - 1, count) >= SURE]
    if not within:
        return None
    ordered, k = sorted(values), max(within)
    return ordered[k - 1], ordered[-k]


def _at_most(successes: int, tosses: int) -> float:
    return sum(math.comb(tosses, k) for k in range(successes + 1)) / 2**tosses


def said(value: tuple[float, float, float], digits: int) -> str:
    """Median (smallest to largest)."""
    middle, least, most = (f"{number:,.{digits}f}" for number in value)
    return middle if least == most else f"{middle} ({least} to {most})"


def machine() -> dict[str, Any]:
    """What figures depend on beside the code: processor, cores and threads, system, versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {}
    for name in ("torch", "lightning", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers", "ftlab"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # ftlab itself may run from its sources
            continue
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": os.environ.get("OMP_NUM_THREADS", "as many as cores"),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": versions,
    }


def commit() -> str:
    """Of this checkout, with + where what is measured differs from it; figures that are written do not count."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(TOP), *words], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "ftlab", "scripts", "experiments")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


QUESTIONS = {"completion": (None, None), "dialogue": ("{dialogue}\n", "{summary}"), "mr": ("{mr}\n", "{ref}")}
"""By a column: how its record is asked and answered, where not by prompt and completion."""


def as_it_stands(file: Path) -> dict[str, Any]:
    """Options of `data` under which nothing of a JSONL file is split off, compared or put into a template.

    Args:
        file: With prompt and completion, with dialogue and summary, or with mr and ref.
    """
    with file.open(encoding="utf-8") as lines:
        first = json.loads(lines.readline())
    prompt, response = next(both for column, both in QUESTIONS.items() if column in first)
    return {
        "path": str(file),
        "template": "plain",
        "splits": {"validation": 0.0, "test": 0.0},
        "duplicates": {"exact": False},
        **({"prompt": prompt, "response": response} if prompt else {}),
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
