"""Brings the parts of a preparation together: duplicates, splits, leaks, and the files of a prepared set."""

from __future__ import annotations

import json
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy
import pyarrow

from ftlab.data.duplicates import DuplicateIndex
from ftlab.data.leaks import Fingerprints, LeakIndex, LeakReport
from ftlab.data.preparation import Part, Stages
from ftlab.data.records import SPLITS, Split
from ftlab.data.store import ABSENT, ROWS, split_number
from ftlab.errors import UserError


class Builder:
    """Takes parts in order and writes a prepared set into `directory`.

    Args:
        directory: An empty directory.
        stages: What the parts went through.
    """

    def __init__(self, directory: Path, stages: Stages) -> None:
        self._directory = directory
        self._stages = stages
        self._duplicates = DuplicateIndex(stages.duplicates)
        self._writer = pyarrow.ipc.new_file(str(directory / "rows.arrow"), ROWS)
        self._texts = (directory / "records.jsonl").open("w", encoding="utf-8")
        self._dropped = (directory / "dropped.jsonl").open("w", encoding="utf-8")
        self._refused_leaks = directory.parent / f"{directory.name.removesuffix('.unfinished')}.leaks.jsonl"
        self._fingerprints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # goes with the builder
        self._record_count = 0
        self._by_record: dict[str, list[numpy.ndarray]] = {"keys": [], "strata": [], "origins": [], "splits": []}
        self._by_row: dict[str, list[numpy.ndarray]] = {"lengths": [], "targets": [], "records": []}
        self._strata: dict[str | None, int] = {}
        self._read: dict[str, dict[str, Any]] = {}
        self._rules: Counter[str] = Counter()
        self._mended = 0
        self._truncated = 0

    def add(self, part: Part) -> None:
        """Writes what is new in a part."""
        origin, split = part.task.origin, part.task.split
        source = self._stages.sources[origin]
        read = {"read": 0, "format": source.convert.describe(), "split": "pool" if source.files.pooled else split}
        self._read.setdefault(source.files.splits[split].name, read)["read"] += part.read
        self._mended += part.changed
        self._truncated += part.truncated
        for dropped in part.dropped:
            self._drop(dropped)
        keep = self._new(part)
        numbers = numpy.full(len(keep), ABSENT, dtype=numpy.int64)
        numbers[keep] = self._record_count + numpy.arange(int(keep.sum()))
        rows = keep[part.row_records] if len(part.row_records) else numpy.zeros(0, dtype=bool)
        self._writer.write_batch(part.rows.filter(pyarrow.array(rows)))
        strata = [self._strata.setdefault(stratum, len(self._strata)) for stratum in part.strata]
        records = {
            "keys": part.keys,
            "strata": numpy.array(strata, dtype=numpy.int32),
            "origins": numpy.full(len(keep), origin, dtype=numpy.int16),
            "splits": numpy.full(len(keep), split_number(split), dtype=numpy.int8),
        }
        for name, array in records.items():
            self._by_record[name].append(array[keep])
        for name, array in {"lengths": part.lengths, "targets": part.targets}.items():
            self._by_row[name].append(array[rows])
        self._by_row["records"].append(numbers[part.row_records][rows])
        for number, text in zip(numbers.tolist(), part.texts, strict=True):
            if number != ABSENT and text:
                self._texts.write(f"{number}\t{text}\n")
        if part.fingerprints is not None:
            sources = [source for source, kept in zip(part.sources, keep.tolist(), strict=True) if kept]
            pickle.dump((part.fingerprints.select(keep), sources), self._fingerprints, pickle.HIGHEST_PROTOCOL)
        self._record_count += int(keep.sum())

    def finish(self, benchmarks: Iterable[tuple[Fingerprints, list[str]]] = ()) -> None:
        """Splits, checks for leaks, and writes index and report.

        Args:
            benchmarks: Fingerprints and sources of records that training must not overlap with.

        Raises:
            UserError: Too many evaluation records are found among the training records; nothing is left to train on.
        """
        self._writer.close()
        self._texts.close()
        records = {name: _joined(arrays) for name, arrays in self._by_record.items()}
        rows = {name: _joined(arrays) for name, arrays in self._by_row.items()}
        splits = self._assigned(records)
        leaks = self._leaks(splits, benchmarks)
        self._dropped.close()
        row_splits = splits[rows["records"]] if len(splits) else splits
        if not (row_splits == split_number("train")).any() and "train" in self._given():
            read = sum(source["read"] for source in self._read.values())
            raise UserError(
                f"data.path: of the {read} records read from {', '.join(self._read)} none is left "
                f"to train on ({_listed(self._rules)}); see data.clean, data.duplicates and data.overflow"
            )
        numpy.savez(
            self._directory / "index.npz",
            split=row_splits,
            lengths=rows["lengths"],
            targets=rows["targets"],
            records=rows["records"],
            origins=records["origins"][rows["records"]],
        )
        self._report(rows, leaks)

    def _new(self, part: Part) -> numpy.ndarray:
        """Which records of a part repeat none before; records that only judge are left as they were given."""
        keep = numpy.ones(len(part.keys), dtype=bool)
        for place, signature in enumerate(part.signatures):
            found = self._duplicates.repeats(signature, part.sources[place])
            if found:
                rule, first = found
                keep[place] = False
                text = {"text": part.previews[place], "repeats": first}
                self._drop({"rule": rule, "source": part.sources[place], **text})
        return keep

    def _drop(self, dropped: dict[str, str]) -> None:
        self._rules[dropped["rule"].split(":")[0]] += 1
        self._dropped.write(json.dumps(dropped, ensure_ascii=False) + "\n")

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
            for _, fingerprints, sources in self._spilled(splits == split_number(split)):
                index.add_evaluation(split, fingerprints, sources)
        numbers = [numpy.zeros(0, dtype=numpy.int64)]
        for chosen, fingerprints, sources in self._spilled(splits == split_number("train")):
            index.match_training(fingerprints, sources)
            numbers.append(chosen)
        report = index.report()
        listed = [asdict(leak) for leak in report.listed]
        refusal = report.refusal(self._refused_leaks)
        _write_lines(self._refused_leaks if refusal else self._directory / "leaks.jsonl", listed)
        if refusal:
            raise refusal
        if self._stages.leaks.action == "drop":
            leaking = numpy.concatenate(numbers)[report.training_to_drop]
            splits[leaking] = ABSENT
            self._rules["leak"] += len(leaking)
        return report

    def _spilled(self, wanted: numpy.ndarray) -> Iterator[tuple[numpy.ndarray, Fingerprints, list[str]]]:
        """Numbers, fingerprints and sources of the wanted records, chunk by chunk as they were added."""
        self._fingerprints.seek(0)
        start = 0
        while True:
            try:
                fingerprints, sources = pickle.load(self._fingerprints)
            except EOFError:
                return
            mask = wanted[start : start + len(sources)]
            numbers = start + numpy.flatnonzero(mask)
            start += len(sources)
            if mask.any():
                yield numbers, fingerprints.select(mask), [sources[place] for place in numpy.flatnonzero(mask)]

    def _report(self, rows: dict[str, numpy.ndarray], leaks: LeakReport | None) -> None:
        report = {
            "sources": self._read,
            "read": sum(source["read"] for source in self._read.values()),
            "mended": self._mended,
            "dropped": dict(self._rules),
            "leaks": None if leaks is None else {"evaluated": leaks.evaluated, "counts": leaks.counts},
            "truncated": self._truncated,
        }
        (self._directory / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def _joined(arrays: list[numpy.ndarray]) -> numpy.ndarray:
    return numpy.concatenate(arrays) if arrays else numpy.zeros(0, dtype=numpy.int64)


def _listed(rules: Counter[str]) -> str:
    return ", ".join(f"{rule} {count}" for rule, count in rules.most_common()) or "nothing was left out"


def _write_lines(path: Path, lines: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
