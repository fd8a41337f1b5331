"""The checkpoints of a run on the disk: each is there whole or not at all, and its name holds its digest.

checkpoints/
  last-00000120-3f9ac2d1e0b4a5f7.ckpt     what, optimiser step, BLAKE2b of the content
  last-00000110-…                         the one before: taken where the last is damaged
  best-00000100-…
  last.ckpt, best.ckpt                    links to the files that are meant

Of one in parts the first says in its name how many there are, and those lie beside it:
  last-00000120-….of2.ckpt, last-00000120-….0of2.part, last-00000120-….1of2.part
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ftlab.errors import UserError
from ftlab.runs.files import digest, sync_directory, write_whole

_BEGINS = r"(?P<kind>\w+)-(?P<step>\d{8})-(?P<digest>[0-9a-f]{16})"
_NAME = re.compile(_BEGINS + r"(\.of(?P<of>\d+))?\.ckpt")
_PART = re.compile(_BEGINS + r"\.(?P<number>\d+)of(?P<of>\d+)\.part")
ROOM = 1.05
"""Share of its tensors' bytes that must be free for a checkpoint."""


class CheckpointFiles:
    """The files under `checkpoints/`.

    Args:
        directory: Where they lie; it need not be there yet.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.last = directory / "last.ckpt"
        self.best = directory / "best.ckpt"

    def write(self, kind: str, step: int, write: Callable[[BinaryIO], Any], named: bool = True, parts: int = 0) -> Path:
        """Writes a checkpoint.

        Args:
            kind: last or best.
            step: Optimiser steps that it has seen.
            write: Is given the open file.
            named: Whether the link of this kind names it from then on.
            parts: How many parts of it lie beside it.

        Returns:
            The path of the file.
        """
        end = f".of{parts}.ckpt" if parts else ".ckpt"
        path = write_whole(self.directory / kind, write, lambda digest: f"{kind}-{step:08d}-{digest}{end}")
        if named:
            self._point(self.directory / f"{kind}.ckpt", path)
        return path

    def write_part(self, kind: str, step: int, number: int, of: int, write: Callable[[BinaryIO], Any]) -> None:
        """Writes a part of a checkpoint in place of any that was there, such as of a training that was cut short.

        Args:
            kind: last or best.
            step: Optimiser steps that it has seen.
            number: Of the part, from 0 on.
            of: How many there are.
            write: Is given the open file.
        """
        end = f".{number}of{of}.part"
        there = write_whole(self.directory / f"{kind}{end}", write, lambda digest: f"{kind}-{step:08d}-{digest}{end}")
        for other in self._parts(kind, step, of)[number]:
            if other != there.resolve():
                other.unlink(missing_ok=True)

    def parts(self, kind: str, step: int, of: int) -> list[Path]:
        """The parts of a checkpoint, by number.

        Raises:
            UserError: One is not there.
        """
        found = self._parts(kind, step, of)
        for number, paths in enumerate(found):
            if len(paths) != 1:
                raise UserError(
                    f"part {number} of {of} of the checkpoint {kind} of step {step} is not in {self.directory}: put it "
                    "back, or delete the checkpoint to go on from the one before"
                )
        return [paths[0] for paths in found]

    def _parts(self, kind: str, step: int, of: int) -> list[list[Path]]:
        found: list[list[Path]] = [[] for _ in range(of)]
        for path, part in self._matching(_PART):
            if (part["kind"], int(part["step"]), int(part["of"])) == (kind, step, of):
                found[int(part["number"])].append(path)
        return found

    def keep(self, best: Collection[int]) -> None:
        """Removes all but the last, the one before it, what `best.ckpt` names and the best of these steps."""
        wanted = {*self._by_age("last")[:2], self.last.resolve(), self.best.resolve()}
        for path in self._files():
            match = _NAME.fullmatch(path.name)
            assert match
            if path not in wanted and not (match["kind"] == "best" and int(match["step"]) in best):
                path.unlink(missing_ok=True)
        left = {(match["kind"], match["step"], match["of"]) for _, match in self._matching(_NAME)}
        newest = max((step for _, step, _ in left), default="")
        for path, part in self._matching(_PART):
            # other processes may have begun the next, of this step, too
            if (part["kind"], part["step"], part["of"]) not in left and part["step"] < newest:
                path.unlink(missing_ok=True)

    def go_on(self, step: int, best: Sequence[int]) -> None:
        """Removes the best checkpoints of steps after `step`, from which training goes on, and has `best.ckpt` name the
        first of `best` that is there."""
        found = {step_of(path): path for path in self._files() if path.name.startswith("best-")}
        for later in [path for number, path in found.items() if number > step]:
            later.unlink(missing_ok=True)
        there = [found[number] for number in best if number in found and number <= step]
        if there:
            self._point(self.best, there[0])
        else:
            self.best.unlink(missing_ok=True)

    def set_aside(self, damaged: Iterable[Path]) -> None:
        """Has damaged checkpoints no longer count, under names that begin with damaged."""
        for path in damaged:
            path.rename(path.with_name(f"damaged-{path.name}"))

    def to_go_on_from(self) -> tuple[Path | None, list[Path]]:
        """The newest whole checkpoint of training, None where there is none; and the newer ones that are damaged.

        Raises:
            UserError: There are checkpoints, and none is whole.
        """
        damaged: list[Path] = []
        for path in self._by_age("last"):
            if self._is_whole(path):
                return path, damaged
            damaged.append(path)
        if damaged:
            raise UserError(
                f"{damaged[0]} is damaged, and so is every other checkpoint to go on from: delete {self.directory} to "
                "train anew, or start another run (--run.name)"
            )
        return None, []

    def to_judge(self) -> Path | None:
        """The best checkpoint, else the last; None where there is none.

        Raises:
            UserError: It is damaged.
        """
        for link in (self.best, self.last):
            if link.is_file():
                if not self._is_whole(link.resolve()):
                    raise UserError(
                        f"{link} is damaged: the content of {link.resolve().name} is not the one that its name tells; "
                        "delete it, and run ftlab fit with another --run.name"
                    )
                return link
        return None

    def check_room(self, tensors: int) -> None:
        """Refuses to begin a checkpoint for which there is no room on the disk.

        Args:
            tensors: Bytes of its tensors.

        Raises:
            UserError: There is too little.
        """
        place = next(place for place in (self.directory, *self.directory.parents) if place.exists())
        free = shutil.disk_usage(place).free
        if free < tensors * ROOM:
            raise UserError(
                f"no room for a checkpoint: it takes {tensors / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free on the "
                f"disk of {self.directory}; the one before stands: make room, and give the command again"
            )

    def _point(self, link: Path, path: Path) -> None:
        temporary = link.with_name(f".{link.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(path.name)
        temporary.replace(link)
        sync_directory(self.directory)

    def _by_age(self, kind: str) -> list[Path]:
        """The checkpoints of a kind: first the one that the link names, then the others, the newest first."""
        named = (self.directory / f"{kind}.ckpt").resolve()
        found = [path for path in self._files() if path.name.startswith(f"{kind}-")]
        return sorted(found, key=lambda path: (path == named, path.name, path.stat().st_mtime_ns), reverse=True)

    def _is_whole(self, path: Path) -> bool:
        """Whether a checkpoint holds what its name tells, or another's: links may have been copied as files."""
        told = _digests(path) or {name for other in self._files() for name in _digests(other)}
        if not path.is_file() or digest(path) not in told:
            return False
        match = _NAME.fullmatch(path.name)
        if match is None or match["of"] is None:
            return True
        parts = self._parts(match["kind"], int(match["step"]), int(match["of"]))
        return all(len(paths) == 1 and f"-{digest(paths[0])}." in paths[0].name for paths in parts)

    def _files(self) -> Iterator[Path]:
        return (path for path, _ in self._matching(_NAME))

    def _matching(self, pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
        if self.directory.is_dir():
            for path in self.directory.resolve().iterdir():
                match = pattern.fullmatch(path.name)
                if match:
                    yield path, match


def step_of(path: Path) -> int:
    """The optimiser steps that a checkpoint has seen, by its file's name."""
    match = _NAME.fullmatch(path.name)
    return int(match["step"]) if match else 0


def _digests(path: Path) -> set[str]:
    match = _NAME.fullmatch(path.name)
    return {match["digest"]} if match else set()
