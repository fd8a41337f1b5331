"""What lies at a path: a file, a glob, a directory, a set saved to disk, a URL, or a set on the hub; and its splits.

`open_source` only looks. Records are read when `SplitSource.chunks` is walked through, by `readers`.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftlab.data.chunks import Chunk, first_line
from ftlab.data.readers import TEXTS, SampleBy, endings, kind_of, read_dataset, read_file
from ftlab.data.records import SPLITS, RawRecord, Split
from ftlab.errors import UserError
from ftlab.progress import Progress

if TYPE_CHECKING:
    import datasets
    from fsspec import AbstractFileSystem

__all__ = ["Chunk", "OpenedSource", "SplitSource", "cache_dir", "downloads_dir", "open_source"]

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_SHARD = re.compile(r"(.+?)[-_.](\d+)(?:[-_]of[-_](\d+))?")  # train-00000-of-00004, train_001
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")  # owner/name:subset
_NOTES = {"readme", "license", "licence", "state", "dataset_info", "dataset_infos", "dataset_dict"}  # never records
_COMPRESSED = {".gz", ".zst"}
_UNPACKED = 4  # how much larger text commonly is than its .gz
_PIECE = 1 << 20  # bytes of a file that are read at a time
_SETTLED = 2.0  # seconds; within them a second write may leave a file's time as it was


def cache_dir() -> Path:
    """Where ftlab keeps what it can make again: $FTLAB_CACHE, or ~/.cache/ftlab."""
    return Path(os.environ.get("FTLAB_CACHE") or Path.home() / ".cache" / "ftlab")


def downloads_dir() -> Path:
    """Where files fetched from URLs are kept."""
    return cache_dir() / "downloads"


@dataclass(frozen=True)
class SplitSource:
    """The records of one split, read as often as asked for.

    Args:
        name: What messages call it.
        files: Its files, in the order they are read in; none for a set of `datasets`.
        root: What its files' names are relative to in messages.
        dataset: A set of `datasets`, if it is one.
        limit: Only the first so many records.
        sample_by: What of a text file is one record.
    """

    name: str
    files: tuple[Path, ...]
    root: Path
    dataset: datasets.Dataset | None = None
    limit: int | None = None
    sample_by: SampleBy = "document"

    @property
    def labels(self) -> list[str]:
        """What messages call the files, in order."""
        return [file.relative_to(self.root).as_posix() for file in self.files]

    @property
    def bytes(self) -> int:
        """About how much there is to read, unpacked: text comes out of its compression some four times as large."""
        if self.dataset is not None:
            return int(self.dataset.data.nbytes)
        sizes = [(file.stat().st_size, file.suffix.lower() in _COMPRESSED) for file in self.files if file.is_file()]
        return sum(size * (_UNPACKED if compressed else 1) for size, compressed in sizes)

    def fingerprint(self) -> str:
        """A hash (SHA-256, hex) of what `records` would give: the files' contents in order, and how they are read.

        Contents are hashed once: the result is kept in `cache_dir()` by path, size, time and inode.

        Raises:
            UserError: A file cannot be read.
        """
        parts = [str(self.limit)]
        if self.dataset is not None:
            parts += _of_dataset(self.dataset)
        for file in self.files:
            kind = str(kind_of(file))
            try:
                parts += [kind + self.sample_by if kind in TEXTS else kind, _digest(file)]
            except OSError as error:
                raise UserError(f"{file} cannot be read ({error.strerror}); check the path and its rights") from error
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def chunks(self, size: int = 1000) -> Iterator[Chunk]:
        """Reads the records in chunks of at most `size`.

        Raises:
            UserError: As `readers.read_file`.
        """
        if self.dataset is not None:
            yield from read_dataset(self.dataset, self.name, size, self.limit)
        left = self.limit
        for file in self.files:
            for chunk in read_file(file, file.relative_to(self.root).as_posix(), size, left, self.sample_by):
                yield chunk
                left = None if left is None else left - len(chunk)
            if left == 0:
                return

    def records(self) -> Iterator[RawRecord]:
        """Reads the records one by one."""
        for chunk in self.chunks():
            yield from chunk.records()

    def first(self) -> RawRecord:
        """Reads the first record."""
        return next(chunk.records()[0] for chunk in self.chunks(size=1))


@dataclass(frozen=True)
class OpenedSource:
    """What was found at a path.

    Args:
        splits: Where each split's records are.
        pooled: Nothing told splits apart, as in a single file: all is under "train", and is to be shared out.
    """

    splits: dict[Split, SplitSource]
    pooled: bool


def open_source(path: str, sample_by: SampleBy = "document", limit: int | None = None) -> OpenedSource:
    """Says what lies at `path`: which splits it has, and which files hold them.

    - A file (`.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.parquet`, `.arrow`, `.txt`, `.md`, each also with `.gz` or
      `.zst`) or a glob (`data/**/*.jsonl.gz`) is a pool.
    - A directory is known by the files, shards (`train-00000-of-00004.parquet`, `train_001.jsonl`) or sub-directories
      in it that are named train, dev (val, valid, validation) or test; others are left alone. Where none is, all its
      readable files are a pool; those of text only if there are no others; README and LICENSE never.
    - A set that `datasets` saved to disk.
    - `scheme://…`: what is there is fetched once, by fsspec, and then read as files.
    - `owner/name` or `owner/name:subset`, if nothing local is called so: a set on the hub.

    Args:
        path: Where the records are.
        sample_by: What of a text file is one record, in the column `text`: a whole file, what stands between blank
            lines, or a line.
        limit: Only the first so many records of each split.

    Raises:
        UserError: Nothing is there or can be fetched, no file can be read, or two files claim to be the same split.
    """
    path = path.removeprefix("file://")
    local = Path(path).expanduser()
    if "://" in path:
        local = _fetch(path)
        if "*" in path:
            return _pool(path, _readable(local), local, sample_by, limit)
    elif not local.exists() and glob.has_magic(path):
        matches = sorted(Path(match) for match in glob.glob(str(local), recursive=True))
        files = [match for match in matches if match.is_file() and kind_of(match)]
        if not files:
            raise UserError(f"data.path: {path} matches no file that ends in {endings()}; check the pattern")
        return _pool(path, files, Path(os.path.commonpath([file.parent for file in files])), sample_by, limit)
    if not local.exists() and kind_of(path) is None and _HUB_NAME.fullmatch(path):
        return OpenedSource(_of_sets(_from_hub(path), path, limit), pooled=False)
    if local.is_dir():
        return _open_directory(local, sample_by, limit)
    if not local.is_file():
        raise UserError(f"data.path: {path} is neither a file nor a directory; give the path of one that exists")
    if kind_of(local) is None:
        raise UserError(f"data.path: {path} is of no kind that can be read; convert it to {endings()}")
    return _pool(path, [local], local.parent, sample_by, limit)


def _pool(name: str, files: list[Path], root: Path, sample_by: SampleBy, limit: int | None) -> OpenedSource:
    source = SplitSource(name, tuple(files), root, limit=limit, sample_by=sample_by)
    return OpenedSource({"train": source}, pooled=True)


def _open_directory(path: Path, sample_by: SampleBy, limit: int | None) -> OpenedSource:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _from_disk(path, limit)
    named = _split_files(path)
    if named:
        splits = {
            split: SplitSource(f"{path} ({split})", files, path, limit=limit, sample_by=sample_by)
            for split, files in named.items()
        }
        return OpenedSource(splits, pooled=False)
    files = _readable(path)
    if not files:
        raise UserError(
            f"data.path: {path} has no file named train, dev (or val, valid, validation) or test, nor any other, "
            f"that ends in {endings()}; give a path that has"
        )
    return _pool(str(path), files, path, sample_by, limit)


def _files(directory: Path) -> list[Path]:
    """All files below a directory that can be read, but for hidden ones and notes."""
    found = []
    for file in sorted(directory.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(directory).parts)
        if kind_of(file) and not hidden and _stem(file).lower() not in _NOTES and file.is_file():
            found.append(file)
    return found


def _readable(directory: Path) -> list[Path]:
    """All files below a directory that hold records: text only if there is nothing else."""
    found = _files(directory)
    return [file for file in found if kind_of(file) not in TEXTS] or found


def _stem(file: Path) -> str:
    """The name without what tells its kind and compression."""
    return file.name[: file.name.rindex(kind_of(file) or "")]


def _split_files(directory: Path) -> dict[Split, tuple[Path, ...]]:
    """The files of each split that a directory's files, shards or sub-directories are named after."""
    claims: dict[Split, dict[Path, list[Path]]] = {}  # the split, then who claims to be it
    for file in _files(directory):
        shard = _SHARD.fullmatch(_stem(file))
        name = shard[1] if shard else _stem(file)
        if name.lower() in _SPLIT_NAMES:
            claimant = file
            if shard:
                parts = f"*-of-{shard[3]}" if shard[3] else "*"
                claimant = file.with_name(file.name.replace(_stem(file), f"{name}-{parts}"))
        else:
            above = [parent for parent in file.parents if parent.is_relative_to(directory) and parent != directory]
            claimant = next((parent for parent in above if parent.name.lower() in _SPLIT_NAMES), directory)
            if claimant == directory:
                continue
            name = claimant.name
        claims.setdefault(_SPLIT_NAMES[name.lower()], {}).setdefault(claimant, []).append(file)
    found = {}
    for split in SPLITS:
        match list(claims.get(split, {})):
            case []:
                continue
            case [claimant]:
                files = _readable(claimant) if claimant.is_dir() else claims[split][claimant]
                found[split] = tuple(files)
                whole = re.search(r"-of-0*(\d+)", claimant.name)
                if whole and len(files) != int(whole[1]):
                    raise UserError(f"data.path: {claimant} are {len(files)} files, not {whole[1]}; fetch the others")
            case [one, other, *_]:
                one, other = one.relative_to(directory), other.relative_to(directory)
                raise UserError(f"data.path: {directory} has two {split} files, {one} and {other}; keep one")
    return found


