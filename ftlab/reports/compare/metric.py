"""By what methods are compared: what its name in scores.json tells, where single records have theirs, what makes it."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path

from ftlab.errors import UserError
from ftlab.evaluation.score_names import LOSSES
from ftlab.reports.compare.groups import JudgedRun

PREFIXES = {"test": "test", "val": "validation"}
CHANGE = re.compile(r"retention_(.+)_loss_change")
_CLOCKS = 60
"""Seconds by which those of two machines may differ."""


@dataclass(frozen=True)
class Metric:
    """What methods are compared by.

    Args:
        prefix: test, val, or retention.
        name: Bare, such as rougeL; of a retention set NAME_loss_change.
    """

    prefix: str
    name: str

    @classmethod
    def of_key(cls, key: str) -> Metric:
        """Of that name in scores.json; one without a prefix that is known is of test records."""
        prefix, _, name = key.partition("_")
        return cls(prefix, name) if name and (prefix in PREFIXES or name_of_set(key)) else cls("test", key)

    @property
    def key(self) -> str:
        """In scores.json."""
        return f"{self.prefix}_{self.name}"

    @property
    def beginning(self) -> str:
        """Of the names of scores that a run which was judged likewise has."""
        return self.key if self.of_retention else f"{self.prefix}_"

    @property
    def split(self) -> str:
        """Whose records were judged."""
        return PREFIXES[self.prefix]

    def file(self, run: JudgedRun) -> Path:
        """Where single records have their scores."""
        return run.run.predictions(self.split if self.of_texts else f"{self.split}_losses")

    @property
    def of_retention(self) -> bool:
        """Whether it is what was forgotten, of which there is a number a run."""
        return self.prefix == "retention"

    @property
    def of_texts(self) -> bool:
        """Whether answers were generated for it."""
        return self.name not in LOSSES and not self.of_retention

    @property
    def digits(self) -> int:
        """Behind the point: scores of texts run to 100."""
        return 2 if self.of_texts else 4

    @property
    def lower_is_better(self) -> bool:
        """Of a user's own metric higher is taken for better."""
        return self.name in LOSSES or self.of_retention


def name_of_set(key: str) -> str:
    """The retention set of a name in scores.json; empty for that of anything else."""
    change = CHANGE.fullmatch(key)
    return change[1] if change else ""


def command(run: JudgedRun, key: str) -> str:
    """What gives a run the score of that name, or those that begin so; to end a sentence with."""
    verb = "validate" if key.startswith("val_") else "test"
    more = " with the set's file" if name_of_set(key) else ""
    return f"ftlab {verb} -c {run.run.config}{more}"


def refuse_older(path: Path, date: str, what: str, again: str) -> None:
    """A run that was trained longer since has scores of before. A copy's time is that of the copying, or the same.

    Args:
        path: A file of scores.
        date: Since when it is of the network as it is now.
        what: That date, in words.
        again: What writes the file anew.

    Raises:
        UserError: The file is older.
    """
    if path.stat().st_mtime < datetime.datetime.fromisoformat(date).timestamp() - _CLOCKS:
        raise UserError(f"{path} is older than {what}: the run has been trained on since; {again}")
