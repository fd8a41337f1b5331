"""Fine-tuning of a causal language model by one Method: the loss, the step, and what a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ftlab.data import FinetuneData
from ftlab.data.examples import IGNORED
from ftlab.data.layout import FLASH
from ftlab.data.records import Split
from ftlab.data.streaming import streamed_steps
from ftlab.data.training import limited
from ftlab.errors import UserError, one_line, out_of_memory
from ftlab.evaluation.generation import Decoding, generate, virtual_tokens
from ftlab.evaluation.text_metrics import METRICS, resolve_metrics
from ftlab.methods import Method
from ftlab.modules.devices import distributed, gathered, summed
from ftlab.modules.isolation import attention_is_isolated
from ftlab.modules.nonfinite import LeftOut, Soundness
from ftlab.modules.optimizers import mark_hidden
from ftlab.modules.resuming import (
    asked_of,
    follow_schedule,
    hand_over_loops,
    refuse_other_batches,
    refuse_other_optimizer,
    refuse_other_tensors,
    take_own_optimizer,
)
from ftlab.modules.schedules import Cosine, Schedule
from ftlab.modules.scoring import Tally
from ftlab.networks import Network

Wish = Literal["save", "stop"]
WISHES: tuple[Wish, ...] = get_args(Wish)


class FinetuneModule(pl.LightningModule):
    """One network, one method.

    The loss is the mean cross entropy of the target tokens of one optimiser step, the same for every split of
    that step into micro-batches and devices: micro-batches contribute sums, and the gradient is divided by the
    number of targets once, before the step.

    Args:
        method: How the network becomes trainable, and what is kept of it.
        network: The pretrained network.
        optimizer: Called with the method's parameter groups.
        schedule: Called with the optimiser and the number of optimiser steps.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them: less memory,
            about a quarter more time.
        decoding: How answers are generated when the network is judged.
        metrics: Scores of the answers: rouge1, rouge2, rougeL, rougeLsum, bleu, chrf, exact_match, or the dotted path
            of a function `(prediction, references) -> float` of your own.
        skip_nonfinite: Optimiser steps that may be left out because their loss or gradient is NaN or infinite; the next
            one ends training. Weights and optimiser stay as they are, and the step counts: the schedule goes on.
        seed: Seeds new weights; on the command line it is `seeds.weights`.
        dropout_seed: Seeds dropout, on each device from the next number on; by default as `seed`.
    """

    def __init__(
        self,
        method: Method,
        network: Network,
        optimizer: OptimizerCallable = AdamW,
        schedule: Schedule | None = None,
        gradient_checkpointing: bool = False,
        decoding: Decoding | None = None,
        metrics: list[str] | None = None,
        skip_nonfinite: int = 0,
        seed: int = 42,
        dropout_seed: int | None = None,
    ) -> None:
        super().__init__()
        if skip_nonfinite < 0:
            raise UserError(f"model.skip_nonfinite is {skip_nonfinite}: give a number of steps, from 0 on")
        self.method = method
        self.pretrained = network
        self.optimizer = optimizer
        self.schedule = schedule or Cosine()
        self.gradient_checkpointing = gradient_checkpointing
        self.decoding = decoding or Decoding()
        self.metrics = resolve_metrics(list(METRICS) if metrics is None else metrics)
        self.seed = seed
        self.dropout_seed = seed if dropout_seed is None else dropout_seed
        self.strict_loading = False  # checkpoints hold what is trained; on_load_checkpoint is stricter than `strict`
        self.network: nn.Module | None = None
        self.tally = Tally()
        self.forced = False
        """Whether to go on from a checkpoint of another configuration, as far as that goes."""
        self.asked: set[Wish] = set()
        """What callbacks of this process want done at the end of the optimiser step under way."""
        self.agreed: set[Wish] = set()
        """What some process asked for at the last optimiser step: all know it, and can do it together."""
        self.soundness = Soundness(skip_nonfinite)
        self._step_targets = 0  # target tokens of the optimiser step under way, on this device
        self._global_targets = 0.0  # the same on all
        self._global_loss = torch.zeros(1)  # their summed loss, still on the device where there is no other
        self._logged_loss: Tensor | float = 0.0  # sums since the last log
        self._logged_targets = 0
        self._gradient_norm: float | None = None  # None where the step was left out
        self._rate = 0.0
        self._random_state: dict[str, Tensor] = {}
        self._optimizer_asked: dict[str, Any] = {}
        self._steps_apart = 0  # more steps than the epochs alone tell, where some were begun with other batches
        self._checkpoint: dict[str, Any] | None = None  # the one to go on from, until it is restored

    @property
    def data(self) -> FinetuneData:
        """The data module of the trainer."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    # ---------------------------------------------------------------- the network

    def configure_model(self) -> None:
        """Opens and adapts the network; called again, it returns at once."""
        if self.network is not None:
            return
        if self.trainer.state.fn == TrainerFn.FITTING and self.data.has_preferences:
            raise UserError(
                f"data.path: {self.data.corpus.name} holds preference pairs, which need an objective of their own; to "
                'train on the better answers alone give data.prompt and data.response: "{chosen}"'
            )
        torch.manual_seed(self.seed)  # new weights do not depend on what was drawn before
        quantization = self.method.quantization
        device = self.trainer.strategy.root_device
        if (kind := self.pretrained.base_kind(quantization)) not in self.method.bases:
            raise UserError(
                f"model.method: {type(self.method).__name__} does not work on a base in {kind}, which "
                f"{self.pretrained.path} is, only on {', '.join(sorted(self.method.bases))}: take another of the two"
            )
        network = self.pretrained.model(quantization, device if quantization else "cpu")
        if self.gradient_checkpointing:  # before the method, which may have to refuse
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        batches = self._batches(device) if self.method.needs_batches else None
        self.network = self.method.adapt(network, batches).train()
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._check_room(self.network)

    def _check_room(self, network: nn.Module) -> None:
        """Virtual tokens and the longest row must fit into the context together.

        Raises:
            UserError: They do not.
        """
        virtual, context = virtual_tokens(network), self.pretrained.context_length()
        if not virtual or context is None:
            return
        longest = self.data.encoder.max_length
        if not self.data.streaming:
            longest = int(self.data.rows("train").lengths.max())
        assert longest is not None  # the context, where nothing else is said
        if longest + virtual > context:
            raise UserError(
                f"data.max_length: the method puts {virtual} tokens of its own before each row, the longest row has "
                f"{longest} and the network's context is {context}: set data.max_length to {context - virtual}"
            )

    def _batches(self, device: torch.device) -> Iterator[dict[str, Tensor]]:
        for batch in self.data.batches():
            yield {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}

    def trained_names(self) -> set[str]:
        """Names of the parameters that the method trains, as they stand in this module."""
        assert self.network is not None
        return {f"network.{name}" for name in self.method.trained(self.network)}

    def forward(self, **inputs: Any) -> Any:
        """The network's own forward."""
        assert self.network is not None
        return self.network(**inputs)

    def summed_loss(self, batch: dict[str, Any]) -> Tensor:
        """Cross entropy in nats, summed over the targets of `batch`, each predicted from what stands before it."""
        # said here and not in the network's configuration, which is saved with its weights
        names = ("input_ids", "attention_mask", "position_ids")
        inputs: dict[str, Any] = {name: batch[name] for name in names if name in batch} | {"use_cache": False}
        logits = self(**inputs).logits[:, -batch["labels"].shape[1] :]  # without a prompt method's virtual tokens
        return nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            batch["labels"][:, 1:].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )

    # ---------------------------------------------------------------- training

    def configure_optimizers(self) -> Any:
        """The injected optimiser over the method's groups, and the schedule over all steps."""
        if not self.method.trains:
            return None
        if self.trainer.precision == "16-mixed":
            raise UserError(
                "trainer.precision 16-mixed: its gradients are scaled where they are clipped and logged; give "
                "bf16-mixed, or 32-true where the device has no bfloat16"
            )
        assert self.network is not None
        mark_hidden(self.network)
        groups = self.method.param_groups(self.network)
        try:
            optimizer = self.optimizer(groups)
        except ValueError as error:  # such as a negative rate
            raise UserError(f"model.optimizer: {one_line(error)}") from error
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
        self._optimizer_asked = asked_of(optimizer)
        scheduler = self.schedule(optimizer, self.total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def total_steps(self) -> int:
        """Optimiser steps of the whole training.

        From the data's lengths: Lightning's own estimate would build the training loader, which starts its epoch anew.
        """
        if self.data.streaming:
            return streamed_steps(self.trainer)
        per_epoch = limited(self.data.train_batches_per_epoch(self._data_parallel_size), self.trainer)
        steps = self.trainer.max_steps
        if self.trainer.max_epochs not in (None, -1):
            of_epochs = math.ceil(per_epoch / self.trainer.accumulate_grad_batches) * self.trainer.max_epochs
            of_epochs += self._steps_apart
            steps = of_epochs if steps == -1 else min(steps, of_epochs)
        if steps == -1:
            raise UserError("trainer: give max_steps or max_epochs, so that the schedule knows where training ends")
        return int(steps)

    @property
    def _data_parallel_size(self) -> int:
        kwargs = getattr(self.trainer.strategy, "distributed_sampler_kwargs", None) or {}
        return kwargs.get("num_replicas", 1)

    def on_fit_start(self) -> None:
        """Has the optimiser that was asked for go on, not the one that the checkpoint describes, which comes next.

        Raises:
            UserError: They differ.
        """
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            return
        if self.forced:
            optimizer, scheduler = self._optimizer_and_scheduler()
            take_own_optimizer(checkpoint, optimizer, scheduler)
        else:
            refuse_other_optimizer(checkpoint["ftlab"]["optimizer"], self._optimizer_asked)

    def _optimizer_and_scheduler(self) -> tuple[Optimizer, Any]:
        configs = self.trainer.lr_scheduler_configs
        return self.trainer.optimizers[0], configs[0].scheduler if configs else None

    def on_train_start(self) -> None:
        """Tries packing; dropout goes on where the checkpoint left it, or starts from its seed and the rank."""
        if self.data.layout.kind == "pack":
            with self.trainer.precision_plugin.forward_context():
                self._check_isolation()
        assert self.network is not None
        follow_schedule(*self._optimizer_and_scheduler())
        self.method.begin(self.network, self.total_steps(), self.global_step)
        if not self._random_state:
            torch.manual_seed(self.dropout_seed + 1 + self.global_rank)
            self.on_after_backward()

    def _check_isolation(self) -> None:
        """Packed records must not see each other.

        Raises:
            UserError: In this network they do, or it cannot be tried.
        """
        assert self.network is not None
        flat = self.pretrained.attention in FLASH  # as the collator lays packs
        try:
            isolated, why = attention_is_isolated(self.network, 1 if flat else 2), "see each other"
        except Exception as error:  # whatever a network raises on a batch that it was not made for
            if out_of_memory(error):
                raise
            isolated, why = False, f"cannot be read ({one_line(error)})"
        if not isolated:
            raise UserError(
                f"data.batching pack: in {self.pretrained.path} with this method packed records {why}, so the loss "
                "would be of something else; set data.batching to bucket"
            )

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Dropout goes on where the last batch left it: loaders, too, draw whenever they start, and only some do on
        a resume."""
        torch.set_rng_state(self._random_state["cpu"].cpu())
        if "cuda" in self._random_state:
            torch.cuda.set_rng_state(self._random_state["cuda"].cpu())

    def on_after_backward(self) -> None:
        """Notes where the random numbers of training stand."""
        self._random_state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            self._random_state["cuda"] = torch.cuda.get_rng_state()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Returns the summed loss, times what Lightning is about to divide by."""
        loss = self.summed_loss(batch)
        self._step_targets += batch["target_tokens"]
        self.soundness.add(loss, batch["records"])
        assert self.network is not None
        penalty = self.method.penalty(self.network)
        if penalty is not None:  # by the share of targets, so that all batches of a step add it once
            loss = loss + penalty * batch["target_tokens"]
        return loss * self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turns the sum of gradients into the gradient of the mean over all targets, here and on other devices."""
        self._rate = optimizer.param_groups[0]["lr"]
        # one collective for all that processes have to tell each other at a step
        told = torch.tensor([self._step_targets, *(wish in self.asked for wish in WISHES)], dtype=torch.float64)
        self._global_loss = self.soundness.loss()
        if distributed():
            told = summed(torch.cat([told.to(self.device), self._global_loss]), self.device)
            told, self._global_loss = told[:-1], told[-1:]
        self._global_targets, *wishes = told.tolist()
        self.agreed = {wish for wish, count in zip(WISHES, wishes, strict=True) if count}
        self.asked -= self.agreed
        scale = self._data_parallel_size / max(1.0, self._global_targets)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, scale)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by norm, which is computed once and kept for the log, or by value.

        Raises:
            LeftOut: The loss or a gradient is NaN or infinite, and the step may be left out.
            UserError: No more may be.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        by_norm = gradient_clip_val is not None and gradient_clip_algorithm != "value"
        limit = gradient_clip_val if by_norm and gradient_clip_val else math.inf
        # not Lightning's own clipping: it refuses fused optimisers under bf16-mixed, too, where nothing is scaled
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        # the device is waited for: the optimiser must not see what is no number
        loss, self._gradient_norm = torch.cat([self._global_loss.to(norm.device), norm.reshape(1)]).tolist()
        self.soundness.judge(self.global_step + 1, loss / max(1.0, self._global_targets), self._gradient_norm)
        if gradient_clip_val and not by_norm:
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Steps, then calls the method's hook and writes the curves: a checkpoint of this step holds both.

        A step that is left out counts as any other, with gradients of zero for the method's hook.
        """
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        except LeftOut:
            optimizer.zero_grad(set_to_none=False)
            self._gradient_norm = None
        else:
            for loss in self.soundness.pop():
                self._logged_loss = self._logged_loss + loss
            self._logged_targets += self._step_targets
        self._step_targets = 0
        assert self.network is not None
        step = self.global_step + 1  # Lightning counts when this hook returns
        self.method.after_step(self.network, step)
        if step % log_interval(self.trainer) == 0 or step == self.trainer.max_steps:
            self._log_step(step)

    def _log_step(self, step: int) -> None:
        sums = torch.tensor([float(self._logged_loss), self._logged_targets], dtype=torch.float64)
        loss_sum, targets = summed(sums, self.device).tolist()
        self._logged_loss, self._logged_targets = 0.0, 0
        curves = {}
        if targets:  # none where all steps since the last log were left out
            curves["train_loss"] = loss_sum / targets
        if self._gradient_norm is not None:
            curves["grad_norm"] = self._gradient_norm
        for name, value in curves.items():
            self.log(name, value, prog_bar=name == "train_loss", logger=False)
        self.log_curves(curves | {"lr": self._rate}, step)

    def log_curves(self, metrics: dict[str, float], step: int) -> None:
        """Writes to every logger at once; what goes through `self.log` reaches them only after the checkpoints."""
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step)

    # ---------------------------------------------------------------- judging

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds the loss of a batch of rows, or the answers to a batch of prompts, to the tally."""
        if "labels" in batch:
            self.tally.add_loss(self.summed_loss(batch), batch["target_tokens"])
        else:
            self.tally.add_answers(batch["indices"], self._answers(batch, batch_idx))

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds the answers to a batch of prompts to the tally."""
        self.tally.add_answers(batch["indices"], self._answers(batch, batch_idx))

    def _answers(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        assert self.network is not None
        encoder = self.data.encoder
        number = batch_idx * self.trainer.world_size + self.global_rank
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

    def on_validation_epoch_end(self) -> None:
        """Logs `val_loss`, `val_perplexity`, and the text scores where answers were generated."""
        self._conclude("val", "validation")

    def on_test_epoch_end(self) -> None:
        """Logs `test_loss`, `test_perplexity`, and the text scores."""
        self._conclude("test", self.data.scored_split)

    def on_predict_epoch_start(self) -> None:
        """Empties the tally."""
        self.tally = Tally()

    def on_predict_epoch_end(self) -> None:
        """Brings the answers of all devices together."""
        self.tally.gather()

    def _conclude(self, prefix: str, split: Split) -> None:
        self.tally.gather()
        if self.tally.answers:
            self.tally.score(self.data.records(split), self.metrics)
        self.log_dict({f"{prefix}_{name}": value for name, value in self.tally.scores().items()})
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log("step", float(self.global_step))  # the axis of every curve: Lightning's own counts from 0

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what the method trains, says what it belongs to, and where the random numbers stand."""
        kept = self.trained_names()
        checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in kept}
        assert self.network is not None
        checkpoint["ftlab"] = {
            "belongs_to": self._belongs_to(),
            "batches": self.data.identity(),
            "method": self.method.state(self.network),
            "optimizer": self._optimizer_asked,
            "steps_apart": self._steps_apart,
            "left_out": self.soundness.state(),
        }
        checkpoint["by_rank"] = gathered(
            {
                "random_state": self._random_state,
                "logged_loss": float(self._logged_loss),
                "logged_targets": self._logged_targets,
            }
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another method, base or quantisation, or with other tensors than are trained."""
        theirs, ours = checkpoint.get("ftlab", {}).get("belongs_to"), self._belongs_to()
        if theirs != ours and not self.forced:
            raise UserError(f"the checkpoint belongs to {theirs}, this run is {ours}: start another run (--run.name)")
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._checkpoint = checkpoint
            self._steps_apart = checkpoint["ftlab"]["steps_apart"]
            if self.forced:
                self._hand_over(checkpoint)
            else:
                refuse_other_batches(checkpoint["ftlab"]["batches"], self.data.identity())
        refuse_other_tensors(checkpoint["state_dict"], self.state_dict(), self.trained_names())
        assert self.network is not None
        self.method.restore(self.network, checkpoint["ftlab"]["method"])
        self.soundness.restore(checkpoint["ftlab"].get("left_out", []))
        if self.global_rank < len(checkpoint["by_rank"]):
            here = checkpoint["by_rank"][self.global_rank]
            self._random_state = here["random_state"]
            self._logged_loss, self._logged_targets = here["logged_loss"], here["logged_targets"]

    def _hand_over(self, checkpoint: dict[str, Any]) -> None:
        streams = self.data.streaming
        per_epoch = (
            None if streams else limited(self.data.train_batches_per_epoch(self._data_parallel_size), self.trainer)
        )
        self._steps_apart = 0
        whole = hand_over_loops(checkpoint, self.data, self.trainer, per_epoch)
        if whole is not None and per_epoch is not None:
            epochs = self.trainer.max_epochs or 0
            self._steps_apart = whole - math.ceil(per_epoch / self.trainer.accumulate_grad_batches) * epochs

    def _belongs_to(self) -> dict[str, str]:
        return {
            "method": f"{type(self.method).__module__}.{type(self.method).__qualname__}",
            "network": self.pretrained.path,
            "base": str(self.method.quantization),
        }


def log_interval(trainer: pl.Trainer) -> int:
    """Optimiser steps between logs."""
    return trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by the trainer's logger connector
