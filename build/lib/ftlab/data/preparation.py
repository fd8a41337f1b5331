"""From sources to prepared rows: read, clean, understand, encode, compare, split, check for leaks, and count it all.

Work goes in chunks: what concerns one record alone (`Stages`) is done in worker processes, what concerns several
(duplicates, splits, leaks) as the chunks come back in order. Memory grows by a few bytes a record, not with the text.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain

import numpy
import pyarrow

from ftlab.data.assignment import Splits
from ftlab.data.chunks import Chunk
from ftlab.data.cleaning import Cleaning
from ftlab.data.duplicates import Duplicates, Signature
from ftlab.data.encoder import Encoder
from ftlab.data.examples import Encoded, Example
from ftlab.data.formats import Convert
from ftlab.data.leaks import Fingerprints, Leaks
from ftlab.data.records import SPLITS, Malformed, RawRecord, Record, Split
from ftlab.data.sources import OpenedSource
from ftlab.data.store import ROWS, record_to_json, split_number
from ftlab.errors import UserError

SMALL_BYTES = 32_000_000  # below this, starting workers costs more than they save
PREVIEW = 200  # characters of a dropped record that are written down


@dataclass(frozen=True)
class Opened:
    """A source whose files have been found and whose format is known."""

    files: OpenedSource
    convert: Convert


@dataclass(frozen=True)
class Task:
    """A chunk and where it belongs; `split` is that of its file."""

    chunk: Chunk
    origin: int
    split: Split


@dataclass
class Part:
    """What became of a chunk: by record, but for those from `rows` to `row_records`, which are by row."""

    task: Task
    read: int
    mended: numpy.ndarray  # whether a text was changed
    sources: list[str]
    previews: list[str]
    keys: numpy.ndarray
    strata: list[str | None]
    texts: list[str]  # empty where the record is not scored
    signatures: list[Signature]
    fingerprints: Fingerprints | None
    rows: pyarrow.RecordBatch
    lengths: numpy.ndarray
    targets: numpy.ndarray
    stops: numpy.ndarray  # whether what is learned ends in a stop token
    answers: numpy.ndarray  # whether it answers something, so that it should
    row_records: numpy.ndarray  # place in this part of the record that a row belongs to
    truncated: numpy.ndarray  # examples that were cut
    dropped: list[dict[str, str]] = field(default_factory=list)
    answers_dropped: int = 0  # of records that have others


@dataclass(frozen=True)
class Stages:
    """What is done to a chunk, record by record; goes to worker processes."""

    sources: tuple[Opened, ...]
    cleaning: Cleaning
    duplicates: Duplicates
    splits: Splits
    leaks: Leaks
    encoder: Encoder
    compare: bool  # whether any split is there for training records to leak into
    apart: bool = False  # whether there are retention sets that training must not hold

    def __call__(self, task: Task) -> Part:
        """Reads, cleans, understands and encodes one chunk.

        Raises:
            UserError: A record is malformed and `cleaning.malformed` is refuse, or cannot be encoded.
        """
        raws = task.chunk.records()
        dropped: list[dict[str, str]] = []
        records: list[Record] = []
        mended: set[str] = set()
        answers_dropped = 0
        convert = self.sources[task.origin].convert
        for raw in raws:
            cleaned = self.cleaning.columns(raw) if self.cleaning.takes(raw) else None
            record, rule, fewer = self._understood(convert, cleaned) if cleaned else (None, "where", 0)
            answers_dropped += fewer
            if record is None:
                text = json.dumps(raw.columns, default=str, ensure_ascii=False)
                dropped.append(_dropped(rule, raw.source, text[:PREVIEW].encode(errors="replace").decode()))
            else:
                records.append(record)
                mended |= {record.source} if cleaned is not raw else set()
        records, encoded = self._encoded(records, dropped)
        kept: list[Record] = []
        examples: list[Example] = []
        row_records: list[int] = []
        truncated: list[int] = []
        for record, result in zip(records, encoded, strict=True):
            # running text in pieces of which none has a target is left without any rule
            left_out = self._too_few(result.examples) if result.examples else result.dropped or "no_target"
            if left_out:
                dropped.append(_dropped(left_out, record.source, _preview(record)))
                continue
            row_records += [len(kept)] * len(result.examples)
            examples += result.examples
            kept.append(record)
            truncated.append(result.truncated)
            answers_dropped += result.answers_dropped
        keys = numpy.array([self.splits.key(record) for record in kept], dtype=numpy.uint64)
        training = task.split == "train"
        return Part(
            task=task,
            read=len(raws),
            mended=numpy.array([record.source in mended for record in kept], dtype=bool),
            sources=[record.source for record in kept],
            previews=[_preview(record) for record in kept] if training else [],
            keys=keys,
            strata=[record.stratum for record in kept],
            texts=[record_to_json(r) if s else "" for r, s in zip(kept, self._scored(task, keys), strict=True)],
            signatures=self.duplicates.signature(kept) if training else [],
            fingerprints=self.leaks.fingerprints(kept) if self.compare or self.apart else None,
            rows=_record_batch(examples),
            lengths=numpy.array([len(example.input_ids) for example in examples], dtype=numpy.int32),
            targets=numpy.array([example.targets for example in examples], dtype=numpy.int32),
            stops=numpy.array([self._stops(example) for example in examples], dtype=bool),
            answers=numpy.array([bool(kept[place].context) for place in row_records], dtype=bool),
            row_records=numpy.array(row_records, dtype=numpy.int64),
            dropped=dropped,
            truncated=numpy.array(truncated, dtype=numpy.int32),
            answers_dropped=answers_dropped,
        )

    def _understood(self, convert: Convert, raw: RawRecord) -> tuple[Record | None, str, int]:
        """The record, or the rule that drops it; and how many empty answers it has lost."""
        try:
            record = convert.convert(raw)
        except Malformed as error:
            if self.cleaning.malformed == "refuse":
                raise
            return None, f"malformed: {error}", 0
        if record is None:
            return None, "function", 0
        judged, rule = self.cleaning.judge(record)
        return judged, rule or "", len(record.answers) - len(judged.answers) if judged else 0

    def _encoded(self, records: list[Record], dropped: list[dict[str, str]]) -> tuple[list[Record], list[Encoded]]:
        """The records and what they are encoded into; one by one where some have to be left out as malformed."""
        try:
            return records, self.encoder.encode_all(records)
        except Malformed:
            if self.cleaning.malformed == "refuse":
                raise
        kept, encoded = [], []
        for record in records:
            try:
                encoded += self.encoder.encode_all([record])
                kept.append(record)
            except Malformed as error:
                dropped.append(_dropped(f"malformed: {error}", record.source, _preview(record)))
        return kept, encoded

    def _stops(self, example: Example) -> bool:
        return example.input_ids[example.spans[-1][1] - 1] in self.encoder.stop_ids

    def _too_few(self, examples: tuple[Example, ...]) -> str | None:
        least = self.cleaning.min_tokens
        return "too_few_tokens" if least and all(len(example.input_ids) < least for example in examples) else None

    def _scored(self, task: Task, keys: numpy.ndarray) -> Iterable[bool]:
        """Which records may be scored, so that their text has to be kept."""
        if task.split != "train":
            return [True] * len(keys)
        if not self.splits.online or self.sources[task.origin].convert.format.stratify_by:
            return [True] * len(keys)
        files = self.sources[task.origin].files
        numbers = self.splits.assign(keys, None, files.pooled, set(files.splits))
        return (numbers != split_number("train")).tolist()


def tasks(sources: Iterable[Opened]) -> Iterator[Task]:
    """Every chunk of every source: the splits in their order, so that training comes first."""
    for origin, source in enumerate(sources):
        for split in SPLITS:
            if split in source.files.splits:
                for chunk in source.files.splits[split].chunks():
                    yield Task(chunk, origin, split)


def worker_count(sources: Iterable[Opened], asked: int | None) -> int:
    """Processes that prepare: as asked, else one for small sets and a core each, up to 8, for others."""
    if asked is not None:
        return asked
    size = sum(split.bytes for source in sources for split in source.files.splits.values())
    return 1 if size < SMALL_BYTES else min(8, len(os.sched_getaffinity(0)))


def parts(stages: Stages, work: Iterable[Task], workers: int) -> Generator[Part, None, None]:
    """The parts of all tasks, in order, made by `workers` processes; one works right here.

    Raises:
        UserError: As `Stages`, or a worker was killed.
    """
    if workers == 1:
        yield from map(stages, work)
        return
    with ExitStack() as stack:
        # each worker has one core: threads of the tokenizer would only push each other off it
        stack.enter_context(_environment("TOKENIZERS_PARALLELISM", "false"))
        context = multiprocessing.get_context("fork")
        pool = stack.enter_context(ProcessPoolExecutor(workers, context, initializer=_take, initargs=(stages,)))
        waiting: deque[Future[Part]] = deque()
        try:
            for task in work:
                waiting.append(pool.submit(_work, task))
                if len(waiting) > 2 * workers:  # no more is read than is soon needed
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that prepared data was killed, most likely for want of memory; set "
                "data.preparation_workers to fewer"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


_stages: Stages | None = None


def _take(stages: Stages) -> None:
    global _stages
    _stages = stages
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Ends a worker whose parent was killed: it would wait for ever, and hold the cache's lock."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(task: Task) -> Part:
    assert _stages is not None
    return _stages(task)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """A variable that is set for as long as the block lasts."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _dropped(rule: str, source: str, text: str) -> dict[str, str]:
    return {"rule": rule, "source": source, "text": text[:PREVIEW]}


def _preview(record: Record) -> str:
    return " ⇒ ".join([record.prompt[: PREVIEW // 2], *record.references[:1]])[:PREVIEW]


def _record_batch(examples: list[Example]) -> pyarrow.RecordBatch:
    kinds: list[list[Example | None]] = [[*examples], [example.rejected for example in examples]]
    columns = []
    for side in kinds:
        columns.append(_lists([None if example is None else example.input_ids for example in side]))
        columns.append(_lists([None if e is None else list(chain.from_iterable(e.spans)) for e in side]))
    return pyarrow.RecordBatch.from_arrays(columns, schema=ROWS)


def _lists(values: list[list[int] | None]) -> pyarrow.Array:
    """A column of lists; flat first, since Arrow takes three times as long over lists in lists."""
    flat = numpy.array(list(chain.from_iterable(value for value in values if value)), dtype=numpy.int32)
    offsets = numpy.cumsum([0, *(len(value) if value else 0 for value in values)], dtype=numpy.int32)
    absent = pyarrow.array([value is None for value in values], type=pyarrow.bool_())
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(flat), mask=absent)
