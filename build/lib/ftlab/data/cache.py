"""Prepared data on disk under a key of everything that decides it: built once, by one process, whole or not at all.

Whoever comes while another builds waits for it. A build that was killed leaves a directory of its own, which the next
builder removes. What is there is believed only if its files have the sizes and digests that were noted last: it is
read once for that, at about a gigabyte a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from ftlab.errors import UserError

_SEAL = "sealed.json"


def key_of(parts: Any) -> str:
    """A name for what `parts` (plain data) describe, 24 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def built(root: Path, key: str, build: Callable[[Path], None]) -> Path:
    """The directory `root / key`, made by `build` where it is not there whole.

    Args:
        root: Directory of the cache.
        key: Name of what is built.
        build: Fills an empty directory; whatever it raises leaves nothing behind.

    Raises:
        UserError: The cache cannot be written.
    """
    place = root / key
    if place.is_dir():
        damaged = _damaged(place)
        if damaged is None:
            return place
        print(f"ftlab: data.cache: {damaged} is damaged, and the data is prepared anew", file=sys.stderr)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{key}.lock"):
            if not place.is_dir() or _damaged(place):  # else another process has built it meanwhile
                _build(place, build)
    except OSError as error:
        # Arrow's own words are longer
        said = os.strerror(error.errno) if error.errno else str(error).strip().split("\n")[0]
        raise UserError(
            f"data.cache: prepared data cannot be kept in {root} ({said}); make room there or mend its rights, or set "
            "data.cache or FTLAB_CACHE to another directory"
        ) from error
    return place


def _build(place: Path, build: Callable[[Path], None]) -> None:
    unfinished = place.with_name(f"{place.name}.unfinished")
    for torn in (unfinished, place):
        shutil.rmtree(torn, ignore_errors=True)
    unfinished.mkdir()
    try:
        build(unfinished)
        _seal(unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    unfinished.replace(place)


def _seal(directory: Path) -> None:
    """Notes sizes and digests of all files, after they have reached the disk."""
    seals = {}
    for file in sorted(directory.iterdir()):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        seals[file.name] = [file.stat().st_size, _digest(file)]
    (directory / _SEAL).write_text(json.dumps(seals), encoding="utf-8")


def _damaged(directory: Path) -> Path | None:
    """The first file that is not as it was written."""
    try:
        seals = json.loads((directory / _SEAL).read_text(encoding="utf-8"))
        files = {directory / name: (size, digest) for name, (size, digest) in seals.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return directory / _SEAL
    for file, (size, digest) in files.items():
        if not file.is_file() or file.stat().st_size != size or _digest(file) != digest:
            return file
    return None if files else directory / _SEAL


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
