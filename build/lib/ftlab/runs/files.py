"""Files that are there whole or not at all, and the digests by which they are known again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from ftlab.errors import UserError
from ftlab.progress import Progress

_PART, _PIECE = 2**26, 2**20


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` so that whoever reads `path` finds all of it or what was there before."""
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


def write_whole(path: Path, write: Callable[[BinaryIO], Any], name: Callable[[str], str] | None = None) -> Path:
    """Has `write` fill a file that appears only when all of it is on the disk.

    Args:
        path: Where.
        write: Is given the open file, of which only `write` and `flush` may be called.
        name: The file's name, from the digest of what was written; by default that of `path`.

    Returns:
        The path of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            digested = _Digested(file)
            write(digested)  # type: ignore[arg-type]  # it is asked for no more
            file.flush()
            os.fsync(file.fileno())
        there = path.with_name(name(digested.digest())) if name else path
        temporary.replace(there)
        sync_directory(path.parent)
        return there
    except OSError as error:
        if error.errno:  # a full disk does not say where, and others name a file that nobody knows
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # on a disk that is read-only there is something else to be told
            temporary.unlink(missing_ok=True)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Writes files of which all appear or none does: each is beside its place before the first is put there.

    Raises:
        OSError: With the path of the file that cannot be written.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    made: list[Path] = []
    try:
        for path, content in contents.items():
            with _named(path):
                made += [above for above in path.parents if not above.exists()]
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():  # over which no file can be put
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                with temporary[path].open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        for path in contents:
            with _named(path):
                temporary[path].replace(path)
        made = []
    finally:
        for beside in temporary.values():
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
        for above in sorted(made, reverse=True):  # the innermost first
            with contextlib.suppress(OSError):
                above.rmdir()
    for parent in {path.parent for path in contents}:
        sync_directory(parent)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Has an error say which file was to be written: others name one that nobody knows, and a full disk none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def sync_directory(directory: Path) -> None:
    """Has the names in a directory survive a loss of power."""
    with contextlib.suppress(OSError):  # some file systems cannot, and need not
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digest(path: Path) -> str:
    """Of a file's content: BLAKE2b, 16 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _hash).hexdigest()


def digests(files: Sequence[Path]) -> list[str]:
    """Of the content of large files: of each, the digest of the digests of its 64 MiB, which threads take."""
    sizes = {file: file.stat().st_size for file in files}
    parts = [(file, start) for file in files for start in range(0, max(1, sizes[file]), _PART)]
    found = {file: _hash() for file in files}
    with (
        Progress("taking digests of the network's files", "bytes", sum(sizes.values())) as bar,
        ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as threads,
    ):
        for (file, start), part in zip(parts, threads.map(_digest_of_part, parts), strict=True):
            found[file].update(part)
            bar.advance(min(_PART, sizes[file] - start))
    return [found[file].hexdigest() for file in files]


def _digest_of_part(part: tuple[Path, int]) -> bytes:
    (path, start), content = part, hashlib.blake2b()
    with path.open("rb") as file:
        file.seek(start)
        for _ in range(_PART // _PIECE):
            content.update(file.read(_PIECE))
    return content.digest()


def digest_of(text: str) -> str:
    """The same of a text."""
    content = _hash()
    content.update(text.encode("utf-8", errors="surrogatepass"))
    return content.hexdigest()


def files_under(directory: Path) -> list[Path]:
    """All files under a directory, in order."""
    return sorted(path for path in directory.rglob("*") if path.is_file())


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none.

    Raises:
        UserError: It is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): mend it, or delete it and run the command again") from error


class _Digested:
    """An open file that digests what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = _hash()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._hash.hexdigest()


def _hash() -> Any:
    return hashlib.blake2b(digest_size=8)