def _from_disk(path: Path, limit: int | None) -> OpenedSource:
    import datasets

    try:
        found = datasets.load_from_disk(str(path), keep_in_memory=False)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data.path: {path} is not a set that `datasets` can load ({first_line(error)}); save it again"
        ) from error
    if isinstance(found, datasets.Dataset):
        return OpenedSource({"train": SplitSource(path.name, (), path, found, limit)}, pooled=True)
    return OpenedSource(_of_sets(found, path.name, limit), pooled=False)


def _from_hub(name: str) -> datasets.DatasetDict:
    import datasets

    if name in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:  # which reads whatever lies where one stands
        raise UserError(f"data.path: {name} is a kind of files: give the path of a file or directory")
    bars_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        repository, _, subset = name.partition(":")
        return datasets.load_dataset(repository, subset or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data.path: {name} is neither a local file or directory nor a set that can be fetched from the hub "
            f"({first_line(error)}); check the name"
        ) from error
    finally:
        if bars_shown:
            datasets.enable_progress_bars()


def _of_sets(found: datasets.DatasetDict, name: str, limit: int | None) -> dict[Split, SplitSource]:
    keys = {_SPLIT_NAMES[key]: key for key in found if key in _SPLIT_NAMES}
    if not keys:
        raise UserError(
            f"data.path: {name} has the splits {', '.join(found)}; give a set with train, validation or test"
        )
    return {
        split: SplitSource(f"{name}/{keys[split]}", (), Path(), found[keys[split]], limit)
        for split in SPLITS
        if split in keys
    }


