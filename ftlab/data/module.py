"""FinetuneData: from a path to batches, for Lightning.

Each split goes one way: raw records, records, rows (encoded pairs of prompt and reference), batches; and to be
scored, records grouped by prompt. Every stage is made when first asked for and kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from ftlab.data.batching import Batch, LengthBatchSampler, PadCollator, Prompt, PromptCollator, ShuffledBatchSampler
from ftlab.data.encoding import IGNORED, Encoded, Encoder, Example, Overflow, Pair, TemplateKind
from ftlab.data.records import Split
from ftlab.data.splits import SplitRecords, evenly_spaced
from ftlab.data.templates import Record, group_by_prompt
from ftlab.errors import UserError
from ftlab.networks import Network


class FinetuneData(LightningDataModule):
    """Prompts and responses from files or the hub, encoded for one network.

    A single file is split by a hash of each record's prompt, so that adding records never moves old ones; in a
    directory the files train, dev and test decide, and validation is carved out of train where there is no dev.

    Args:
        network: Network whose tokenizer and context the data must fit.
        path: File (.jsonl, .json, .csv, .parquet), directory with train, dev and test files, or name of a set on the
            hub (owner/name, or owner/name:subset).
        prompt: Format string over a record's columns, like "Summarise:\\n{dialogue}". Without it and `response` the
            columns are recognised: prompt and completion or response; instruction, input and output.
        response: The same for the answer; a column that holds a list gives several references.
        template: chat renders prompt and response by the tokenizer's chat template, plain joins them, auto takes
            chat where the tokenizer has a template.
        max_length: Most tokens of prompt, response and stop token together; by default the network's context.
        overflow: What becomes of a longer record: refuse stops with its name, drop leaves it out, truncate cuts the
            front of the prompt.
        batch_size: Records of a training batch on one device.
        eval_batch_size: Records of an evaluation batch on one device; by default as in training, so that judging takes
            no more memory.
        validation_share: Share of the prompts carved out for validation where no file is given for it.
        test_share: Share of the prompts of a single file carved out for test.
        validation_limit: Most rows that validation during training takes, evenly spaced over the split.
        test_limit: Most prompts that are scored, evenly spaced over the split.
        workers: Processes that put batches together, beside the main one.
        seed: Chooses the order of training records, together with the epoch.
    """

    def __init__(
        self,
        network: Network,
        path: str,
        prompt: str | None = None,
        response: str | None = None,
        template: TemplateKind = "auto",
        max_length: int | None = None,
        overflow: Overflow = "refuse",
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        validation_share: float = 0.05,
        test_share: float = 0.05,
        validation_limit: int | None = None,
        test_limit: int | None = None,
        workers: int = 0,
        seed: int = 42,
    ) -> None:
        super().__init__()
        at_least_one = {
            "max_length": max_length,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "validation_limit": validation_limit,
            "test_limit": test_limit,
        }
        for name, value in at_least_one.items():
            if value is not None and value < 1:
                raise UserError(f"data.{name} is {value}; give 1 or more")
        for name, value in {"workers": workers, "seed": seed}.items():
            if value < 0:
                raise UserError(f"data.{name} is {value}; give 0 or more")
        self.network = network
        self.path = path
        self.prompt = prompt
        self.response = response
        self.template = template
        self.max_length = max_length
        self.overflow = overflow
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.validation_share = validation_share
        self.test_share = test_share
        self.validation_limit = validation_limit
        self.test_limit = test_limit
        self.workers = workers
        self.seed = seed
        self.room = 0
        """Tokens that generation will add: with `overflow` truncate, prompts are cut to leave them room."""
        self.answers_in_validation = False
        """Whether validation judges answers beside the loss: too slow in the course of training."""
        self._fitted: dict[Split, Encoded] = {}
        self._scored: dict[Split, tuple[list[Record], list[Example]]] = {}

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder that fits the network.

        Raises:
            UserError: `max_length` is beyond the network's context, or the tokenizer cannot be used (see Encoder).
        """
        context = self.network.context_length()
        if self.max_length and context and self.max_length > context:
            raise UserError(
                f"data.max_length is {self.max_length}, but {self.network.path} has a context of {context} tokens; "
                f"give {context} or less"
            )
        return Encoder(self.network.tokenizer(), self.template, self.max_length or context, self.overflow)

    @cached_property
    def _splits(self) -> SplitRecords:
        return SplitRecords(self.path, self.prompt, self.response, self.validation_share, self.test_share)

    def prepare_data(self) -> None:
        """Finds the files, or downloads the set: on one process of each node, before the others look."""
        _ = self._splits

    def setup(self, stage: str | None = None) -> None:
        """Reads and encodes what the stage needs, once.

        Args:
            stage: fit (and None) takes train and validation, validate only that, test what is scored, predict the
                prompts.
        """
        if stage in (None, "fit"):
            self._encoded("train")
        if stage == "validate" or (stage in (None, "fit") and self.has_split("validation")):
            _ = self._scoring("validation") if self.answers_in_validation else self._encoded("validation")
        if stage == "test":
            self._scoring(self.scored_split)
        if stage == "predict":
            _ = self.prompts

    def has_split(self, split: Split) -> bool:
        """Whether there is such a split, by file or by share; reads nothing."""
        return self._splits.has(split)

    @property
    def scored_split(self) -> Split:
        """What `ftlab test` scores: test, and without test records validation."""
        return "test" if self.has_split("test") else "validation"

    def rows(self, split: Split) -> list[Example]:
        """Encoded pairs of prompt and reference, in the order of the file; validation under `validation_limit`."""
        return self._encoded(split).kept

    def records(self, split: Split) -> list[Record]:
        """Records grouped by prompt, for generation and scoring; validation and test under `test_limit`.

        With `overflow` drop a record is left out when none of its rows fits.
        """
        return self._scoring(split)[0]

    @cached_property
    def prompts(self) -> list[Record]:
        """What `ftlab predict` answers, grouped by prompt: a single file whole, else the test records, without limit.

        References may be missing.
        """
        return group_by_prompt(self._splits.prompts())

    def train_dataloader(self) -> StatefulDataLoader:
        """Shuffled rows, this rank's share; its state resumes in mid-epoch."""
        sampler = self._train_sampler(*self._rank_and_world())
        if self.trainer:
            # resumed between epochs, Lightning makes the iterator first and names the epoch (this number) afterwards
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata's own call
            return StatefulDataLoader(
                _Items(self.rows("train")),
                batch_sampler=sampler,
                collate_fn=PadCollator(self.encoder.pad_id),
                num_workers=self.workers,
                pin_memory=torch.cuda.is_available(),
            )

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Rows for the loss, this rank's share, and the prompts where `answers_in_validation`; nothing without
        validation."""
        if not self.has_split("validation"):
            return []
        if self.answers_in_validation:
            return self.scoring_loaders("validation", self.room)
        return self._rows_loader(self.rows("validation"))

    def test_dataloader(self) -> list[DataLoader]:
        """`scoring_loaders` of `scored_split`."""
        return self.scoring_loaders(self.scored_split, self.room)

    def predict_dataloader(self) -> DataLoader:
        """`prompts`, this rank's share; batches are PromptBatch."""
        return self._prompt_loader(self.prompts, self.room)

    def scoring_loaders(self, split: Split, room: int = 0) -> list[DataLoader]:
        """Two loaders: every row of the records that are scored (for the loss), and their prompts (for generation)."""
        return [self._rows_loader(self._scoring(split)[1]), self.prompt_loader(split, room)]

    def prompt_loader(self, split: Split, room: int = 0) -> DataLoader:
        """Prompts of `records(split)`, this rank's share; batches are PromptBatch.

        Args:
            split: Whose prompts.
            room: Tokens that generation will add. With `overflow` truncate the front of a prompt is cut until they
                fit; otherwise prompts are left whole, and it is for the one who generates to see that they do.

        Raises:
            UserError: `room` leaves none for a prompt that has to be cut.
        """
        return self._prompt_loader(self.records(split), room)

    def _prompt_loader(self, records: list[Record], room: int = 0) -> DataLoader:
        ids = self.encoder.prompts_ids([record.prompt for record in records], room)
        prompts = [Prompt(index, row) for index, row in enumerate(ids)]
        return self._eval_loader(prompts, [len(row) for row in ids], PromptCollator(self.encoder.pad_id))

    def train_batches_per_epoch(self, world_size: int = 1) -> int:
        """Batches that each of `world_size` ranks takes in an epoch."""
        return len(self._train_sampler(0, world_size))

    def batches(self) -> Iterator[Batch]:
        """Training batches in the order of the first epoch, the same on every rank, for methods that look first."""
        rows, collate = self.rows("train"), PadCollator(self.encoder.pad_id)
        for indices in self._train_sampler(0, 1):
            yield collate([rows[index] for index in indices])

    def summary(self) -> dict[str, int]:
        """Sizes of what has been encoded so far, for the log."""
        sizes: dict[str, int] = {}
        for split, encoded in self._fitted.items():
            rows = encoded.kept
            sizes[f"{split}_rows"] = len(rows)
            sizes[f"{split}_tokens"] = sum(len(row.input_ids) for row in rows)
            sizes[f"{split}_target_tokens"] = sum(label != IGNORED for row in rows for label in row.labels[1:])
            sizes[f"{split}_longest"] = max(len(row.input_ids) for row in rows)
            sizes[f"{split}_dropped"] = encoded.dropped
            sizes[f"{split}_truncated"] = encoded.truncated
        for split, (records, rows) in self._scored.items():
            sizes[f"{split}_scored_records"] = len(records)
            sizes[f"{split}_scored_rows"] = len(rows)
        return sizes

    def _encoded(self, split: Split) -> Encoded:
        if split not in self._fitted:
            pairs = _pairs(self._splits.records(split))
            if split == "validation":
                pairs = evenly_spaced(pairs, self.validation_limit)
            self._fitted[split] = self._encode(pairs, split)
        return self._fitted[split]

    def _scoring(self, split: Split) -> tuple[list[Record], list[Example]]:
        """The records that are scored and all rows with their prompts."""
        if split not in self._scored:
            records = self._splits.records(split)
            grouped = group_by_prompt(records)
            if split != "train":
                grouped = evenly_spaced(grouped, self.test_limit)
            chosen = {record.prompt for record in grouped}
            pairs = [pair for pair in _pairs(records) if pair.prompt in chosen]
            encoded = self._encode(pairs, split)
            fitting = {pair.prompt for pair, row in zip(pairs, encoded.examples, strict=True) if row}
            self._scored[split] = [record for record in grouped if record.prompt in fitting], encoded.kept
        return self._scored[split]

    def _encode(self, pairs: list[Pair], split: Split) -> Encoded:
        encoded = self.encoder.encode_all(pairs)
        if not encoded.kept:
            raise UserError(
                f"data.overflow: drop leaves none of the {len(pairs)} {split} rows of {self.path} at data.max_length "
                f"{self.encoder.max_length}; raise it or set data.overflow to truncate"
            )
        return encoded

    def _train_sampler(self, rank: int, world_size: int) -> ShuffledBatchSampler:
        size = len(self.rows("train"))
        sampler = ShuffledBatchSampler(size, self.batch_size, self.seed, rank, world_size)
        if not len(sampler):
            raise UserError(
                f"data.path: {self.path} has {size} training rows, too few for {world_size} devices; use fewer"
            )
        return sampler

    def _rows_loader(self, rows: list[Example]) -> DataLoader:
        return self._eval_loader(rows, [len(row.input_ids) for row in rows], PadCollator(self.encoder.pad_id))

    def _eval_loader(self, items: Sequence[Any], lengths: list[int], collate: Any) -> DataLoader:
        return DataLoader(
            _Items(items),
            batch_sampler=LengthBatchSampler(lengths, self.eval_batch_size, *self._rank_and_world()),
            collate_fn=collate,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


class _Items(Dataset):
    """A list as torch's loaders want it typed."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]


def _pairs(records: list[Record]) -> list[Pair]:
    return [Pair(record.prompt, reference, record.source) for record in records for reference in record.references]
