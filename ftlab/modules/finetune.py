"""Fine-tuning of a causal language model by one Method: the loss, the step, and what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ftlab.attention import SDPA
from ftlab.data.remainder import refuse_other_batches
from ftlab.errors import UserError, one_line
from ftlab.evaluation.generation import Decoding
from ftlab.methods import Method
from ftlab.methods.untouched import base_of
from ftlab.modules.activations import WAYS, GradientCheckpointing, checkpoint_blocks, refuse_offloading
from ftlab.modules.agreement import Wish, agreed
from ftlab.modules.compiling import compile_blocks
from ftlab.modules.devices import gathered, share_only
from ftlab.modules.judging import JudgedModule
from ftlab.modules.nonfinite import LeftOut, Soundness, Step
from ftlab.modules.optimizers import mark_hidden
from ftlab.modules.outcomes import Outcome, can_be_guarded, guard
from ftlab.modules.packs import attend_to_packs
from ftlab.modules.randomness import Randomness
from ftlab.modules.refusals import (
    refuse_long_rows,
    refuse_long_windows,
    refuse_other_base,
    refuse_preferences,
    refuse_scaled_gradients,
    refuse_strategy,
)
from ftlab.modules.resuming import (
    asked_of,
    follow_schedule,
    hand_over_loops,
    refuse_other_optimizer,
    refuse_other_tensors,
    take_own_optimizer,
)
from ftlab.modules.schedules import Cosine, Schedule
from ftlab.modules.sharding.fsdp import FSDPStrategy
from ftlab.modules.sharding.network import Sharded
from ftlab.modules.sharding.refusals import refuse_whole_matrices
from ftlab.modules.sharding.tensors import whole
from ftlab.modules.steps import data_parallel_size, total_steps
from ftlab.networks import Network, language_model


class FinetuneModule(JudgedModule):
    """One network, one method.

    The loss is the mean cross entropy of the target tokens of one optimiser step, the same for every split of
    that step into micro-batches and devices: micro-batches contribute sums, and the gradient is divided by the
    number of targets once, before the step.

    Args:
        method: How the network becomes trainable, and what is kept of it.
        network: The pretrained network.
        optimizer: Called with the method's parameter groups.
        schedule: Called with the optimiser and the number of optimiser steps.
        gradient_checkpointing: What of a decoder block's forward pass is computed again in the backward pass instead of
            being kept: false, nothing; selective, all but what matrix products and attention come to; true, all of it,
            in operations a third more for full fine-tuning and about half more for adapters; offloaded, all of it, with
            the blocks' inputs in the host's memory; auto, on the command line, the first of these with which a
            micro-batch fits the device by plan.
        compile: Compute decoder blocks by code that torch makes of them (torch.compile), where gradients are taken.
            The first step takes longer, all others less; docs/how-to/speed.md.
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
        gradient_checkpointing: GradientCheckpointing | Literal["auto"] = False,
        compile: bool = False,
        decoding: Decoding | None = None,
        metrics: list[str] | None = None,
        skip_nonfinite: int = 0,
        seed: int = 42,
        dropout_seed: int | None = None,
    ) -> None:
        super().__init__(decoding, metrics)
        if skip_nonfinite < 0:
            raise UserError(f"model.skip_nonfinite is {skip_nonfinite}: give a number of steps, from 0 on")
        if gradient_checkpointing == "auto":
            raise UserError(f"model.gradient_checkpointing auto is for ftlab fit: give one of {WAYS}")
        if compile and gradient_checkpointing == "selective":
            raise UserError(
                "model.gradient_checkpointing selective keeps what operations come to, which compiled blocks do not "
                "tell: set it to true or false, or model.compile to false"
            )
        self.method = method
        self.pretrained = network
        self.optimizer = optimizer
        self.schedule = schedule or Cosine()
        self.gradient_checkpointing = gradient_checkpointing
        self.compiled = compile
        self.seed = seed
        self.dropout_seed = seed if dropout_seed is None else dropout_seed
        self.strict_loading = False  # checkpoints hold what is trained; on_load_checkpoint is stricter than `strict`
        self.forced = False
        """Whether to go on from a checkpoint of another configuration, as far as that goes."""
        self.asked: set[Wish] = set()
        """What callbacks of this process want done at the end of the optimiser step under way."""
        self.agreed: set[Wish] = set()
        """What some process asked for at the last optimiser step: all know it, and can do it together."""
        self.soundness = Soundness(skip_nonfinite)
        self._under_way = Step()
        self._global_loss = torch.zeros(1)  # summed over all devices, still on this one
        self._rate = 0.0
        self._randomness = Randomness()
        self._optimizer_asked: dict[str, Any] = {}
        self._steps_apart = 0  # more steps than the epochs alone tell, where some were begun with other batches
        self._attention: str | None = None  # by which packs were computed before this process went on
        self._checkpoint: dict[str, Any] | None = None  # the one to go on from, until it is restored

    # ---------------------------------------------------------------- the network

    def configure_model(self) -> None:
        """Opens and adapts the network; called again, it returns at once."""
        if self.network is not None:
            return
        if fitting := self.trainer.state.fn == TrainerFn.FITTING:
            refuse_preferences(self.data)
        refuse_other_base(self.method, self.pretrained)
        refuse_strategy(self.trainer.strategy, self.method, self.pretrained)
        torch.manual_seed(self.seed)  # new weights do not depend on what was drawn before
        quantization, device = self.method.quantization, self.trainer.strategy.root_device
        if fitting:
            refuse_offloading(self.gradient_checkpointing, device)
        if isinstance(self.trainer.strategy, FSDPStrategy) and not quantization:
            device = torch.device("cpu")  # that of the process need not hold it whole
        with device:  # Lightning has set that of the process, which would go before what is said here
            network = self.pretrained.model(quantization, device)
        checkpoint_blocks(network, self.gradient_checkpointing)  # before the method, which may have to refuse
        batches = self._batches(device) if self.method.needs_batches else None
        self.network = self.method.adapt(network, batches).train()
        if fitting:
            refuse_long_rows(self.network, self.pretrained, self.data)
            if self.compiled:
                compile_blocks(self.network)
        elif self.trainer.state.fn in (TrainerFn.VALIDATING, TrainerFn.TESTING):
            refuse_long_windows(self.network, self.pretrained, self.data)
        share_only(self, self.trained_names())

    def _batches(self, device: torch.device) -> Iterator[dict[str, Tensor]]:
        for batch in self.data.batches():
            yield {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}

    def trained_names(self) -> set[str]:
        """Names of the parameters that the method trains, as they stand in this module."""
        assert self.network is not None
        return {f"network.{name}" for name in self.method.trained(self.network)}

    def of_base(self) -> FinetuneModule:
        """One that judges the network as it was before the method saw it, as this one judges it."""
        base = FinetuneModule(base_of(self.method), self.pretrained, decoding=self.decoding, metrics=[], seed=self.seed)
        base.metrics = self.metrics
        return base

    def let_go(self) -> None:
        """Forgets the network, whoever still holds the module."""
        self.network, self.sharded, self._head = None, None, None

    # ---------------------------------------------------------------- training

    def configure_optimizers(self) -> Any:
        """The injected optimiser over the method's groups, and the schedule over all steps."""
        if not self.method.trains:
            return None
        refuse_scaled_gradients(self.trainer.precision)
        assert self.network is not None
        mark_hidden(self.network)
        optimizer = self.optimizer_over(self.method.param_groups(self.network))
        if isinstance(self.sharded, Sharded):
            refuse_whole_matrices(optimizer, self.sharded.strategy)
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
        self._optimizer_asked = asked_of(optimizer)
        scheduler = self.schedule(optimizer, self.total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_over(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The injected optimiser.

        Raises:
            UserError: It refuses what it is configured with, such as a negative rate.
        """
        try:
            return self.optimizer(groups)
        except ValueError as error:
            raise UserError(f"model.optimizer: {one_line(error)}") from error

    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return total_steps(self.data, self.trainer, self._steps_apart)

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
        assert self.network is not None
        if self.data.layout.kind == "pack":
            with self.trainer.precision_plugin.forward_context():
                self.told_bounds = attend_to_packs(self.network, self.pretrained, self._attention)
        self.try_head()
        optimizer, scheduler = self._optimizer_and_scheduler()
        follow_schedule(optimizer, scheduler)
        self._under_way = Step()
        self.soundness.begin()
        self.method.begin(self.network, self.total_steps(), self.global_step)
        optimizer.zero_grad()
        self._randomness.begin(self.dropout_seed + 1 + self.global_rank, self.device)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Dropout goes on where the last batch left it."""
        self._randomness.go_on()

    def on_after_backward(self) -> None:
        """Notes where the random numbers of training stand."""
        self._randomness.note(self.device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Returns the summed loss, times what Lightning is about to divide by."""
        loss = self.summed_loss(batch)
        self._under_way.add(loss, batch["records"], batch["target_tokens"])
        assert self.network is not None
        penalty = self.method.penalty(self.network)
        if penalty is not None:  # by the share of targets, so that all batches of a step add it once
            loss = loss + penalty * batch["target_tokens"]
        return loss * self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turns the sum of gradients into the gradient of the mean over all targets, here and on other devices."""
        self._rate = optimizer.param_groups[0]["lr"]
        step = self._under_way
        self._global_loss, self.agreed = agreed(step, self.asked, self.device)
        self.asked -= self.agreed
        scale = data_parallel_size(self.trainer) / max(1.0, step.global_targets)
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
            UserError: No more may be, or the step before was one too many.
        """
        self.soundness.settle()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # not Lightning's own clipping: it refuses fused optimisers under bf16-mixed, too, where nothing is scaled
        norm = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        by_value = gradient_clip_algorithm == "value"
        if gradient_clip_val and not by_value:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        step = self._under_way
        step.number, step.outcome = self.global_step + 1, Outcome(self._global_loss, norm)
        if can_be_guarded(optimizer) and not self._looked_at(step.number):
            guard(optimizer, step.outcome.unsound())
            self.soundness.later(step)
        elif not self.soundness.judge(step):  # the device is waited for: the optimiser must not see what is no number
            raise LeftOut
        if gradient_clip_val and by_value:
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)

    def _looked_at(self, step: int) -> bool:
        """Whether it must be known what a step came to as soon as it is taken."""
        has_hook = type(self.method).after_step is not Method.after_step  # which sees a step that is left out as zeros
        return has_hook or self._is_logged(step)

    def _is_logged(self, step: int) -> bool:
        return step % log_interval(self.trainer) == 0 or step == self.trainer.max_steps

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
        guard(self.trainer.optimizers[0], None)
        self._under_way = Step()
        assert self.network is not None
        step = self.global_step + 1  # Lightning counts when this hook returns
        self.method.after_step(self.network, step)
        optimizer.zero_grad()
        if self._is_logged(step):
            self._log_step(step)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing: gradients are let go of after a step, not after the next forward pass, which wants the memory."""

    def on_validation_start(self) -> None:
        """No network is judged after a step that ends training."""
        self.soundness.settle()
        super().on_validation_start()

    def on_train_epoch_end(self) -> None:
        """Training may end here."""
        self.soundness.settle()

    def _log_step(self, step: int) -> None:
        curves = self.soundness.curves(self.device)
        self.log_dict(curves, logger=False)
        if "train_loss" in curves:  # not by `prog_bar`: Lightning would read it from the device at every batch
            self.trainer.progress_bar_metrics["train_loss"] = curves["train_loss"]
        self.log_curves(curves | {"lr": self._rate}, step)

    def log_curves(self, metrics: dict[str, float], step: int) -> None:
        """Writes to every logger at once; what goes through `self.log` reaches them only after the checkpoints."""
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step)

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what the method trains, says what it belongs to, and where the random numbers stand."""
        self.soundness.settle()
        kept = self.trained_names()
        checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in kept}
        assert self.network is not None
        checkpoint["ftlab"] = {
            "belongs_to": self._belongs_to(),
            "batches": self.data.identity(),
            "method": self.method.state(self.network),
            "attention": language_model(self.network).config._attn_implementation,
            "optimizer": self._optimizer_asked,
            "steps_apart": self._steps_apart,
            "left_out": self.soundness.state(),
        }
        checkpoint["by_rank"] = gathered(
            {
                "random_state": self._randomness.states,
                "logged_loss": float(self.soundness.loss),
                "logged_targets": self.soundness.targets,
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
                self._steps_apart = hand_over_loops(checkpoint, self.data, self.trainer)
            else:
                refuse_other_batches(checkpoint["ftlab"]["batches"], self.data.identity())
                self._attention = checkpoint["ftlab"].get("attention", SDPA)  # of runs before there was another
        refuse_other_tensors(checkpoint["state_dict"], self.state_dict(), self.trained_names())
        assert self.network is not None
        self.method.restore(self.network, checkpoint["ftlab"]["method"])
        self.soundness.restore(checkpoint["ftlab"].get("left_out", []))
        if self.global_rank < len(checkpoint["by_rank"]):
            here = checkpoint["by_rank"][self.global_rank]
            self._randomness.restore(here["random_state"])
            self.soundness.loss, self.soundness.targets = here["logged_loss"], here["logged_targets"]

    def _belongs_to(self) -> dict[str, str]:
        return {
            "method": f"{type(self.method).__module__}.{type(self.method).__qualname__}",
            "network": self.pretrained.path,
            "base": str(self.method.quantization),
        }


def log_interval(trainer: pl.Trainer) -> int:
    """Optimiser steps between logs."""
    return trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by the trainer's logger connector
