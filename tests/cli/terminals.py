"""A terminal that a test reads: what a person would have seen, with the codes that move the cursor and colour."""

from __future__ import annotations

import os
import pty
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Both ends of a pseudo-terminal; `file` is the one to print to."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.file = os.fdopen(slave, "w")
        self._seen: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                some = os.read(self._master, 65536)
            except OSError:  # Linux: nobody has the other end open
                return
            if not some:
                return
            self._seen.append(some)

    def read(self) -> str:
        """All that was printed, once nothing more is."""
        if not self.file.closed:
            self.file.close()
            self._reader.join()
            os.close(self._master)
        return b"".join(self._seen).decode()


@contextmanager
def opened() -> Iterator[Terminal]:
    """A terminal that is closed at the end."""
    terminal = Terminal()
    try:
        yield terminal
    finally:
        terminal.read()


def without_codes(text: str) -> str:
    """The text alone."""
    return _CODE.sub("", text)
