"""How far a preparation is: records are counted, and how many there will be is told from the bytes that are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ftlab.progress import Progress

if TYPE_CHECKING:
    from ftlab.data.preparation import Opened, Part


@contextmanager
def counted(name: str, sources: Sequence[Opened]) -> Iterator[Callable[[Part], None]]:
    """Gives what is to be called with every part that has been made.

    Args:
        name: What is prepared.
        sources: From what.
    """
    splits = [split for source in sources for split in source.files.splits.values()]
    limits = [split.limit for split in splits if split.limit is not None]
    most = sum(limits) if len(limits) == len(splits) else None
    size, read, seen = sum(split.bytes for split in splits), 0, 0
    # workers are forked while it stands
    with Progress(f"preparing {name}", "records", forks=True) as bar:

        def made(part: Part) -> None:
            nonlocal read, seen
            read, seen = read + part.read, seen + part.task.chunk.bytes
            bar.expect(_expected(read, seen, size, most, bool(limits)))
            bar.advance(part.read)

        yield made


def _expected(read: int, seen: int, size: int, most: int | None, limited: bool) -> float | None:
    """How many records there will be; None where nobody can tell.

    Args:
        read: Records so far.
        seen: Their bytes.
        size: Bytes of all.
        most: More are not read.
        limited: Whether some of the rest is not read.
    """
    if not seen or seen > size:  # what is packed well comes to more than was guessed
        return most
    all_of_them = read * size / seen
    if most is not None:
        return min(all_of_them, most)
    return None if limited else all_of_them
