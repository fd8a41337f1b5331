"""Brings the parts of a preparation together: duplicates, splits, leaks, and the files of a prepared set."""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

import numpy
import pyarrow

from ftlab.data.duplicates import DuplicateIndex, Signature
from ftlab.data.leaks import Fingerprints, LeakIndex, LeakReport
from ftlab.data.preparation import Part, Stages
from ftlab.data.records import SPLITS, Split
from ftlab.data.retention import refusal
from ftlab.data.store import ABSENT, NAMES, ROWS, split_number
from ftlab.errors import UserError


class _Compared(NamedTuple):
    """What records are looked through for leaks by; it waits on disk until all splits are known."""

    numbers: numpy.ndarray
    fingerprints: Fingerprints
    sources: list[str]
    previews: list[str]

    def select(self, mask: numpy.ndarray) -> _Compared:
        """Those of some records; mask (records,) bool."""
        places = numpy.flatnonzero(mask).tolist()
        sources, previews = ([texts[place] for place in places] for texts in (self.sources, self.previews))
        return _Compared(self.numbers[mask], self.fingerprints.select(mask), sources, previews)


class Builder:
    """Takes parts in order and writes a prepared set into `directory`; `close` it, whatever becomes of it.

    Args:
        directory: An empty directory.
        stages: What the parts went through.
    """

    def __init__(self, directory: Path, stages: Stages) -> None:
        self._directory = directory
        self._stages = stages
        self._duplicates = DuplicateIndex(stages.duplicates)
        self._refused_leaks = directory.parent / f"{directory.name.removesuffix('.unfinished')}.leaks.jsonl"
        self._files = ExitStack()
        self._writer = self._files.enter_context(pyarrow.ipc.new_file(str(directory / "rows.arrow"), ROWS))
        self._names = self._files.enter_context(pyarrow.ipc.new_file(str(directory / "names.arrow"), NAMES))
        self._texts = self._files.enter_context(_created(directory / "records.jsonl"))
        self._dropped = self._files.enter_context(_created(directory / "dropped.jsonl"))
        self._compared: IO[bytes] = self._files.enter_context(tempfile.TemporaryFile(dir=directory))  # noqa: SIM115
        self._record_count = 0
        names = ("keys", "strata", "origins", "splits", "mended", "truncated")
        self._by_record: dict[str, list[numpy.ndarray]] = {name: [] for name in names}
        by_row = ("lengths", "targets", "stops", "answers", "records")
        self._by_row: dict[str, list[numpy.ndarray]] = {name: [] for name in by_row}
        self._strata: dict[str | None, int] = {}
        self._read: dict[str, dict[str, Any]] = {}
        self._rules: Counter[str] = Counter()
        self._answers_dropped = 0

    def add(self, part: Part) -> None:
        """Writes what is new in a part."""
        origin, split = part.task.origin, part.task.split
        source = self._stages.sources[origin]
        read = {"read": 0, "format": source.convert.describe(), "split": "pool" if source.files.pooled else split}
        self._read.setdefault(source.files.splits[split].name, read)["read"] += part.read
        self._answers_dropped += part.answers_dropped
        for dropped in part.dropped:
            self._drop(dropped)
        keep = self._new(part)
        numbers = numpy.full(len(keep), ABSENT, dtype=numpy.int64)
        numbers[keep] = self._record_count + numpy.arange(int(keep.sum()))
        rows = keep[part.row_records]
        self._writer.write_batch(part.rows.filter(pyarrow.array(rows)))
        sources = [part.sources[place].encode(errors="backslashreplace") for place in part.row_records[rows]]
        names = pyarrow.array(sources, pyarrow.binary()).cast(pyarrow.string())
        self._names.write_batch(pyarrow.RecordBatch.from_arrays([names], schema=NAMES))
        strata = [self._strata.setdefault(stratum, len(self._strata)) for stratum in part.strata]
        records = {
            "keys": part.keys,
            "strata": numpy.array(strata, dtype=numpy.int32),
            "origins": numpy.full(len(keep), origin, dtype=numpy.int16),
            "splits": numpy.full(len(keep), split_number(split), dtype=numpy.int8),
            "mended": part.mended,
            "truncated": part.truncated,
        }
        for name, array in records.items():
            self._by_record[name].append(array[keep])
        for name in ("lengths", "targets", "stops", "answers"):
            self._by_row[name].append(getattr(part, name)[rows])
        self._by_row["records"].append(numbers[part.row_records][rows])
        for number, text in zip(numbers.tolist(), part.texts, strict=True):
            if number != ABSENT and text:
                self._texts.write(f"{number}\t{text}\n")
        if part.fingerprints is not None:
            previews = part.previews or [""] * len(keep)
            compared = _Compared(numbers, part.fingerprints, part.sources, previews).select(keep)
            pickle.dump(compared, self._compared, pickle.HIGHEST_PROTOCOL)
        self._record_count += int(keep.sum())

    def finish(
        self,
        benchmarks: Iterable[tuple[Fingerprints, list[str]]] = (),
        apart: Iterable[tuple[str, Fingerprints, list[str]]] = (),
    ) -> None:
        """Splits, checks for leaks, and writes index and report.

        Args:
            benchmarks: Fingerprints and sources of records that training must not overlap with.
            apart: Names, fingerprints and sources of retention sets.

        Raises:
            UserError: Too many evaluation records are found among the training records, or a retention set is; nothing
                is left to train on.
        """
        records = {name: _joined(arrays) for name, arrays in self._by_record.items()}
        rows = {name: _joined(arrays) for name, arrays in self._by_row.items()}
        splits = self._assigned(records)
        leaks = self._leaks(splits, benchmarks)
        if self._stages.apart:
            self._refuse_retained(splits, apart)
        row_splits = splits[rows["records"]] if len(splits) else splits
        if not (row_splits == split_number("train")).any() and "train" in self._given():
            read = sum(source["read"] for source in self._read.values())
            raise UserError(
                f"data.path: of the {read} records read from {', '.join(self._read)} none is left "
                f"to train on ({_listed(self._rules)}); see data.clean, data.duplicates and data.overflow"
            )
        stops = self._stops(rows, row_splits == split_number("train"))
        numpy.savez(
            self._directory / "index.npz",
            split=row_splits,
            lengths=rows["lengths"],
            targets=rows["targets"],
            records=rows["records"],
            origins=records["origins"][rows["records"]],
        )
        self._writer.close()
        self._names.close()
        self._report(records, splits, leaks, stops)

    def close(self) -> None:
        """Closes the files."""
        self._files.close()

    def _stops(self, rows: dict[str, numpy.ndarray], training: numpy.ndarray) -> dict[str, int]:
        """How many training rows answer something, and how many of them end in a stop token.

        Raises:
            UserError: None does: the network would never learn to end an answer.
        """
        answers = rows["answers"].astype(bool) & training
        stopped = int((answers & rows["stops"].astype(bool)).sum())
        if answers.any() and not stopped:
            raise UserError(
                f"data.path: none of the {int(answers.sum())} training rows ends in a stop token, all being cut at "
                "their end, so the network would never learn to stop; set data.truncate_from to left, or raise "
                "data.max_length"
            )
        return {"answers": int(answers.sum()), "stopped": stopped}

    def _new(self, part: Part) -> numpy.ndarray:
        """Which records of a part repeat none before; records that only judge are left as they were given."""
        keep = numpy.ones(len(part.keys), dtype=bool)
        for place, (rule, first) in repeats(self._duplicates, part.signatures, part.sources).items():
            keep[place] = False
            text = {"text": part.previews[place], "repeats": first}
            self._drop({"rule": rule, "source": part.sources[place], **text})
        return keep

    def _drop(self, dropped: dict[str, str]) -> None:
        self._rules[dropped["rule"].split(":")[0]] += 1
        self._dropped.write(_line(dropped))

    def _given(self) -> set[Split]:
        return {split for source in self._stages.sources for split in source.files.splits}

    def _assigned(self, records: dict[str, numpy.ndarray]) -> numpy.ndarray:
        """The split of every record: its file's, or carved out of the training file of its source."""
        splits = records["splits"].copy()
        for origin, source in enumerate(self._stages.sources):
            mine = (records["origins"] == origin) & (records["splits"] == split_number("train"))
            if mine.any():
                strata = records["strata"][mine] if len(self._strata) > 1 else None
                files = source.files
                carved = self._stages.splits.assign(records["keys"][mine], strata, files.pooled, set(files.splits))
                self._stages.splits.refuse_empty(carved, files.pooled, set(files.splits))
                splits[mine] = carved
        return splits

    def _leaks(self, splits: numpy.ndarray, benchmarks: Iterable[tuple[Fingerprints, list[str]]]) -> LeakReport | None:
        """Compares training with all that judges; training records that leak are taken out where that is asked for.

        Raises:
            UserError: More has leaked than is allowed.
        """
        if not self._stages.compare:
            return None
        index = LeakIndex(self._stages.leaks)
        for fingerprints, sources in benchmarks:
            index.add_evaluation("benchmark", fingerprints, sources)
        for split in SPLITS[1:]:
            for judging in self._chosen(splits == split_number(split)):
                index.add_evaluation(split, judging.fingerprints, judging.sources)
        numbers = [numpy.zeros(0, dtype=numpy.int64)]
        for training in self._chosen(splits == split_number("train")):
            index.match_training(training.fingerprints, training.sources)
            numbers.append(training.numbers)
        report = index.report()
        listed = [asdict(leak) for leak in report.listed]
        refusal = report.refusal(self._refused_leaks)
        with _created(self._refused_leaks if refusal else self._directory / "leaks.jsonl") as file:
            file.writelines(_line(leak) for leak in listed)
        if refusal:
            raise refusal
        if self._stages.leaks.action == "drop":
            leaking = numpy.zeros(len(splits), dtype=bool)
            leaking[numpy.concatenate(numbers)[report.training_to_drop]] = True
            self._drop_leaking(leaking, report)
            splits[leaking] = ABSENT
        return report

    def _refuse_retained(self, splits: numpy.ndarray, apart: Iterable[tuple[str, Fingerprints, list[str]]]) -> None:
        """Compares what trains with retention sets.

        Raises:
            UserError: It holds them.
        """
        index = LeakIndex(self._stages.leaks)
        for name, fingerprints, sources in apart:
            index.add_evaluation(name, fingerprints, sources)
        for training in self._chosen(splits == split_number("train")):
            index.match_training(training.fingerprints, training.sources)
        if refused := refusal(index.report()):
            raise refused

    def _drop_leaking(self, leaking: numpy.ndarray, report: LeakReport) -> None:
        evaluations = {leak.training: leak.evaluation for leak in reversed(report.listed)}  # the surest is kept
        for training in self._chosen(leaking):
            for source, preview in zip(training.sources, training.previews, strict=True):
                repeats = {"repeats": evaluations[source]} if source in evaluations else {}
                self._drop({"rule": "leak", "source": source, "text": preview, **repeats})

    def _chosen(self, wanted: numpy.ndarray) -> Iterator[_Compared]:
        """The wanted of all records that are compared, chunk by chunk as they were added."""
        self._compared.seek(0)
        while True:
            try:
                compared: _Compared = pickle.load(self._compared)
            except EOFError:
                return
            mask = wanted[compared.numbers]
            if mask.any():
                yield compared.select(mask)

    def _report(
        self, records: dict[str, numpy.ndarray], splits: numpy.ndarray, leaks: LeakReport | None, stops: dict[str, int]
    ) -> None:
        kept = splits != ABSENT
        report = {
            "sources": self._read,
            "read": sum(source["read"] for source in self._read.values()),
            "mended": int(records["mended"][kept].sum()),
            "dropped": dict(self._rules),
            "kept": int(kept.sum()),
            "leaks": None if leaks is None else {"evaluated": leaks.evaluated, "counts": leaks.counts},
            "truncated": int(records["truncated"][kept].sum()),
            "answers_dropped": self._answers_dropped,
            "stops": stops,
            "fingerprint": _digest(self._directory / "rows.arrow", self._directory / "index.npz"),
        }
        with _created(self._directory / "report.json") as file:
            file.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def repeats(
    index: DuplicateIndex, signatures: Sequence[Signature], sources: Sequence[str]
) -> dict[int, tuple[str, str]]:
    """Which records of a chunk repeat an earlier one, by place: the rule, and where the first stands."""
    found = {place: index.repeats(signature, sources[place]) for place, signature in enumerate(signatures)}
    return {place: repeated for place, repeated in found.items() if repeated is not None}


def _joined(arrays: list[numpy.ndarray]) -> numpy.ndarray:
    return numpy.concatenate(arrays) if arrays else numpy.zeros(0, dtype=numpy.int64)


def _listed(rules: Counter[str]) -> str:
    return ", ".join(f"{rule} {count}" for rule, count in rules.most_common()) or "nothing was left out"


def _digest(*files: Path) -> str:
    whole = hashlib.blake2b(digest_size=12)
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "blake2b").digest())
    return whole.hexdigest()


def _line(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _created(path: Path) -> TextIO:
    # half a surrogate pair, as in a file's name, becomes \ud800, which is JSON's own way to write it
    return path.open("w", encoding="utf-8", errors="backslashreplace")
