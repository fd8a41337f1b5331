"""Training from sets that are too large for memory, or to be prepared first: read and encoded while the network trains.

Nothing of training is written. Rows come in the order of the sources and are shuffled within windows. The batches are
those of prepared rows with the same `shuffle_window`, to the token: window w of epoch e is in both shuffled by the same
function of (seed, e, w).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy
import pyarrow

from ftlab.data.assignment import Splits
from ftlab.data.building import repeats
from ftlab.data.cache import key_of
from ftlab.data.collators import Row
from ftlab.data.corpus import Corpus
from ftlab.data.duplicates import DuplicateIndex
from ftlab.data.encoder import Encoder
from ftlab.data.leaks import Fingerprints, LeakIndex
from ftlab.data.mixing import Mixing, interleave
from ftlab.data.preparation import Part, Task, parts
from ftlab.data.records import Split
from ftlab.data.retention import refusal
from ftlab.data.sources import SplitSource
from ftlab.data.store import Prepared, row_at
from ftlab.errors import UserError

_JUDGING: tuple[Split, ...] = ("validation", "test")
_DROPPED = "dropped "
_CHUNK = 1000  # evaluation records that are made comparable at a time


class Stream:
    """The training rows of a corpus, prepared anew in every pass, and its evaluation splits, prepared once.

    Memory is taken for a chunk of each source, and for what tells duplicates apart (see DuplicateIndex).

    Args:
        corpus: The sources and what is done to their records.
        encoder: Fits the network.
        mixing: In what proportion rows are taken from several sources.
        seed: Seed of the draws.

    Raises:
        UserError: Something is asked for that only all records at once can tell.
    """

    def __init__(self, corpus: Corpus, encoder: Encoder, mixing: Mixing, seed: int) -> None:
        self._corpus = corpus
        self._encoder = encoder
        self._mixing = mixing
        self._seed = seed
        # nothing is carved out: what a file gives for training trains
        self._stages = replace(corpus.stages(encoder), splits=Splits(0, 0))
        self._counts: Counter[str] = Counter()
        self._refuse()

    @cached_property
    def evaluation(self) -> Prepared:
        """Validation and test, from the cache or prepared now."""
        return self._corpus.of(_JUDGING).prepared(self._encoder)

    @cached_property
    def key(self) -> str:
        """A hash of what decides the rows, as `Corpus.key`, but of files' names and sizes alone: their contents would
        have to be read first."""
        mixed = [asdict(self._mixing), [(source.weight, source.epochs) for source in self._corpus.sources]]
        trained = replace(self._corpus, retention=())  # what is only measured decides no row
        return key_of([trained.key(self._encoder, _outline), mixed])

    @property
    def summary(self) -> dict[str, Any]:
        """What was read in the pass that has come furthest, and what became of it."""
        dropped = {rule.removeprefix(_DROPPED): n for rule, n in self._counts.items() if rule.startswith(_DROPPED)}
        counts = {f"train_{name}": n for name, n in self._counts.items() if not name.startswith(_DROPPED)}
        return {"streaming": True, **counts, "train_dropped": dropped}

    def rows(self) -> Iterator[Row]:
        """One pass over the sources.

        Raises:
            UserError: As a preparation raises, when the record's turn comes; a training record that is also found in
                evaluation; no row is left.
        """
        counts: Counter[str] = Counter(read=0, rows=0)
        duplicates, leaks = DuplicateIndex(self._stages.duplicates), self._leak_index()
        apart = self._index_apart()
        sources = [
            partial(self._source, origin, duplicates, leaks, apart, counts) for origin in range(len(self._corpus.files))
        ]
        yield from interleave(sources, self._corpus.sources, self._mixing, self._seed)
        if not counts["rows"]:
            left_out = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
            raise UserError(
                f"data.path: {self._corpus.name} has no row to train on ({left_out}); see data.clean, data.duplicates, "
                "data.leaks and data.overflow"
            )

    def _source(
        self,
        origin: int,
        duplicates: DuplicateIndex,
        leaks: LeakIndex | None,
        apart: LeakIndex | None,
        counts: Counter[str],
    ) -> Iterator[Row]:
        files = self._corpus.files[origin].splits.get("train")
        chunks = files.chunks() if files else ()
        made = parts(self._stages, (Task(chunk, origin, "train") for chunk in chunks), self._corpus.workers or 1)
        with closing(made):
            for part in made:
                rules = Counter(dropped["rule"].split(":")[0] for dropped in part.dropped)
                keep = self._new(part, duplicates, rules)
                if leaks is not None:
                    keep = _without_leaks(part, keep, leaks, self._stages.leaks.action == "drop", rules)
                if apart is not None:
                    _refuse_retained(part, keep, apart)
                mask = keep[part.row_records] if len(part.row_records) else numpy.zeros(0, dtype=bool)
                rows = part.rows.filter(pyarrow.array(mask))  # a copy: a row that is held holds no whole chunk
                counts.update(
                    read=part.read,
                    rows=rows.num_rows,
                    tokens=int(part.lengths[mask].sum()),
                    target_tokens=int(part.targets[mask].sum()),
                    truncated=int(part.truncated[keep].sum()),
                    **{f"{_DROPPED}{rule}": count for rule, count in rules.items()},
                )
                if counts["read"] > self._counts["read"]:
                    self._counts = counts.copy()
                for place, record in enumerate(part.row_records[mask].tolist()):
                    yield row_at(rows, place, part.sources[record])

    def _new(self, part: Part, duplicates: DuplicateIndex, rules: Counter[str]) -> numpy.ndarray:
        """Which records repeat none before; in a source that comes again a record does not repeat itself."""
        keep = numpy.ones(len(part.keys), dtype=bool)
        names = [f"{part.task.origin}/{source}" for source in part.sources]  # two sources may call records the same
        for place, (rule, first) in repeats(duplicates, part.signatures, names).items():
            if first != names[place]:
                keep[place] = False
                rules[rule] += 1
        return keep

    def _leak_index(self) -> LeakIndex | None:
        if not self._stages.compare:
            return None
        index = LeakIndex(self._stages.leaks)
        for split, fingerprints, sources in self._judging:
            index.add_evaluation(split, fingerprints, sources)
        return index

    def _index_apart(self) -> LeakIndex | None:
        if not self._stages.apart:
            return None
        index = LeakIndex(self._stages.leaks)
        for name, fingerprints, sources in self._apart:
            index.add_evaluation(name, fingerprints, sources)
        return index

    @cached_property
    def _apart(self) -> list[tuple[str, Fingerprints, list[str]]]:
        return list(self._corpus.apart())

    @cached_property
    def _judging(self) -> list[tuple[str, Fingerprints, list[str]]]:
        judging: list[tuple[str, Fingerprints, list[str]]] = [
            ("benchmark", fingerprints, sources) for fingerprints, sources in self._corpus.benchmarks()
        ]
        for split in _JUDGING:
            records = (record for _, record in self.evaluation.records(split))
            while chunk := list(islice(records, _CHUNK)):
                sources = [record.source for record in chunk]
                judging.append((split, self._stages.leaks.fingerprints(chunk), sources))
        return judging

    def _refuse(self) -> None:
        corpus, duplicates = self._corpus, self._corpus.duplicates
        for source, files in zip(corpus.sources, corpus.files, strict=True):
            given = set(files.splits)
            if corpus.splits.available(files.pooled, given) > given:
                raise UserError(
                    f"data.streaming: {source.path} has no file for validation or test, and of a stream none can be "
                    "carved out; give files of their own, or set data.splits.validation and data.splits.test to 0"
                )
        if corpus.format.stratify_by is not None:
            raise UserError("data.stratify_by: nothing is carved out of a stream, so nothing is spread; leave it out")
        if (self._stages.compare or self._stages.apart) and self._stages.leaks.ngram is not None:
            raise UserError(
                "data.leaks.ngram: which n-grams are too common to count only all of training tells, which a stream "
                "does not know; set it to null, or data.leaks.action to ignore and leave data.retention out"
            )
        if len(corpus.sources) == 1:
            return
        interleave([list] * len(corpus.sources), corpus.sources, self._mixing, 0)  # which refuses what needs sizes
        if self._mixing.how != "concatenate" and (duplicates.exact or duplicates.near is not None):
            raise UserError(
                "data.duplicates: where streams are drawn from, which of several equal records is the first depends on "
                "the draws; set exact to false and near to null, or data.mixing.how to concatenate"
            )


def _without_leaks(part: Part, keep: numpy.ndarray, index: LeakIndex, drop: bool, rules: Counter[str]) -> numpy.ndarray:
    """Leaves out the kept records that are found in evaluation, or refuses.

    Raises:
        UserError: More has leaked than is allowed, and training records are not to be dropped.
    """
    assert part.fingerprints is not None
    places = numpy.flatnonzero(keep)
    met = index.match_training(part.fingerprints.select(keep), [part.sources[place] for place in places])
    if len(met) and (refusal := index.report().refusal()):
        raise refusal
    if not drop or not len(met):
        return keep
    rules["leak"] += len(met)
    kept = keep.copy()
    kept[places[met]] = False
    return kept


def _refuse_retained(part: Part, keep: numpy.ndarray, index: LeakIndex) -> None:
    """Refuses kept records that a retention set holds.

    Raises:
        UserError: There are more than is allowed.
    """
    assert part.fingerprints is not None
    met = index.match_training(part.fingerprints.select(keep), [part.sources[p] for p in numpy.flatnonzero(keep)])
    if len(met) and (refused := refusal(index.report())):
        raise refused


def _outline(source: SplitSource) -> str:
    """What can be said of a split's records without reading them."""
    files = [(file.relative_to(source.root).as_posix(), file.stat().st_size) for file in source.files]
    return repr((files, source.dataset._fingerprint if source.dataset is not None else None))
