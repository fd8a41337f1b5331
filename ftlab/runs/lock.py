"""One process works in a run directory at a time: a lock that dies with its owner."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ftlab.errors import UserError

OWNER = ".owner"
"""Holds who has the lock, in words, while somebody has: process 12 on host."""


def owner_of(directory: Path) -> str | None:
    """Who works in a run directory, as it has said there; None where nobody has, or what is there cannot be read."""
    try:
        return (directory / OWNER).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the lock of a directory, which must be there.

    Raises:
        UserError: Another process holds it.
    """
    lock, owner = FileLock(directory / ".lock"), directory / OWNER
    try:
        lock.acquire(blocking=False)
    except Timeout:
        who = owner_of(directory) or "another process"
        raise UserError(
            f"{directory} is being worked in by {who}: wait for it to end, or give another --run.name"
        ) from None
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):  # of a disk that is read-only by now
            owner.unlink(missing_ok=True)
        lock.release()
