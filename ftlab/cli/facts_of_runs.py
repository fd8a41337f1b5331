"""What the files of a run say of it: its state, method, score, size and dates. Nothing heavy is imported for it."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ftlab.cluster.progress import at_work_here
from ftlab.errors import UserError
from ftlab.evaluation.score_names import rank
from ftlab.runs import Run
from ftlab.runs.files import read_json
from ftlab.runs.lock import owner_of

STATES = ("running", "finished", "stopped", "interrupted", "failed", "killed", "damaged", "new")
_IN_WORDS = {"finished": "finished", "preempted": "stopped", "interrupted": "interrupted", "failed": "failed"}


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run.

    Args:
        run: Where it lies.
    """

    run: Run

    @property
    def experiment(self) -> str:
        """The directory of its experiment, or of its sweep."""
        return self.run.directory.resolve().parent.name

    @cached_property
    def record(self) -> dict[str, Any]:
        """Its provenance; nothing where that is damaged, as `state` says."""
        return self._whole(self.run.provenance) or {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its configuration; nothing where that is damaged, as `state` says."""
        try:
            return self.run.configuration()
        except (UserError, OSError):
            return {}

    @cached_property
    def scores(self) -> dict[str, float]:
        """Names to numbers."""
        return self._whole(self.run.scores) or {}

    @cached_property
    def state(self) -> str:
        """One of STATES: `stopped` by a signal and `interrupted` by the user go on with the same command, as does what
        was `killed`, or has `failed`."""
        if at_work_here(self.run):
            return "running"
        if not self.config or self._whole(self.run.provenance) is None:
            return "damaged"
        said = self.record.get("state")
        if said == "running":
            return "running" if worker_elsewhere(self.run) else "killed"
        return _IN_WORDS.get(str(said), "stopped" if said else "new")

    @property
    def method(self) -> str:
        """The class of its method, with the classes that it was given: Peft(IA3Config)."""
        method = (self.config.get("model") or {}).get("method")
        names = [path.rsplit(".", 1)[-1] for path in _class_paths(method)]
        return names[0] + (f"({', '.join(names[1:])})" if names[1:] else "") if names else ""

    def score(self, metric: str | None = None) -> tuple[str, float] | None:
        """Name and value of the score that is looked at first: rougeL of the test records, or another score of their
        answers, or the loss on them, or the same of the validation records.

        Args:
            metric: The name of another.
        """
        if metric:
            return (metric, self.scores[metric]) if metric in self.scores else None
        return min(self.scores.items(), key=lambda item: rank(item[0]), default=None)

    @cached_property
    def bytes(self) -> int:
        """On the disk: a file that has two names counts once."""
        return sum({(each.st_dev, each.st_ino): each.st_size for each in _files(self.run.directory)}.values())

    @property
    def date(self) -> datetime.datetime | None:
        """When it was last at work: its end, or where there is none, its last start."""
        sessions = self.record.get("sessions") or [{}]
        said = self.record.get("ended") or sessions[-1].get("started") or self.record.get("started")
        if said:
            return datetime.datetime.fromisoformat(said)
        try:
            return datetime.datetime.fromtimestamp(self.run.config.stat().st_mtime, datetime.UTC)
        except OSError:
            return None

    def _whole(self, path: Path) -> dict[str, Any] | None:
        try:
            said = read_json(path)
        except (UserError, OSError):
            return None
        return said if isinstance(said, dict) else None


def worker_elsewhere(run: Run) -> str | None:
    """The process of another machine that works in the run's directory, as it has said there; None for none."""
    words = owner_of(run.directory)
    return words if words and words.split()[-1:] != [socket.gethostname()] else None


def size(number: float) -> str:
    """Bytes, in a unit that leaves at most four digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def clock(date: datetime.datetime | None) -> str:
    """A date and time of day, as the clock on the wall has it."""
    return date.astimezone().strftime("%Y-%m-%d %H:%M") if date else ""


def _class_paths(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str):
            yield value["class_path"]
        for each in value.values():
            yield from _class_paths(each)


def _files(directory: Path | str) -> Iterator[os.stat_result]:
    """Of all files under a directory, links aside; what vanishes meanwhile is passed over."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    yield entry.stat(follow_symlinks=False)
    except OSError:
        return
