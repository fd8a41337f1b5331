"""The data of an experiment as its options describe them: which sources, understood how, prepared where.

`Corpus.prepared` is the one door to prepared rows: it finds them in the cache, or makes them there.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ftlab.data.assignment import Splits
from ftlab.data.building import Builder
from ftlab.data.cache import built, key_of
from ftlab.data.cleaning import Cleaning
from ftlab.data.duplicates import Duplicates
from ftlab.data.encoder import Encoder
from ftlab.data.formats import Format, recognise
from ftlab.data.leaks import Fingerprints, Leaks
from ftlab.data.mixing import Source
from ftlab.data.preparation import Opened, Stages, parts, tasks, worker_count
from ftlab.data.progress import counted
from ftlab.data.records import SPLITS, Record, Split, group_by_prompt
from ftlab.data.retention import RetentionSet, options_of, passages
from ftlab.data.sources import OpenedSource, SplitSource, cache_dir, open_source
from ftlab.data.store import Prepared
from ftlab.errors import UserError

# files of this package that decide no prepared row; a change in any other makes rows anew
_NO_ROWS = {
    "__init__",
    "cache",
    "collators",
    "judging",
    "layout",
    "loader",
    "mixing",
    "module",
    "packing",
    "progress",
    "remainder",
    "retained",
    "samplers",
    "stream_loader",
    "streaming",
    "training",
    "workers",
}
_PACKAGES = ("datasketch", "jinja2", "tokenizers", "transformers")


@dataclass(frozen=True)
class Corpus:
    """Sources and all that is done to them before they are batches; plain options, nothing is read yet.

    Args:
        sources: Where records come from.
        format: How their columns are read, where a source does not say otherwise.
        cleaning: What is mended and what is left out.
        duplicates: Which training records are the same.
        splits: How records are shared out where files do not say it.
        leaks: What is done about evaluation records that also train.
        sample_by: What is one record of a text file.
        workers: Processes that prepare; None decides by size.
        cache: Directory for prepared rows; None for the user's own.
        wanted: The splits that are prepared; whatever the others' files hold is left alone.
        retention: What must not be trained on, or nobody could tell whether it was forgotten.
    """

    sources: tuple[Source, ...]
    format: Format
    cleaning: Cleaning
    duplicates: Duplicates
    splits: Splits
    leaks: Leaks
    sample_by: Any
    workers: int | None
    cache: str | None
    wanted: tuple[Split, ...] = SPLITS
    retention: tuple[RetentionSet, ...] = ()

    @property
    def name(self) -> str:
        """The paths, for messages."""
        return ", ".join(source.path for source in self.sources)

    @cached_property
    def files(self) -> tuple[OpenedSource, ...]:
        """What lies at the sources' paths, of the splits that are wanted; no record is read."""
        return tuple(
            replace(found, splits={split: files for split, files in found.splits.items() if split in self.wanted})
            for found in self._found
        )

    @cached_property
    def _found(self) -> tuple[OpenedSource, ...]:
        return tuple(self._find(source) for source in self.sources)

    def of(self, wanted: tuple[Split, ...]) -> Corpus:
        """The same of these splits alone, with formats known from the first records of all."""
        return replace(self, wanted=wanted)

    def _find(self, source: Source) -> OpenedSource:
        return open_source(source.path, source.sample_by or self.sample_by, source.limit)

    @cached_property
    def opened(self) -> tuple[Opened, ...]:
        """The sources with their formats, known from their first records."""
        opened = (self._open(source, found) for source, found in zip(self.sources, self._found, strict=True))
        return tuple(replace(each, files=files) for each, files in zip(opened, self.files, strict=True))

    def _open(self, source: Source, files: OpenedSource, answers: bool = True) -> Opened:
        own: dict[str, Any] = {
            "kind": source.format,
            "prompt": source.prompt,
            "response": source.response,
            "function": source.function,
        }
        format = replace(self.format, **{name: value for name, value in own.items() if value is not None})
        first = next(iter(files.splits.values())).first()
        return Opened(files, recognise(format, self.cleaning.columns(first), answers))

    def has(self, split: Split) -> bool:
        """Whether files or shares give the split; reads no records."""
        return any(split in self.splits.available(found.pooled, set(found.splits)) for found in self.files)

    def prepared(self, encoder: Encoder) -> Prepared:
        """The rows, encoded by `encoder`: from the cache, or made now, by this process alone.

        Raises:
            UserError: Whatever is wrong with the data, in one sentence.
        """
        root = Path(self.cache) if self.cache else cache_dir()
        return Prepared(built(root / "prepared", self.key(encoder), lambda directory: self._build(directory, encoder)))

    def key(self, encoder: Encoder, mark: Callable[[SplitSource], str] = SplitSource.fingerprint) -> str:
        """A hash of everything that decides the rows: contents, options, tokenizer, template, code.

        Of files their names count, by which records are called in lists, and not where they lie.

        Of a user's function its module counts, not what this imports.

        Args:
            encoder: Encodes the rows.
            mark: Says what a split's files hold.
        """
        opened = self.opened
        functions = {name for source in self.sources if (name := source.function or self.format.function)}
        own = (file for file in sorted(Path(__file__).parent.glob("*.py")) if file.stem not in _NO_ROWS)
        return key_of(
            {
                "code": [file.read_text(encoding="utf-8") for file in own],
                "functions": {name: _written(name) for name in functions},
                "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
                "unicode": unicodedata.unidata_version,
                "sources": [
                    asdict(source)
                    | {"weight": None, "epochs": None, "path": None, "pooled": each.files.pooled}
                    | {"convert": each.convert.describe()}
                    | {split: [files.labels, mark(files)] for split, files in each.files.splits.items()}
                    for source, each in zip(self.sources, opened, strict=True)
                ],
                "against": [
                    {split: files.fingerprint() for split, files in self._benchmark(path).splits.items()}
                    for path in self.leaks.against
                ],
                "options": [
                    asdict(part)
                    for part in (
                        self.format,
                        self.cleaning,
                        self.duplicates,
                        self.splits,
                        replace(self.leaks, against=()),
                    )
                ],
                "sample_by": self.sample_by,
                "encoder": encoder.fingerprint(),
            }
            | ({"retention": options_of(self.retention)} if self._holds_apart else {})
        )

    def stages(self, encoder: Encoder) -> Stages:
        """What every chunk goes through."""
        judged = any(self.has(split) for split in ("validation", "test"))
        compare = self.leaks.action != "ignore" and (judged or bool(self.leaks.against)) and self.has("train")
        apart = self._holds_apart
        return Stages(self.opened, self.cleaning, self.duplicates, self.splits, self.leaks, encoder, compare, apart)

    @property
    def _holds_apart(self) -> bool:
        return bool(self.retention) and self.has("train")

    def _build(self, directory: Path, encoder: Encoder) -> None:
        stages = self.stages(encoder)
        made = parts(stages, tasks(self.opened), worker_count(self.opened, self.workers))
        with closing(Builder(directory, stages)) as builder, closing(made):
            with counted(self.name, self.opened) as count:
                for part in made:
                    builder.add(part)
                    count(part)
            builder.finish(self.benchmarks(), self.apart())

    def benchmarks(self) -> Iterator[tuple[Any, list[str]]]:
        """What training must not overlap with: every record of the files of `leaks.against`.

        They are read as the data are; where they have not the columns for it, by their own.
        """
        for path in self.leaks.against:
            files = self._benchmark(path)
            try:
                opened = self._open(Source(path), files, answers=False)
            except UserError:
                first = next(iter(files.splits.values())).first()
                opened = Opened(files, recognise(Format(), self.cleaning.columns(first), answers=False))
            for task in tasks([opened]):
                records = [self._asked(opened, raw) for raw in task.chunk.records()]
                kept = [record for record in records if record is not None]
                yield self.leaks.fingerprints(kept), [record.source for record in kept]

    def apart(self) -> Iterator[tuple[str, Fingerprints, list[str]]]:
        """The retention sets by name: what training must not hold."""
        for kept in self.retention if self._holds_apart else ():
            records = [part for record in kept.records() for part in passages(record, self.leaks.ngram)]
            yield kept.name, self.leaks.fingerprints(records), [record.source for record in records]

    def _benchmark(self, path: str) -> OpenedSource:
        """A file of `leaks.against`; of running text every line is a record, or a whole benchmark would be one."""
        return self._find(Source(path, sample_by="line"))

    def prompts(self, split: Split) -> list[Record]:
        """The records of a split's files, grouped by prompt, references or not; of pooled files all."""
        asking = [self._open(source, found, False) for source, found in zip(self.sources, self.files, strict=True)]
        given = [opened for opened in asking if opened.files.pooled or split in opened.files.splits]
        asked = (
            self._asked(opened, raw)
            for opened in given
            for raw in opened.files.splits["train" if opened.files.pooled else split].records()
        )
        groups = group_by_prompt((number, record) for number, record in enumerate(asked) if record is not None)
        return [group.record for group in groups]

    def _asked(self, opened: Opened, raw: Any) -> Record | None:
        return opened.convert.convert(self.cleaning.columns(raw), answers=False)


def _written(function: str) -> list[str]:
    """The source of a user's function and of the module that names it, as far as there is any."""
    module, _, name = function.rpartition(".")
    named = importlib.import_module(module)
    sources = []
    for written in (named, inspect.unwrap(getattr(named, name))):
        with suppress(OSError, TypeError):  # in C, or typed in
            sources.append(inspect.getsource(written))
    return sources
