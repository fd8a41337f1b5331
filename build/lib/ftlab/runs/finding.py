"""Which directories hold runs."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path


def directories(place: str, depth: int = 1) -> Iterator[Path]:
    """The directories of runs that a word names, in order.

    Args:
        place: The directory of a run, one under which there are some, or a pattern of either.
        depth: Directories from one that is named to the runs: 1 for an experiment or a sweep, 2 for the root of all.
    """
    matches = [Path(place)] if Path(place).exists() else [Path(match) for match in sorted(glob.glob(place))]
    for path in matches:
        if (path / "config.yaml").is_file():
            yield path
        elif path.is_dir():
            yield from sorted(_below(path, depth))


def _below(directory: Path, depth: int) -> Iterator[Path]:
    """What begins with a dot is no run: it is about to be deleted."""
    for path in directory.iterdir():
        if path.name.startswith(".") or not path.is_dir():
            continue
        if (path / "config.yaml").is_file():
            yield path
        elif depth > 1:
            yield from _below(path, depth - 1)
