"""The table of every method on every base, in docs/results: how it is written, and read back by a test."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
from dataclasses import dataclass
from datetime import date

IN_PLACE = ("full", "nf4", "fp4", "int8")
CHECKPOINTS = ("torchao", "hqq", "gptq", "awq")
BASES = IN_PLACE + CHECKPOINTS
WORDS = WORKS, FAILS, REFUSED, UNTRIED = "works", "fails", "refused", "not tried"

HEAD = """# Every method on every base

What `experiments/method` holds, tried on the network that ships (`ftlab/assets/network`, 1.0 M parameters) in full
precision, quantised when it is opened (bitsandbytes: nf4, fp4, int8), and as a checkpoint that others have quantised
(torchao: weights of 8 bits; HQQ: of 4 bits). Written by

    python scripts/method_bases.py      # with torchao and hqq installed

{day}; {machine}; {versions}.
Of {pairs} pairs: {count}.

A method *works* on a base where it starts as it declares, gives everything that it trains a gradient, leaves the frozen
base as it is to the byte through three steps of AdamW, answers the same when it is saved and loaded onto a fresh base,
and answers and learns as over the weights that the few bits stand for. Where ftlab has *refused* with one sentence, the
reason is that sentence, or what the refusal saves from. What *fails* is a fault of ours.

"""


@dataclass(frozen=True)
class Finding:
    """What came of one method on one base.

    Args:
        word: WORKS, FAILS, REFUSED or UNTRIED.
        why: The reason for any but the first, without numbers, so that another machine finds the same.
    """

    word: str
    why: str = ""


def table(found: dict[str, dict[str, Finding]]) -> str:
    """Markdown: a row for each method, a column for each base, and the reasons below, each once."""
    reasons = list(dict.fromkeys(f.why for row in found.values() for f in row.values() if f.why))
    lines = ["| method | " + " | ".join(BASES) + " |", "|---" * (len(BASES) + 1) + "|"]
    for name, row in found.items():
        cells = [f.word + (f" ({reasons.index(f.why) + 1})" if f.why else "") for f in row.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{number}. {why}" for number, why in enumerate(reasons, start=1)), ""])


def read_table(text: str) -> dict[str, dict[str, Finding]]:
    """What `table` wrote."""
    lines = text.splitlines()
    numbered = (re.match(r"(\d+)\. (.*)", line) for line in lines)
    reasons = {match[1]: match[2] for match in numbered if match}
    found: dict[str, dict[str, Finding]] = {}
    for line in lines:
        if not line.startswith("| ") or line.startswith("| method "):
            continue
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        parts = [re.fullmatch(r"([a-z ]+?)(?: \((\d+)\))?", cell) for cell in cells]
        findings = [Finding(part[1], reasons[part[2]] if part[2] else "") for part in parts if part]
        found[name] = dict(zip(BASES, findings, strict=True))
    return found


def page(found: dict[str, dict[str, Finding]]) -> str:
    """The table with what it says and where it comes from."""
    packages = ("torch", "transformers", "peft", "bitsandbytes", "torchao", "hqq")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages if installed(name))
    count = {word: sum(f.word == word for row in found.values() for f in row.values()) for word in WORDS}
    return HEAD.format(
        day=f"{date.today():%-d %B %Y}",
        machine=f"{platform.system()} {platform.machine()}, one CPU thread, Python {platform.python_version()}",
        versions=versions,
        pairs=sum(count.values()),
        count=", ".join(f"{word} {number}" for word, number in count.items()),
    ) + table(found)


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None
