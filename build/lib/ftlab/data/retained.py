"""Retention sets in batches.

A text is cut into windows that share one token each, so that every token but the text's first is predicted once, from
what stands before it in its window. Of records that ask something it is the answers that are predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ftlab.data.cache import key_of
from ftlab.data.collators import PadCollator, Prompt, PromptCollator, Row
from ftlab.data.encoder import Encoder
from ftlab.data.judging import Judging
from ftlab.data.records import Record
from ftlab.data.retention import RetentionSet, refuse_same_names
from ftlab.errors import UserError

LONGEST_WINDOW = 2048
"""Tokens of a window, where nothing is said and the network's context is longer."""
_BATCH_TOKENS = 8192
"""That a device takes at once, however many rows that are."""


@dataclass(frozen=True)
class Document:
    """One document of a set, as it is measured.

    Args:
        source: Where it stands.
        rows: Its windows, or its answers after the prompt.
        record: It itself, where it is to be answered.
    """

    source: str
    rows: tuple[Row, ...]
    record: Record | None = None


class RetentionData(LightningDataModule):
    """Retention sets in batches, for trainer.predict: rows for the loss, a loader a set, then prompts.

    Args:
        sets: What is measured.
        encoder: Fits the network.
        context: Of the network, in tokens, where it is known.
        batch_size: Records of a batch of one process.
        workers: Processes that put batches together, beside the main one.
        room: Tokens that generation adds.

    Raises:
        UserError: Two sets have one name.
    """

    def __init__(
        self,
        sets: Sequence[RetentionSet],
        encoder: Encoder,
        context: int | None,
        batch_size: int,
        workers: int,
        room: int,
    ) -> None:
        super().__init__()
        refuse_same_names(sets)
        self.sets = tuple(sets)
        self.encoder = encoder
        self.room = room
        self._context = context or LONGEST_WINDOW
        self._batch_size = batch_size
        self._workers = workers

    @property
    def names(self) -> list[str]:
        """Of the sets, in order: that of a loader of rows is its number."""
        return [kept.name for kept in self.sets]

    def only(self, names: Sequence[str]) -> RetentionData:
        """The same with these sets alone."""
        sets = [kept for kept in self.sets if kept.name in names]
        return RetentionData(sets, self.encoder, self._context, self._batch_size, self._workers, self.room)

    def window(self, kept: RetentionSet) -> int:
        """Tokens of its windows.

        Raises:
            UserError: They are longer than the network's context.
        """
        if kept.window is not None and kept.window > self._context:
            raise UserError(f"{kept.key}: window is {kept.window}, beyond the network's context of {self._context}")
        return kept.window or min(self._context, LONGEST_WINDOW)

    def key(self, name: str) -> str:
        """A hash of what is measured: the set's content and options, and the tokenizer's."""
        kept = self._named(name)
        source, convert = kept.opened()
        options = asdict(kept) | {"path": None, "name": None, "window": self.window(kept)}
        return key_of([options, source.fingerprint(), convert.describe(), self.encoder.fingerprint()])

    @cached_property
    def documents(self) -> dict[str, list[Document]]:
        """The documents of each set, by its name.

        Raises:
            UserError: Nothing is there, it cannot be understood or encoded, or nothing is to be answered.
        """
        return {kept.name: self._documents(kept) for kept in self.sets}

    @property
    def asked(self) -> list[tuple[str, Document]]:
        """What is answered, with the name of its set: the place in here is that of a prompt's batch."""
        return [
            (name, document) for name, documents in self.documents.items() for document in documents if document.record
        ]

    def predict_dataloader(self) -> list[DataLoader]:
        """This process's share of the rows of each set, and of the prompts where there are any."""
        collate = PadCollator(self.encoder.pad_id)
        loaders = []
        for documents in self.documents.values():
            rows = [row for document in documents for row in document.rows]
            lengths = [len(row.input_ids) for row in rows]
            loaders.append(self._judging(max(lengths)).loader(rows, lengths, collate))
        if self.asked:
            records = [document.record for _, document in self.asked if document.record]
            prompts = [Prompt(n, ids) for n, ids in enumerate(self.encoder.prompts_ids(records, self.room))]
            lengths = [len(prompt.input_ids) for prompt in prompts]
            loaders.append(self._judging(1).loader(prompts, lengths, PromptCollator(self.encoder.pad_id)))
        return loaders

    def _judging(self, longest: int) -> Judging:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Judging(max(1, min(self._batch_size, _BATCH_TOKENS // longest)), self._workers, rank, world)

    def _named(self, name: str) -> RetentionSet:
        return next(kept for kept in self.sets if kept.name == name)

    def _documents(self, kept: RetentionSet) -> list[Document]:
        records = kept.records()
        texts = [record for record in records if not record.context]
        ids = self.encoder.texts_ids([record for record in texts if record.tokens is None])
        window = self.window(kept)
        documents = []
        for record in texts:
            tokens = next(ids) if record.tokens is None else list(record.tokens)
            documents.append(Document(record.source, tuple(windows(tokens, window, record.source))))
        asking = [record for record in records if record.context]
        if kept.score and not asking:
            raise UserError(f"{kept.key}: score asks for answers, and running text asks nothing: leave it out")
        for record, encoded in zip(asking, self.encoder.encode_all(asking), strict=True):
            rows = tuple(Row(one.input_ids, one.spans, None, record.source) for one in encoded.examples)
            documents.append(Document(record.source, rows, record if kept.score else None))
        measured = [document for document in documents if document.rows]
        if len(measured) < 2:
            raise UserError(f"{kept.key}: {len(measured)} documents of {kept.path} have a token to predict; give more")
        return _told_apart(measured)


def windows(ids: Sequence[int], length: int, source: str) -> Iterator[Row]:
    """Windows of at most `length` tokens in which each token of `ids` but the first is a target once."""
    for start in range(0, len(ids) - 1, length - 1):
        window = list(ids[start : start + length])
        yield Row(window, [(1, len(window))], None, source)


def _told_apart(documents: list[Document]) -> list[Document]:
    """Each with a name of its own: a set of several files may call two of them the same."""
    seen: dict[str, int] = {}
    named = []
    for document in documents:
        seen[document.source] = count = seen.get(document.source, 0) + 1
        if count > 1:
            source = f"{document.source} ({count})"
            rows = tuple(replace(row, source=source) for row in document.rows)
            document = replace(document, source=source, rows=rows)
        named.append(document)
    return named