def _fetch(url: str) -> Path:
    """Fetches what is at a URL into `downloads_dir()`, unless the same is there already; gives the path of it."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        if "*" in path:
            root = path[: path.index("*")].rpartition("/")[0]
            remote = filesystem.glob(path)
        elif filesystem.info(path)["type"] == "directory":
            root, remote = path.rstrip("/"), filesystem.find(path)
        else:
            root, remote = path.rpartition("/")[0], [path]
        # as it is here -> as it is there; a query behind a name tells no kind
        names = {file.removeprefix(root).lstrip("/").split("?")[0]: file for file in sorted(remote)}
        wanted = {name: file for name, file in names.items() if kind_of(name) and ".." not in name}
        if not wanted:
            raise UserError(f"data.path: {url} holds no file that ends in {endings()}; give the URL of one")
        states = [f"{filesystem.ukey(file)} {sorted(filesystem.info(file).items())}" for file in wanted.values()]
        key = hashlib.sha256("\n".join([url, *states]).encode()).hexdigest()[:32]
        directory = downloads_dir() / key
        if not directory.is_dir():
            _download(filesystem, wanted, directory)
    except UserError:
        raise
    except Exception as error:  # every file system has errors of its own
        raise UserError(
            f"data.path: {url} cannot be fetched ({first_line(error)}); check the address and the connection"
        ) from error
    return directory / next(iter(wanted)) if remote == [path] else directory


def _download(filesystem: AbstractFileSystem, files: dict[str, str], directory: Path) -> None:
    """Fetches files, by the name they get here, into a directory that appears when it is whole."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=directory.parent, ignore_cleanup_errors=True) as partial:
        for name, file in files.items():
            place = Path(partial, "files", name)
            place.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(file, str(place))
        try:
            Path(partial, "files").rename(directory)
        except OSError:
            if not directory.is_dir():  # else another process was first
                raise


def _of_dataset(dataset: datasets.Dataset) -> list[str]:
    """What the rows of a set are known by: its files' contents. Its own fingerprint is of how it was made, and stays
    the same where a function that made it was edited."""
    files = [Path(file["filename"]) for file in dataset.cache_files]
    indices = dataset._indices  # rows that were selected or shuffled, over the files
    chosen = [] if indices is None else [hashlib.sha256(indices.column(0).to_numpy().tobytes()).hexdigest()]
    return [_digest(file) for file in files] + chosen if files else [dataset._fingerprint]


def _sha256(file: Path, size: int) -> str:
    content = hashlib.sha256()
    with file.open("rb") as opened, Progress(f"taking the digest of {file.name}", "bytes", size) as bar:
        while piece := opened.read(_PIECE):
            content.update(piece)
            bar.advance(len(piece))
    return content.hexdigest()


def _digest(file: Path) -> str:
    """SHA-256 of a file's contents, in hex: of an unchanged file from the note made when it was last read."""
    before = file.stat()
    identity = f"{file.resolve()}\n{before.st_size}\n{before.st_mtime_ns}\n{before.st_ino}"
    note = cache_dir() / "digests" / hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()
    settled = time.time() - before.st_mtime > _SETTLED
    if settled and note.is_file():
        return note.read_text()
    digest = _sha256(file, before.st_size)
    if settled and file.stat().st_mtime_ns == before.st_mtime_ns:
        with suppress(OSError):  # where nothing can be kept, it is read again
            note.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=note.parent)
            with os.fdopen(descriptor, "w") as partial:
                partial.write(digest)
            os.replace(name, note)
    return digest
