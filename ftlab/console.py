"""What tables are printed on: with NO_COLOR it knows no codes at all, where rich leaves out colours alone."""

from __future__ import annotations

import os
from typing import IO, Literal

from rich.console import Console


def colors() -> Literal["auto"] | None:
    """How a console of rich finds out which colours there are; None where the user wants none (https://no-color.org)."""
    return None if os.environ.get("NO_COLOR") else "auto"


def draws_bars(file: IO[str]) -> bool:
    """Whether it is a terminal on which a line can be drawn anew: with TERM=dumb it is none."""
    return file.isatty() and new_console(file).is_interactive


def new_console(file: IO[str] | None = None, width: int | None = None) -> Console:
    """A console.

    Args:
        file: Where it prints; by default standard output.
        width: In columns; by default the terminal's.
    """
    return Console(file=file, width=width, color_system=colors())


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
