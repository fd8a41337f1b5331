"""How a network is judged: the loss per target token, and scores of the answers that it generates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from ftlab.attention import mask_of
from ftlab.data import FinetuneData
from ftlab.data.records import Split
from ftlab.evaluation.generation import Decoding, generate
from ftlab.evaluation.text_metrics import METRICS, resolve_metrics
from ftlab.modules.devices import gathered
from ftlab.modules.head import Head
from ftlab.modules.isolation import padding_is_unseen
from ftlab.modules.scoring import Tally
from ftlab.modules.sharding.frozen import FrozenShards
from ftlab.modules.sharding.network import Sharded


class JudgedModule(pl.LightningModule):
    """A network in validation, test and prediction.

    Args:
        decoding: How answers are generated.
        metrics: Scores of the answers: see `FinetuneModule`.
    """

    def __init__(self, decoding: Decoding | None = None, metrics: list[str] | None = None) -> None:
        super().__init__()
        self.decoding = decoding or Decoding()
        self.metrics = resolve_metrics(list(METRICS) if metrics is None else metrics)
        self.network: nn.Module | None = None
        self.sharded: Sharded | FrozenShards | None = None
        """The network as its strategy has sharded it."""
        self.told_bounds = False
        """Whether the network is told where the samples of a pack begin: by `ftlab.attention`."""
        self.told_padding = True
        """Whether the network is told where the padding of rows begins, which stands on the right."""
        self.tally = Tally()
        self._head: Head | None = None

    @property
    def data(self) -> FinetuneData:
        """The data module of the trainer."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def forward(self, **inputs: Any) -> Any:
        """The network's own forward."""
        assert self.network is not None
        return self.network(**inputs)

    @property
    def head(self) -> Head:
        """The output layer, by way of which the loss is computed."""
        assert self.network is not None
        if self._head is None or self._head.network is not self.network:  # an export is scored in the place of its run
            self._head = Head(self.network)
        return self._head

    def try_head(self) -> None:
        """Finds by which way the loss is computed, where that is not known yet; to be called by all processes.

        A network that sees no padding is told of none: attention that need not look at a mask is faster.
        """
        if self.head.way is None:
            assert self.network is not None
            device = self.trainer.strategy.root_device
            with self.trainer.precision_plugin.forward_context():
                self.head.try_ways(device)
                self.told_padding = not all(gathered(padding_is_unseen(self.network, device)))

    def on_validation_start(self) -> None:
        """Tries the head: later on processes may have no batch at a time."""
        self.try_head()

    def on_test_start(self) -> None:
        """As in validation."""
        self.try_head()

    def summed_loss(self, batch: dict[str, Any]) -> Tensor:
        """Cross entropy in nats, summed over the targets of `batch`, each predicted from what stands before it."""
        return self.head.summed_loss(
            self._inputs(batch), batch["input_ids"].shape[1], batch["places"], batch["targets"]
        )

    def _losses(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Cross entropy in nats of each target, and to which row it belongs."""
        length = batch["input_ids"].shape[1]
        losses = self.head.losses(self._inputs(batch), length, batch["places"], batch["targets"])
        return losses, batch["places"] // length

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the network takes; said here and not in its configuration, which is saved with its weights."""
        names = ("input_ids", "attention_mask", "position_ids")
        inputs = {name: batch[name] for name in names if name in batch} | {"use_cache": False}
        if not self.told_padding:
            inputs.pop("attention_mask", None)
        if self.told_bounds and "bounds" in batch:
            inputs["attention_mask"] = mask_of(batch["bounds"], batch["input_ids"].device)
        return inputs

    @property
    def keeps_losses(self) -> bool:
        """Whether the loss of each record is kept: where answers are judged, too, and the loss is this class's own."""
        own = type(self).summed_loss is JudgedModule.summed_loss
        return own and self.trainer.state.fn != TrainerFn.FITTING

    def on_predict_start(self) -> None:
        """As in validation."""
        self.try_head()

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds the loss of a batch of rows, or the answers to a batch of prompts, to the tally."""
        if "labels" in batch and self.keeps_losses:
            losses, rows = self._losses(batch)
            self.tally.add_losses(losses, rows, batch["records"])
        elif "labels" in batch:
            self.tally.add_loss(self.summed_loss(batch), batch["target_tokens"])
        else:
            self.tally.add_answers(batch["indices"], self._answers(batch, batch_idx))

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds the answers to a batch of prompts to the tally; of rows, what each comes to."""
        if "labels" in batch:
            losses, rows = self._losses(batch)
            self.tally.add_documents(dataloader_idx, batch["records"], losses, rows)
        else:
            self.tally.add_answers(batch["indices"], self._answers(batch, batch_idx))

    def _answers(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        return self.answers(batch, batch_idx * self.trainer.world_size + self.global_rank)

    def answers(self, batch: dict[str, Any], number: int = 0) -> list[str]:
        """What the network answers to a batch of prompts.

        Args:
            batch: On the device.
            number: Of the batch, where answers are drawn.
        """
        assert self.network is not None
        encoder = self.data.encoder
        decoding = replace(self.decoding, seed=self.decoding.seed + number)  # or every batch draws the same numbers
        tokens = generate(
            self.network, batch["input_ids"], batch["attention_mask"], decoding, encoder.stop_ids, encoder.pad_id
        )
        return [encoder.decode(answer) for answer in tokens]

    def on_validation_epoch_start(self) -> None:
        """Empties the tally."""
        self.tally = Tally()

    def on_test_epoch_start(self) -> None:
        """Empties the tally."""
        self.tally = Tally()

    def on_predict_epoch_start(self) -> None:
        """Empties the tally."""
        self.tally = Tally()

    def on_validation_epoch_end(self) -> None:
        """Logs `val_loss`, `val_perplexity`, and the text scores where answers were generated."""
        self._conclude("val", "validation")

    def on_test_epoch_end(self) -> None:
        """Logs `test_loss`, `test_perplexity`, and the text scores."""
        self._conclude("test", self.data.scored_split)

    def on_predict_epoch_end(self) -> None:
        """Brings the answers of all devices together."""
        self._gather()

    def _gather(self) -> None:
        if self.sharded:
            self.sharded.finish_judging()
        self.tally.gather()

    def _conclude(self, prefix: str, split: Split) -> None:
        self._gather()
        if self.tally.answers:
            self.tally.score(self.data.records(split), self.metrics)
        self.log_dict({f"{prefix}_{name}": value for name, value in self.tally.scores().items()})
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log("step", float(self.global_step))  # the axis of every curve: Lightning's own counts from 0
