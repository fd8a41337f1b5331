"""Who works on a trial: a lock that dies with its owner, and a heartbeat for machines that do not see each other's."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
from pathlib import Path

SILENCE = 120.0
"""Seconds without a heartbeat after which a worker on another machine is taken for dead."""


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
