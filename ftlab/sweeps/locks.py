"""Who may write or work: locks that die with their owner, on one machine or between machines that share the files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import time
from pathlib import Path

from filelock import FileLock
from optuna.storages.journal._file import BaseJournalFileLock

GRACE = 30.0
"""Seconds after which a lock on the study that another machine holds, and does not renew, is taken for dead."""
SILENCE = 120.0
"""Seconds without a heartbeat after which a worker on another machine is taken for dead."""


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


class Lease:
    """The right to work on one run, and the sign that somebody does.

    Args:
        path: Its file, which is there as long as somebody works.
    """

    def __init__(self, path: Path, descriptor: int, unpaid: float) -> None:
        self.path = path
        self.unpaid = unpaid
        """Seconds for which an owner worked that was killed before it could say so."""
        self.descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> Lease | None:
        """The lease, or None where another process has it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = path.stat().st_ino == os.fstat(descriptor).st_ino
        except (BlockingIOError, FileNotFoundError):
            there = False
        if not there:  # held, or given back between the two lines
            os.close(descriptor)
            return None
        owner, last = _read(descriptor), os.fstat(descriptor).st_mtime
        if owner and owner["host"] != socket.gethostname() and _now(path.parent) - last < SILENCE:
            os.close(descriptor)
            return None
        unpaid = max(0.0, last - owner["since"]) if owner else 0.0
        text = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": _now(path.parent)})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        return cls(path, descriptor, unpaid)

    def beat(self) -> None:
        """Says that the owner is alive."""
        os.utime(self.descriptor)

    def give_back(self) -> None:
        """Lets others take it."""
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def working(path: Path) -> bool:
    """Whether somebody works under the lease at `path`: told without taking it."""
    try:
        owner, last = json.loads(path.read_text(encoding="utf-8")), path.stat().st_mtime
    except (FileNotFoundError, ValueError):
        return False
    if owner["host"] != socket.gethostname():
        return _now(path.parent) - last < SILENCE
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _read(descriptor: int) -> dict:
    try:
        return json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # new, or its owner was killed before it wrote
        return {}


def _now(directory: Path) -> float:
    """The time by the clock that stamps files there: machines' own clocks differ."""
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".clock") as file:
        return os.fstat(file.fileno()).st_mtime
