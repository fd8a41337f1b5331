"""What the network knew before training: texts and tasks on which is measured what it has forgotten since.

Here is what they are, and that training must not hold them; `retained` puts them into batches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ftlab.data.assignment import evenly_spaced
from ftlab.data.formats import Convert, Format, Kind, recognise
from ftlab.data.leaks import LeakReport
from ftlab.data.readers import SampleBy
from ftlab.data.records import Message, Record, Split, group_by_prompt
from ftlab.data.sources import SplitSource, open_source
from ftlab.errors import UserError

_WORDS = 13
"""Of a line that is looked for in training, where n-grams do not say it: shorter ones are anywhere."""


@dataclass(frozen=True)
class RetentionSet:
    """A text or a task that the network is to keep.

    Args:
        name: What its scores are called by: retention_NAME_loss_change.
        path: As data.path.
        split: Which of its splits; by default test, validation or train, the first that there is.
        limit: Most documents, evenly spaced.
        window: Tokens of running text that the network sees at once; by default its context, up to 2,048.
        score: Of records that ask something, also answer, and score the answers by model.metrics.
        format: As data.format.
        prompt: As data.prompt.
        response: As data.response.
        function: As data.function.
        sample_by: As data.sample_by: a file that is one document has no interval, which is over documents.
    """

    name: str
    path: str
    split: Split | None = None
    limit: int | None = None
    window: int | None = None
    score: bool = False
    format: Kind = "auto"
    prompt: str | None = None
    response: str | None = None
    function: str | None = None
    sample_by: SampleBy = "document"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise UserError(f"data.retention: {self.name!r} is no name; give one of letters, digits, and any of _ . -")
        for option in ("limit", "window"):
            value = getattr(self, option)
            if value is not None and value < 2:
                raise UserError(f"{self.key}: {option} is {value}; give 2 or more")

    @property
    def key(self) -> str:
        """What messages call it."""
        return f"data.retention {self.name}"

    def opened(self) -> tuple[SplitSource, Convert]:
        """What is read, and how.

        Raises:
            UserError: Nothing is there, or it cannot be understood.
        """
        try:
            splits = open_source(self.path, self.sample_by).splits
            order: tuple[Split, ...] = (self.split,) if self.split else ("test", "validation", "train")
            source = next((splits[split] for split in order if split in splits), None)
            if source is None:
                raise UserError(f"{self.path} has no {self.split} split, only {', '.join(splits)}; name one of these")
            format = Format(self.format, self.prompt, self.response, function=self.function)
            return source, recognise(format, source.first())
        except UserError as error:
            raise UserError(f"{self.key}: {str(error).removeprefix('data.path: ')}") from error

    def records(self) -> list[Record]:
        """The documents, those that ask the same as one; running text without text is left out.

        Raises:
            UserError: As `opened`, or there are fewer than two.
        """
        source, convert = self.opened()
        found = [record for raw in source.records() if (record := convert.convert(raw)) is not None]
        asking = [group.record for group in group_by_prompt(enumerate(found))]
        saying = [record for record in found if not record.context and (record.tokens or _text(record).strip())]
        documents = evenly_spaced([*saying, *asking], self.limit)
        if len(documents) < 2:
            raise UserError(
                f"{self.key}: {self.path} holds {len(documents)} documents, and an interval is over several; set "
                "sample_by to paragraph or line, or give more"
            )
        return documents


def refuse_same_names(sets: Sequence[RetentionSet]) -> None:
    """One would stand in the other's place.

    Raises:
        UserError: Two sets have one name.
    """
    names = [kept.name for kept in sets]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"data.retention has two sets of the name {name}; give one of them another")


def passages(record: Record, words: int | None) -> list[Record]:
    """What is looked for in training: of a text its lines of `words` words or more, whatever is one record there."""
    if record.context or record.tokens is not None:
        return [record]
    lines = [line for line in _text(record).splitlines() if len(line.split()) >= (words or _WORDS)]
    return [replace(record, answers=(Message("text", line),)) for line in lines] or [record]


def refusal(report: LeakReport) -> UserError | None:
    """Why training is refused: it holds more of a set than data.leaks allows.

    Args:
        report: Of an index to which each set was added by its name.
    """
    for name, total in report.evaluated.items():
        grams = report.leaked[name]["ngram"]
        sure = sum(report.leaked[name].values()) - grams
        for count, option in ((sure, "allowed"), (grams, "allowed_ngram")):
            if count > getattr(report.leaks, option) * total:
                return _refused(report, name, count, option)
    return None


def _refused(report: LeakReport, name: str, count: int, option: str) -> UserError:
    by_grams = option == "allowed_ngram"
    found = [leak for leak in report.listed if leak.split == name and (leak.kind == "ngram") == by_grams]
    examples = ", ".join(f"{leak.evaluation} in {leak.training} ({leak.kind})" for leak in found[:3])
    return UserError(
        f"data.retention {name}: {count} of its {report.evaluated[name]} passages are also found in training: "
        f"{examples}{', …' * (count > 3)}; what is trained on shows no forgetting: take them out of the set, or set "
        f"data.leaks.{option} to the share you accept"
    )


def _text(record: Record) -> str:
    return record.answers[0].content if record.answers else ""


def options_of(sets: Sequence[RetentionSet]) -> list[Any]:
    """What of sets decides whether training holds them: for the key of prepared rows."""
    return [[asdict(kept) | {"path": None}, kept.opened()[0].fingerprint()] for kept in sets]
