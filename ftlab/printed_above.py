"""What is printed on standard error while a bar is drawn there: whole lines, as they are, above the bar."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text


@contextmanager
def printed_above(console: Console) -> Iterator[None]:
    """Has lines for standard error go by way of the console that draws the bar, those of logging, too.

    rich's own way breaks lines at the terminal's width, paths in their middle, and leaves out whoever holds the stream.
    """
    stream = sys.stderr
    above: Any = _Above(stream, console)
    handlers = [handler for handler in _handlers() if handler.stream is stream]
    try:
        for handler in handlers:
            handler.setStream(above)
        with redirect_stderr(above):
            yield
    finally:
        for handler in handlers:
            handler.setStream(stream)
        above.end()


def _handlers() -> Iterator[logging.StreamHandler[Any]]:
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            # logging's own, of last resort, holds none, and asks for standard error each time
            if isinstance(handler, logging.StreamHandler) and "stream" in vars(handler):
                yield handler


class _Above:
    """Takes the place of a stream."""

    def __init__(self, stream: TextIO, console: Console) -> None:
        self._stream, self._console = stream, console
        self._begun = ""
        self._process = os.getpid()

    def write(self, text: str) -> int:
        if os.getpid() != self._process:  # a worker that was forked meanwhile draws no bar
            return self._stream.write(text)
        *lines, self._begun = (self._begun + text).split("\n")
        if lines:
            self._console.print(Text.from_ansi("\n".join(lines)), soft_wrap=True)
        return len(text)

    def end(self) -> None:
        """What was no whole line."""
        self._stream.write(self._begun)
        self._begun = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
