"""The journal of a study: a file that any number of processes write to, on one machine or several, and nothing is lost.

Optuna's, but for two things: the lock dies with its owner, and what is new is read at once, not line by line.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from ftlab.errors import UserError

GRACE = 30.0
"""Seconds after which a lock that another machine holds, and does not give back, is taken for dead."""


class Journal(JournalFileBackend):
    """The file.

    Args:
        path: Where it lies.
        lock: The right to write to it.
    """

    def __init__(self, path: Path, lock: StudyLock) -> None:
        super().__init__(str(path), lock_obj=lock)
        self._path = path
        self._end = {0: 0}
        """Where in the file the log of a number begins: of the first, and of the next to be read."""

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """All whole lines from the one of this number on."""
        known = log_number_from if log_number_from in self._end else 0
        with self._path.open("rb") as file:
            file.seek(self._end[known])
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        lines = content.splitlines()
        try:
            logs = json.loads(b"[" + b",".join(lines) + b"]")
        except ValueError as error:
            raise UserError(
                f"{self._path} is damaged ({error}): put it back as it was, or begin anew with another --name"
            ) from error
        self._end = {0: 0, known + len(lines): self._end[known] + len(content)}
        yield from logs[log_number_from - known :]


class StudyLock(BaseJournalFileLock):
    """The right to write to the study's journal; may be taken again by who has it.

    A lock of the kernel keeps processes of one machine apart, and is gone with a killed one at once; a link beside it
    keeps machines apart whose file system does not pass such locks on. Where a killed process has left half a line,
    that is cut off before anybody writes after it: nobody was told that it was written.

    Args:
        journal: The file.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._here = FileLock(f"{journal}.lock")
        self._link = Path(f"{journal}.held")
        self._depth = 0

    def acquire(self) -> bool:
        self._here.acquire()
        try:
            if not self._depth:
                self._hold_link()
                _cut_torn_line(self._journal)
        except BaseException:
            self._here.release()
            raise
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._link.unlink(missing_ok=True)
        self._here.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _hold_link(self) -> None:
        me = f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}"
        owner, since = "", time.monotonic()
        while True:
            with contextlib.suppress(FileExistsError):
                os.symlink(me, self._link)
                return
            try:
                now = os.readlink(self._link)
            except FileNotFoundError:
                continue
            if now != owner:
                owner, since = now, time.monotonic()
            # one of this machine cannot be alive: it would have the kernel's lock
            if owner.partition(":")[0] == socket.gethostname() or time.monotonic() - since > GRACE:
                self._link.unlink(missing_ok=True)
                continue
            time.sleep(0.02)


def _cut_torn_line(journal: Path) -> None:
    if not journal.is_file():
        return
    with journal.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
