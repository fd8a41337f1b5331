"""The tables of docs/how-to/migrate.md, from what `ftlab import-config` knows of each tool.

python scripts/migration_tables.py    # writes them anew between their marks
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ftlab.cli.importing.foreign import NAMES, NO_COUNTERPART, Tool, tool

PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "migrate.md"
HEADS = {"hand": "By hand", "ours": "As it is in any case", "none": "Without a counterpart"}


def table(of: Tool) -> str:
    """What becomes of a tool's keys: those that map, then the others by reason, as Markdown."""
    rows = ["| key | in ftlab |", "|---|---|", *(f"| `{key}` | {text} |" for key, text in sorted(of.maps.items()))]
    return "\n".join([f"Keys of {', '.join(of.packages)}.", "", *rows, "", *_others(of)])


def _others(of: Tool) -> Iterator[str]:
    """The reasons, each with its keys; those that nothing is said of come last, as a number."""
    for kind, head in HEADS.items():
        found: dict[str, list[str]] = {}
        for key in sorted(set(of.keys) - set(of.maps) - set(of.old)):
            its_kind, why = of.reason(key)
            if its_kind == kind:
                found.setdefault(why, []).append(f"`{key}`")
        for why, keys in sorted(found.items()):
            if why == NO_COUNTERPART:
                yield f"- {head}: the other {len(keys)} keys."
            else:
                yield f"- {head}: {why}: {', '.join(keys)}."


def written(page: str) -> str:
    """The page with its tables as they should be."""
    for name in NAMES:
        marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = f"{re.escape(marks[0])}.*?{re.escape(marks[1])}"
        text = f"{marks[0]}\n{table(tool(name))}\n{marks[1]}"
        page, count = re.subn(pattern, lambda _, text=text: text, page, flags=re.DOTALL)  # type: ignore[misc]
        assert count == 1, f"{PAGE} has no place for {name}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
