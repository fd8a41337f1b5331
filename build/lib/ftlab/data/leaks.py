"""Which evaluation records the network has met in training: word for word, nearly so, or by what they quote.

An evaluation record has leaked, by the first of these kinds that holds:

- record: a training record has the same prompt and one of its answers; of running text and tokens, the same content.
- prompt: a training record has the same prompt, with other answers. A prompt that more than half of a split's records
  share (an instruction without any input) says nothing and is not counted.
- normalised: the same prompt but for case and spacing; or the same prompt and answer but for case, punctuation and
  spacing, of which a prompt alone would confuse 3 - 4 with 3 + 4.
- ngram: `overlap` of the n-grams of its prompt, or of prompt and answers together, are found in one training record;
  n-grams that more than `common` training records have are the data's templates and do not count, as in GPT-3
  (arXiv 2005.14165, app. C); PaLM counted 70 % of 8-grams found anywhere (arXiv 2204.02311, sec. 8).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy

from ftlab.data.leak_tables import Flat, GramTable, KeyTable
from ftlab.data.records import Record
from ftlab.data.text_hashes import Ragged, normalised, number, token_text, word_ngram_hashes
from ftlab.errors import UserError

KINDS = ("record", "prompt", "normalised", "ngram")
LISTED = 1000  # leaks of one split and kind that are listed one by one; all are counted
_SAYS_NOTHING = 10  # records of a split that must at least share a prompt for it to be taken for an instruction


@dataclass(frozen=True)
class Leaks:
    """What is done about evaluation records that also train.

    Args:
        action: refuse stops with a list of them, drop leaves the offending training records out (the evaluation
            records stay, so that scores remain comparable), ignore does not look.
        prompts: Count records whose prompt alone is met in training, with other answers.
        ngram: Words in an n-gram; null compares none.
        overlap: Share of a record's n-grams in one training record from which on it has leaked.
        common: An n-gram that more training records than this have does not count.
        allowed: Share of a split's records that may leak, by any kind but n-grams, before the data are refused.
        allowed_ngram: Share of a split's records that may leak by n-grams alone before the data are refused.
        against: Files of other benchmarks with which training records must not overlap, either.
    """

    action: Literal["refuse", "drop", "ignore"] = "refuse"
    prompts: bool = True
    ngram: int | None = 13
    overlap: float = 0.7
    common: int = 10
    allowed: float = 0.0
    allowed_ngram: float = 0.01
    against: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("overlap", "allowed", "allowed_ngram"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name == "overlap" and not value):
                raise UserError(f"data.leaks.{name} is {value}; give a share between 0 and 1")
        for name in ("ngram", "common"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.leaks.{name} is {value}; give a whole number from 1 on")

    def fingerprints(self, records: Sequence[Record]) -> Fingerprints:
        """What the records are compared by; small next to their texts, the same in every process."""
        prompts = [record.prompt if record.context else None for record in records]
        contents = [_contents(record) for record in records]
        worded = [None if prompt is None else normalised(prompt) for prompt in prompts]
        both = list(zip(prompts, contents, strict=True))
        return Fingerprints(
            record=Ragged.of([_answer_keys(prompt, texts) for prompt, texts in both]),
            prompt=Ragged.of([[number("prompt", prompt)] if prompt is not None else [] for prompt in prompts]),
            folded=Ragged.of([[number("folded", _folded(prompt))] if prompt is not None else [] for prompt in prompts]),
            worded=Ragged.of(
                [
                    _answer_keys(prompt, list(map(normalised, texts)))
                    for prompt, texts in zip(worded, contents, strict=True)
                ]
            ),
            prompt_grams=self._grams([[message.content for message in record.context] for record in records]),
            answer_grams=self._grams(contents),
        )

    def _grams(self, texts: list[list[str]]) -> Ragged:
        if self.ngram is None:
            return Ragged.of([[] for _ in texts])
        hashes, offsets = word_ngram_hashes([text for record in texts for text in record], self.ngram)
        return Ragged(hashes, offsets[[0, *accumulate(map(len, texts))]])


@dataclass(frozen=True)
class Fingerprints:
    """What records are compared by, as hashes.

    Args:
        record: Prompt and each answer; each text of a record without prompt.
        prompt: The prompt.
        folded: The prompt without regard to case and spacing.
        worded: As `record`, without regard to case, punctuation and spacing.
        prompt_grams: N-grams of the prompt's turns.
        answer_grams: N-grams of the answers.
    """

    record: Ragged
    prompt: Ragged
    folded: Ragged
    worded: Ragged
    prompt_grams: Ragged
    answer_grams: Ragged

    def __len__(self) -> int:
        return len(self.record)

    def select(self, mask: numpy.ndarray) -> Fingerprints:
        """The fingerprints of some records; mask (records,) bool."""
        return Fingerprints(*(getattr(self, part.name).select(mask) for part in fields(self)))


@dataclass(frozen=True)
class Leak:
    """One evaluation record that has leaked.

    Args:
        split: validation, test, or the name under which a benchmark was added.
        kind: One of KINDS.
        evaluation: Where the record stands.
        training: Where the training record stands that is most like it.
        share: Share of its n-grams that the training record has; 1 for the other kinds.
    """

    split: str
    kind: str
    evaluation: str
    training: str
    share: float


@dataclass(frozen=True)
class LeakReport:
    """What was found.

    Args:
        leaks: The options it was found with.
        evaluated: Evaluation records of each split.
        leaked: Of those, the leaked ones by kind.
        listed: The first LISTED leaks of each split and kind, those of the surest kinds before others.
        training_to_drop: Which of the training records, numbered in the order they were matched, are behind any leak.
    """

    leaks: Leaks
    evaluated: dict[str, int]
    leaked: dict[str, dict[str, int]]
    listed: list[Leak]
    training_to_drop: numpy.ndarray

    @property
    def counts(self) -> dict[str, int]:
        """Leaked evaluation records of all splits by kind."""
        return {kind: sum(by_kind[kind] for by_kind in self.leaked.values()) for kind in KINDS}

    def refusal(self, path: str | Path | None = None) -> UserError | None:
        """Why the data are refused, if they are.

        Args:
            path: Where the list of leaks is written; None where training is still being read, and nothing is.
        """
        if self.leaks.action != "refuse":
            return None
        for split, total in self.evaluated.items():
            grams = self.leaked[split]["ngram"]
            sure = sum(self.leaked[split].values()) - grams
            for count, name in ((sure, "allowed"), (grams, "allowed_ngram")):
                if count > getattr(self.leaks, name) * total:
                    return UserError(self._sentence(split, total, count, name, path))
        return None

    def _sentence(self, split: str, total: int, count: int, option: str, path: str | Path | None) -> str:
        kinds = ("ngram",) if option == "allowed_ngram" else KINDS[:-1]
        found = [leak for leak in self.listed if leak.split == split and leak.kind in kinds]
        examples = ", ".join(f"{leak.evaluation} in {leak.training} ({leak.kind})" for leak in found[:3])
        cut = any(self.leaked[split][kind] > LISTED for kind in kinds)
        which = f"the first {LISTED:,} of each kind" if cut else "all"
        listed = f"; {which} are listed in {path}" if path else ", and not all of training has been read"
        return (
            f"{count} of the {total} {split} records are also found in training: {examples}{', …' * (count > 3)}"
            f"{listed}; set data.leaks.action to drop to leave the training records out, or "
            f"data.leaks.{option} to the share you accept (here {_rounded_up(count / total)})"
        )


class LeakIndex:
    """Holds the evaluation records' fingerprints and meets training's as they pass by.

    Memory is taken for the evaluation records, some 40 bytes an n-gram and up to 16 * `common` more for one that is
    met; about training records only those are remembered that share something.

    Args:
        leaks: What counts as a leak.
    """

    def __init__(self, leaks: Leaks) -> None:
        self._leaks = leaks
        self._sources: list[str] = []
        self._splits: list[str] = []
        self._added: list[Fingerprints] = []
        self._tables: dict[str, KeyTable] | None = None
        self._grams: GramTable
        self._training_count = 0
        self._training_sources: dict[int, str] = {}

    def add_evaluation(self, split: str, fingerprints: Fingerprints, sources: Sequence[str]) -> None:
        """Adds evaluation records; all of them before the first `match_training`."""
        if self._tables is not None:
            raise RuntimeError("evaluation records are added before training records are matched")
        self._added.append(fingerprints)
        self._sources += sources
        self._splits += [split] * len(sources)

    def match_training(self, fingerprints: Fingerprints, sources: Sequence[str]) -> numpy.ndarray:
        """Meets training records, which are numbered on from those before.

        Returns:
            The places of those that share something with evaluation records, rising; where n-grams are not compared,
            these are those that leak.
        """
        met = [table.meet(getattr(fingerprints, name), self._training_count) for name, table in self._frozen().items()]
        met.append(self._grams.meet(fingerprints.prompt_grams, fingerprints.answer_grams, self._training_count))
        records: numpy.ndarray = numpy.unique(numpy.concatenate(met))
        for record in records.tolist():
            self._training_sources[self._training_count + record] = sources[record]
        self._training_count += len(sources)
        return records

    def report(self) -> LeakReport:
        """What has leaked into the training records matched so far."""
        tables = self._frozen()
        total = len(self._sources)
        kinds = numpy.full(total, len(KINDS))
        training = numpy.zeros(total, dtype=numpy.int64)
        shares = numpy.ones(total)
        pairs = self._grams.pairs(total, self._leaks.overlap)
        best = pairs.best()
        kinds[best.evaluation] = KINDS.index("ngram")
        training[best.evaluation] = best.training
        shares[best.evaluation] = best.share
        for name in ("worded", "folded", "prompt", "record"):  # the surest last, over the others
            owners, numbers = tables[name].first_met()
            kinds[owners] = KINDS.index(_KIND_OF[name])
            training[owners] = numbers
            shares[owners] = 1
        leaked = {split: dict.fromkeys(KINDS, 0) for split in dict.fromkeys(self._splits)}
        leaks = []
        for record in numpy.argsort(kinds, kind="stable")[: int((kinds < len(KINDS)).sum())].tolist():
            split, kind = self._splits[record], KINDS[kinds[record]]
            leaked[split][kind] += 1
            if leaked[split][kind] <= LISTED:
                source = self._training_sources[int(training[record])]
                leaks.append(Leak(split, kind, self._sources[record], source, round(float(shares[record]), 3)))
        return LeakReport(
            leaks=self._leaks,
            evaluated={split: self._splits.count(split) for split in leaked},
            leaked=leaked,
            listed=leaks,
            training_to_drop=numpy.unique(
                numpy.concatenate([pairs.training, *(table.training() for table in tables.values())])
            ),
        )

    def _frozen(self) -> dict[str, KeyTable]:
        if self._tables is None:
            firsts = numpy.cumsum([0, *map(len, self._added)])
            splits = numpy.array([self._splits[first] if first < len(self._splits) else "" for first in firsts[:-1]])
            sizes = [len(part) for part in self._added]
            by_record = numpy.repeat(splits, sizes) if len(splits) else numpy.zeros(0, dtype="U1")
            self._tables = {}
            for name in _KIND_OF:
                keys, owners = _flat([getattr(part, name) for part in self._added])
                if name in ("prompt", "folded"):
                    telling = _telling(keys, by_record[owners], by_record) & self._leaks.prompts
                    keys, owners = keys[telling], owners[telling]
                self._tables[name] = KeyTable(keys, owners)
            prompts = _flat([part.prompt_grams for part in self._added])
            answers = _flat([part.answer_grams for part in self._added])
            self._grams = GramTable(prompts, answers, self._leaks.common)
            self._added.clear()
        return self._tables


_KIND_OF = {"record": "record", "prompt": "prompt", "folded": "normalised", "worded": "normalised"}


def _flat(parts: Sequence[Ragged]) -> Flat:
    """Values of several chunks, and the record that each belongs to, numbered through."""
    firsts = accumulate([0, *map(len, parts)])
    owners = [first + part.owners() for first, part in zip(firsts, parts, strict=False)]
    values = [numpy.zeros(0, dtype=numpy.uint64), *(part.values for part in parts)]
    return numpy.concatenate(values), numpy.concatenate([numpy.zeros(0, dtype=numpy.int64), *owners])


def _telling(keys: numpy.ndarray, splits: numpy.ndarray, all_splits: numpy.ndarray) -> numpy.ndarray:
    """Which prompts say anything: those that no more than half of their split's records share."""
    telling = numpy.ones(len(keys), dtype=bool)
    for split in numpy.unique(splits):
        mine = numpy.flatnonzero(splits == split)
        _, members, counts = numpy.unique(keys[mine], return_inverse=True, return_counts=True)
        shared = (counts >= _SAYS_NOTHING) & (2 * counts > (all_splits == split).sum())
        telling[mine] = ~shared[members]
    return telling


def _contents(record: Record) -> list[str]:
    return [token_text(record.tokens)] if record.tokens is not None else list(record.references)


def _answer_keys(prompt: str | None, answers: list[str]) -> list[int]:
    return [number("content", answer) if prompt is None else number("pair", prompt, answer) for answer in answers]


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _rounded_up(share: float) -> float:
    return math.ceil(share * 1000) / 1000
