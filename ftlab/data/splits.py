"""Which records train, which steer and which judge: given files, or a share carved out by a hash of the prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ftlab.data.records import Split, open_source
from ftlab.data.templates import Record, build_prompts, build_records
from ftlab.errors import UserError

T = TypeVar("T")


def assign_split(prompt: str, validation_share: float, test_share: float) -> Split:
    """Gives the split that a prompt belongs to, by nothing but its own content.

    So adding records never moves old ones, records that share a prompt stay together, and neither seed nor order
    matters. Validation takes its share from the low end of the hash and test from the high end: changing one share
    leaves the other's records where they are.
    """
    place = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest()) / 2**64
    if place < validation_share:
        return "validation"
    return "test" if place >= 1 - test_share else "train"


def evenly_spaced(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of the items: every ceil(N / limit)-th from the first on; all of them without a limit."""
    if limit is None or len(items) <= limit:
        return list(items)
    return list(items[:: -(-len(items) // limit)])


class SplitRecords:
    """The records of each split, read when first asked for.

    A single file is shared out among all three splits. In a directory (or a set on the hub) the files decide; only
    where there is none for validation is it carved out of train, and without one for test there are no test records.

    Args:
        path: File, directory or hub name, as `records.open_source` takes it.
        prompt: Format string of the prompt, as `templates.build_records` takes it.
        response: Format string of the response.
        validation_share: Share of the prompts that is carved out for validation.
        test_share: Share of the prompts of a single file that is carved out for test.
    """

    def __init__(
        self, path: str, prompt: str | None, response: str | None, validation_share: float, test_share: float
    ) -> None:
        if min(validation_share, test_share) < 0 or validation_share + test_share >= 1:
            raise UserError(
                f"data.validation_share {validation_share} and data.test_share {test_share} must not be negative "
                "and leave something to train on; together they must stay below 1"
            )
        self._path = path
        self._templates = (prompt, response)
        self._readers = open_source(path)
        given = set(self._readers)
        self._validation_share = 0.0 if "validation" in given or "train" not in given else validation_share
        self._test_share = test_share if Path(path).is_file() else 0.0
        self._files: dict[Split, list[Record]] = {}

    def has(self, split: Split) -> bool:
        """Whether the split exists, without reading it."""
        carved = {"train": False, "validation": self._validation_share > 0, "test": self._test_share > 0}
        return split in self._readers or carved[split]

    def records(self, split: Split) -> list[Record]:
        """One record for each raw one, in the order of the file.

        Raises:
            UserError: There is no such split, it is empty, or its files cannot be read.
        """
        if not self.has(split):
            raise UserError(
                f"data.path: {self._path} has no {split} records; add a {split} file" + self._share_hint(split)
            )
        if split in self._readers and split != "train":
            return self._file(split)
        shares = self._validation_share, self._test_share
        records = [record for record in self._file("train") if assign_split(record.prompt, *shares) == split]
        if not records:
            raise UserError(
                f"data.path: none of the {len(self._file('train'))} records of {self._path} falls into {split}; "
                f"add records, or a {split} file" + self._share_hint(split)
            )
        return records

    def prompts(self) -> list[Record]:
        """What is to be answered, references or not: all of a single file, else test, validation or train."""
        single = Path(self._path).is_file()
        split: Split = next((s for s in ("test", "validation") if self.has(s) and not single), "train")
        if split not in self._readers:  # carved out of train, which has references
            return self.records(split)
        return build_prompts(self._readers[split](), *self._templates)

    def _file(self, split: Split) -> list[Record]:
        if split not in self._files:
            self._files[split] = build_records(self._readers[split](), *self._templates)
        return self._files[split]

    def _share_hint(self, split: Split) -> str:
        return "" if split == "train" else f" or raise data.{split}_share"
