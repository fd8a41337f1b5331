"""What stands on the pages of the documentation: their blocks, and the commands in these."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCED = re.compile(r"^```([\w-]*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^|(?<=\n\n))((?: {4}[^\n]*\n)+)", re.MULTILINE)
_HEREDOC = re.compile(r"<<'(\w+)'\n.*?^\1$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:ftlab|python -m ftlab|torchrun .*? -m ftlab|srun .*? python -m ftlab) +(.*)", re.DOTALL)
_ASSIGNED = re.compile(r"^\w+=\$\((.*)\)$")


@dataclass(frozen=True)
class Block:
    """A block of code: its language, empty where it is indented only, and its text."""

    language: str
    text: str


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in their order, fenced ones first."""
    text = page.read_text(encoding="utf-8")
    fenced = [Block(*found) for found in _FENCED.findall(text)]
    rest = _FENCED.sub("\n", text)
    return [*fenced, *(Block("", textwrap.dedent(found)) for found in _INDENTED.findall(rest))]


def shell(page: Path) -> list[str]:
    """The texts of the blocks that a shell is to read."""
    return [block.text for block in blocks(page) if block.language in ("console", "bash", "sh", "")]


def commands(page: Path) -> list[str]:
    """What follows `ftlab` in every command of a page, lines that go on put together."""
    found = []
    for text in shell(page):
        for line in _HEREDOC.sub("", text).replace("\\\n", " ").splitlines():
            if line.startswith(("ftlab: ", "ftlab/")):
                continue  # what it prints, and a directory
            for part in re.split(r" \| (?:xargs -I \w+ )?| \|\| ", line.split("  #")[0]):
                if command := _COMMAND.fullmatch(_ASSIGNED.sub(r"\1", part.strip())):
                    found.append(command[1].strip())
    return found


def named_files(page: Path) -> dict[str, str]:
    """Files that a page shows: YAML and Python whose first line is a comment with a name."""
    found = {}
    for block in blocks(page):
        first = re.match(r"# ([\w./-]+\.(?:ya?ml|py))$", block.text.split("\n")[0])
        if block.language in ("yaml", "python") and first:
            found[first[1]] = block.text
    return found


NETWORK = ROOT / "ftlab/assets/network"
STANDS_FOR = {
    r"\$NETWORK": str(NETWORK),
    r"\$DATA": "ftlab/assets/data",
    r"\bDIR_OR_HUB_NAME\b": str(NETWORK),
    r"-c …": "-c experiments/demo_lora.yaml",
    r"-c FILE\b": "-c experiments/demo_lora.yaml",
    r"\$run\b": "runs/demo_lora/NAME",
    r"\bSET\b": "demo",
    r"e2e_METHOD\b": "e2e_lora",
    r"\bseedN\b": "seed1",
    r"(?<=seed_everything )N\b": "1",
}
"""What the words that a reader is to replace are replaced by."""


def filled_in(command: str) -> str:
    for word, value in STANDS_FOR.items():
        command = re.sub(word, value, command)
    return command
