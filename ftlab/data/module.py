"""FinetuneData: from paths to batches, for Lightning.

`corpus` prepares rows once and keeps them on disk; here they become batches: which rows, in which order, in which
layout, for which rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ftlab.data.assignment import Splits, evenly_spaced
from ftlab.data.cleaning import Cleaning
from ftlab.data.collators import Batch, PromptBatch
from ftlab.data.corpus import Corpus
from ftlab.data.duplicates import Duplicates
from ftlab.data.encoder import Encoder, Encoding
from ftlab.data.formats import Format, Kind
from ftlab.data.judging import Judging, prompts_loader, rows_loader
from ftlab.data.layout import Batching, Choice
from ftlab.data.leaks import Leaks
from ftlab.data.mixing import Mixing, Source
from ftlab.data.readers import SampleBy
from ftlab.data.records import Record, Split, group_by_prompt
from ftlab.data.retained import RetentionData
from ftlab.data.retention import RetentionSet, refuse_same_names
from ftlab.data.store import Prepared, Rows
from ftlab.data.stream_loader import WINDOW
from ftlab.data.streaming import Stream
from ftlab.data.training import Layout, RowTraining, StreamTraining, Training
from ftlab.data.workers import default_workers, say_if_too_many
from ftlab.errors import UserError
from ftlab.networks import Network


class FinetuneData(LightningDataModule):
    """Records from files or the hub, prepared for one network and put into batches.

    Args:
        network: Network whose tokenizer and context the data must fit.
        path: File, glob, directory with train, dev and test files, URL, or name of a set on the hub (owner/name, or
            owner/name:subset). Files that nothing tells apart are split by a hash of each record's prompt.
        sources: Several paths instead of one, with weights, limits and formats of their own.
        mixing: In what proportion training takes from several sources.
        format: How columns are read: auto finds it by their names.
        prompt: Format string over a record's columns, like "Summarise:\\n{dialogue}", with `response`.
        response: The same for the answer; a column that holds a list gives several references.
        system: System turn for every record that has none; may name columns as `prompt` does.
        function: Dotted path of a function of your own, columns to columns; None from it leaves a record out.
        group_by: Column whose equal values stay together in a split.
        stratify_by: Column over whose values the splits are spread evenly.
        sample_by: What is one record of a text file: the whole, what stands between blank lines, or a line.
        template: auto renders by the tokenizer's chat template where it has one; chat insists on it; plain joins prompt
            and response; or the name of one of its templates, or the path of a .jinja file.
        learn: last trains the answer only, assistant all turns of the assistant, all every token; or a list of roles.
        max_length: Most tokens of an example, stop token included; by default the network's context.
        overflow: What becomes of a longer one: refuse stops with its name, drop leaves it out, truncate cuts it, split
            cuts running text into pieces.
        truncate_from: left cuts the front of the prompt, right the end of the answer.
        clean: What is mended in texts and which records are left out.
        duplicates: Which training records count as the same.
        splits: How records are shared out where files do not say it.
        leaks: What is done about evaluation records that are found in training.
        retention: Texts and tasks that the network is to keep: measured on the base before and on the trained network
            after, and refused where they are also trained on. Another list of them makes no other run.
        batching: pad fills rows up, bucket puts like lengths together, pack joins several records in a row without one
            seeing another; auto chooses pad or bucket (with batch_tokens: bucket or pack) and says why.
        batch_size: Records (packed: rows of max_length tokens) of a training batch on one device.
        batch_tokens: Most tokens of a training batch on one device, padding counted, instead of batch_size.
        micro_batch: Records that a device computes at once, of the batch_size x trainer.accumulate_grad_batches of an
            optimiser step; auto is as many as ftlab plan finds room for. ftlab fit puts the two others in its place.
        micro_batch_memory: That micro_batch auto, or model.gradient_checkpointing auto, may take by plan, such as
            '20 GB'; by default all that the device has.
        eval_batch_size: Records of an evaluation batch on one device; by default batch_size.
        validation_limit: Most rows that validation during training takes, evenly spaced over the split.
        test_limit: Most prompts that are scored, evenly spaced over the split.
        streaming: Prepare training records while training runs, of sets too large for memory, or to be prepared first.
            Validation and test then need files of their own, and trainer.max_steps says where
            training ends; set run.checkpoints.every_n_steps, since no epoch ends before.
        shuffle_window: Training rows that are held and shuffled together, as they come; by default a whole epoch's, and
            with `streaming` 10,000.
        workers: Processes that put batches together, beside the main one; by default some where there is a GPU. With
            `streaming` the main one does.
        preparation_workers: Processes that prepare; by default one for streams and sets under 32 MB, and for others one
            on each core, up to 8.
        cache: Directory for prepared rows; by default $FTLAB_CACHE or the user's cache directory.
        seed: Chooses the order of training records, together with the epoch.
    """

    def __init__(
        self,
        network: Network,
        path: str | None = None,
        sources: list[Source] | None = None,
        mixing: Mixing = Mixing(),  # noqa: B008  # frozen
        format: Kind = "auto",
        prompt: str | None = None,
        response: str | None = None,
        system: str | None = None,
        function: str | None = None,
        group_by: str | None = None,
        stratify_by: str | None = None,
        sample_by: SampleBy = "document",
        template: str = "auto",
        learn: Literal["last", "assistant", "all"] | list[str] = "last",
        max_length: int | None = None,
        overflow: Literal["refuse", "drop", "truncate", "split"] = "refuse",
        truncate_from: Literal["left", "right"] = "left",
        clean: Cleaning = Cleaning(),  # noqa: B008
        duplicates: Duplicates = Duplicates(),  # noqa: B008
        splits: Splits = Splits(),  # noqa: B008
        leaks: Leaks = Leaks(),  # noqa: B008
        retention: list[RetentionSet] | None = None,
        batching: Batching = "auto",
        batch_size: int = 8,
        batch_tokens: int | None = None,
        micro_batch: int | Literal["auto"] | None = None,
        micro_batch_memory: str | None = None,
        eval_batch_size: int | None = None,
        validation_limit: int | None = None,
        test_limit: int | None = None,
        streaming: bool = False,
        shuffle_window: int | None = None,
        workers: int | None = None,
        preparation_workers: int | None = None,
        cache: str | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__()
        at_least_one = {
            "max_length": max_length,
            "batch_size": batch_size,
            "batch_tokens": batch_tokens,
            "eval_batch_size": eval_batch_size,
            "validation_limit": validation_limit,
            "test_limit": test_limit,
            "shuffle_window": shuffle_window,
            "preparation_workers": preparation_workers,
        }
        for name, value in at_least_one.items():
            if value is not None and value < 1:
                raise UserError(f"data.{name} is {value}; give 1 or more")
        for name, value in {"workers": workers, "seed": seed}.items():
            if value is not None and value < 0:
                raise UserError(f"data.{name} is {value}; give 0 or more")
        if micro_batch is not None or micro_batch_memory is not None:
            raise UserError(
                "data.micro_batch is for ftlab fit: give data.batch_size, and the trainer what it accumulates"
            )
        if (path is None) == (sources is None):
            raise UserError("data.path names one source and data.sources a list of them: give one of the two")
        self.network = network
        self.sources = tuple(sources or [Source(str(path))])
        self.mixing = mixing
        self.format = Format(format, prompt, response, system, function, group_by, stratify_by)
        self.sample_by = sample_by
        self.encoding = Encoding(template, learn, max_length, overflow, truncate_from)
        self.cleaning = clean
        self.duplicates = duplicates
        self.splits = splits
        self.leaks = leaks
        self.retention = tuple(retention or ())
        refuse_same_names(self.retention)
        self.batching = batching
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.eval_batch_size = eval_batch_size or batch_size
        self.validation_limit = validation_limit
        self.test_limit = test_limit
        self.streaming = streaming
        self.shuffle_window = WINDOW if streaming and shuffle_window is None else shuffle_window
        self.workers = default_workers() if workers is None else workers
        self.preparation_workers = preparation_workers
        self.cache = cache
        self.seed = seed
        self.room = 0
        """Tokens that generation will add: with `overflow` truncate, prompts are cut to leave them room."""
        self.answers_in_validation = False
        """Whether validation judges answers beside the loss: too slow in the course of training."""
        self._rows: dict[Split, Rows] = {}
        self._scored: dict[Split, tuple[list[Record], Rows]] = {}

    # ---------------------------------------------------------------- what there is

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder that fits the network.

        Raises:
            UserError: `max_length` is beyond the network's context, or the tokenizer cannot be used (see Encoder).
        """
        context, length = self.network.context_length(), self.encoding.max_length
        if length and context and length > context:
            raise UserError(
                f"data.max_length is {length}, but {self.network.path} has a context of {context} tokens; "
                f"give {context} or less"
            )
        return Encoder(self.network.tokenizer(), replace(self.encoding, max_length=length or context))

    @cached_property
    def corpus(self) -> Corpus:
        """What is to be prepared, and how."""
        return Corpus(
            self.sources, self.format, self.cleaning, self.duplicates, self.splits, self.leaks, self.sample_by,
            self.preparation_workers, self.cache, retention=self.retention,
        )  # fmt: skip

    @cached_property
    def prepared(self) -> Prepared:
        """The prepared rows, with `streaming` those that judge: opened from the cache, or made by whichever process
        comes first."""
        return self.stream.evaluation if self.streaming else self.corpus.prepared(self.encoder)

    @cached_property
    def retained(self) -> RetentionData:
        """The retention sets, in batches."""
        context = self.network.context_length()
        return RetentionData(self.retention, self.encoder, context, self.eval_batch_size, self.workers, self.room)

    @cached_property
    def stream(self) -> Stream:
        """The training rows with `streaming`.

        Raises:
            UserError: An option needs to know all of training.
        """
        return Stream(self.corpus, self.encoder, self.mixing, self.seed)

    def prepare_data(self) -> None:
        """Prepares the rows on one process of each node; the others find them in the cache. To predict takes none."""
        if not (self.trainer and self.trainer.predicting):
            _ = self.prepared

    def setup(self, stage: str | None = None) -> None:
        """Opens what the stage needs and refuses what it lacks.

        Args:
            stage: fit (and None) takes train and validation, validate only that, test what is scored, predict the
                prompts.
        """
        if stage in (None, "fit"):
            _ = (self.layout, self.prepared) if self.streaming else self.rows("train")
        if stage == "validate":
            self.rows("validation")
        if stage == "test":
            self.rows(self.scored_split)
        if stage == "predict":
            _ = self.prompts

    def has_split(self, split: Split) -> bool:
        """Whether there is such a split, by file or by share."""
        return self.corpus.has(split)

    @property
    def has_preferences(self) -> bool:
        """Whether records have a worse answer beside the better one."""
        return any(opened.convert.kind == "preference" for opened in self.corpus.opened)

    @property
    def scored_split(self) -> Split:
        """What `ftlab test` scores: test, and without test records validation."""
        return "test" if self.has_split("test") else "validation"

    def rows(self, split: Split) -> Rows:
        """Encoded rows in the order of the files; validation under `validation_limit`.

        Raises:
            UserError: There is no such split, or nothing has been left of it.
        """
        rows = self._whole(split)
        if split == "validation":
            return rows.chosen(numpy.array(evenly_spaced(range(len(rows)), self.validation_limit)))
        return rows

    def records(self, split: Split) -> list[Record]:
        """Records grouped by prompt, for generation and scoring, under `test_limit`; running text has none."""
        return self._scoring(split)[0]

    @cached_property
    def prompts(self) -> list[Record]:
        """What `ftlab predict` answers, grouped by prompt: pooled files whole, else the test records (or validation's),
        without limit. References may be missing.

        Raises:
            UserError: There is none.
        """
        pooled = any(files.pooled for files in self.corpus.files)
        given = {split for files in self.corpus.files for split in files.splits}
        split = next((split for split in ("test", "validation") if split in given), None)
        if split is None and not pooled:
            found = [group.record for group in group_by_prompt(self.prepared.records("validation"))]
        else:
            found = self.corpus.prompts(split or "train")
        if not found:
            raise UserError(
                f"data.path: {self.corpus.name} has no prompt to answer; give a file, or a test or validation split, "
                "whose records ask something"
            )
        return found

    # ---------------------------------------------------------------- training

    @cached_property
    def training(self) -> Training:
        """How training rows become batches."""
        said = Layout(
            self.batching,
            self.batch_size,
            self.batch_tokens,
            self.shuffle_window,
            self.seed,
            self.encoder.pad_id,
        )
        if self.streaming:
            return StreamTraining(self.stream, said)
        rows = self.rows("train")
        return RowTraining(
            rows,
            self.prepared.fingerprint,
            said,
            self.encoder.max_length or int(rows.lengths.max()),
            self.sources,
            self.mixing,
            self.network.attention,
            self._device,
        )

    @property
    def layout(self) -> Choice:
        """How training rows are laid out in batches, and why."""
        return self.training.layout

    def train_dataloader(self) -> Any:
        """Shuffled rows, this rank's share; its state resumes in mid-epoch. Of a stream all epochs in one."""
        rank, world_size = self._rank_and_world()
        if rank == 0:
            say_if_too_many(self.workers)
        return self.training.loader(rank, world_size, self.workers, self.trainer)

    def train_batches_per_epoch(self, world_size: int = 1) -> int:
        """Batches that each of `world_size` ranks takes in an epoch.

        Raises:
            UserError: Of a stream nobody knows.
        """
        return self.training.batches_per_epoch(world_size)

    def handed_over(self, state: dict[str, Any], steps: int, over: bool) -> tuple[dict[str, Any], int]:
        """Where training goes on that began with other batches, data or devices (see Training.handed_over)."""
        assert self.trainer
        return self.training.handed_over(state, self._rank_and_world()[1], self.trainer, steps, over)

    def identity(self) -> dict[str, Any]:
        """All that training's batches depend on: what a resume must find unchanged."""
        return self.training.identity(*self._rank_and_world())

    def batches(self) -> Iterator[Batch]:
        """Training batches in the order of the first epoch, the same on every rank, for methods that look first."""
        return self.training.batches()

    @property
    def _device(self) -> str:
        if self.trainer:
            return self.trainer.strategy.root_device.type
        return "cuda" if torch.cuda.is_available() else "cpu"

    # ---------------------------------------------------------------- judging

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

    def sample_prompts(self, count: int) -> tuple[list[Record], PromptBatch]:
        """The first validation prompts, and all of them in one batch."""
        records = self.records("validation")[:count]
        [batch] = prompts_loader(self.encoder, records, self.room, Judging(len(records), 0, 0, 1))
        return records, batch

    def _prompt_loader(self, records: list[Record], room: int = 0) -> DataLoader:
        return prompts_loader(self.encoder, records, room, self._judging)

    def _rows_loader(self, rows: Rows) -> DataLoader:
        return rows_loader(self.encoder, rows, self._judging)

    @property
    def _judging(self) -> Judging:
        return Judging(self.eval_batch_size, self.workers, *self._rank_and_world())

    def summary(self) -> dict[str, Any]:
        """Sizes of the prepared splits and what was left out, for the log."""
        return self.prepared.summary() | (self.stream.summary if self.streaming else {})

    def fingerprints(self) -> dict[str, str]:
        """Of the prepared rows, the tokenizer with its template, and what each source's files hold: two runs with the
        same have seen the same. Of a stream, in place of its files, which are not read for it, its key."""
        found = {"rows": self.prepared.fingerprint, "tokenizer": self.encoder.fingerprint()}
        if self.streaming:
            return found | {"stream": self.stream.key}
        for number, files in enumerate(self.corpus.files, 1):
            of = f" of source {number}" if len(self.corpus.files) > 1 else ""
            found |= {f"{split}{of}": source.fingerprint() for split, source in files.splits.items()}
        return found

    def _whole(self, split: Split) -> Rows:
        if split == "train" and self.streaming:
            raise UserError(
                "data.streaming: training rows are read while training runs, and none is at hand; set it to false to "
                "have them counted, or looked at"
            )
        if not self.has_split(split):
            hint = "" if split == "train" or self.streaming else f" or raise data.splits.{split}"
            raise UserError(f"data.path: {self.corpus.name} has no {split} records; add a {split} file{hint}")
        if split not in self._rows:
            self._rows[split] = self.prepared.rows(split)
        rows = self._rows[split]
        if not len(rows):
            raise UserError(
                f"data.path: nothing is left of the {split} records of {self.corpus.name}; ftlab prepare shows what "
                "was left out and why"
            )
        return rows

    def _scoring(self, split: Split) -> tuple[list[Record], Rows]:
        """The records that are scored and all rows with their prompts."""
        if split not in self._scored:
            rows = self._whole(split)
            groups = group_by_prompt(self.prepared.records(split))
            if split != "train":
                groups = evenly_spaced(groups, self.test_limit)
            numbers = numpy.array([number for group in groups for number in group.numbers], dtype=numpy.int64)
            chosen = numpy.isin(rows.records, numbers) if groups else numpy.ones(len(rows), dtype=bool)
            self._scored[split] = [group.record for group in groups], rows.chosen(chosen)
        return self._scored[split]

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
