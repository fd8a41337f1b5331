"""How far a preparation is, on standard error: a counter on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from ftlab.data.preparation import Part

_QUIET = 60.0  # seconds between lines where there is no terminal


def watched(parts: Iterable[Part], name: str) -> Iterator[Part]:
    """Passes the parts on, and says how many records have been read.

    Args:
        parts: As they are made.
        name: What is prepared.
    """
    console = Console(stderr=True)
    read, said = 0, time.monotonic()
    text = TextColumn("preparing {task.description}: {task.completed:,} records read", markup=False)
    # no thread of its own: workers are forked while it stands
    with Progress(
        text,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not console.is_terminal,
    ) as bar:
        counter = bar.add_task(name, total=None)
        for part in parts:
            read += part.read
            bar.update(counter, completed=read, refresh=True)
            if not console.is_terminal and time.monotonic() - said > _QUIET:
                print(f"ftlab: preparing {name}: {read:,} records read", file=sys.stderr, flush=True)
                said = time.monotonic()
            yield part
