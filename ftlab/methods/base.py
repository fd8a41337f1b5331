"""The one interface: what ftlab asks of a method of fine-tuning, and all that it asks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.networks import Quantization


class Method(ABC):
    """How a pretrained network becomes trainable, and what is kept of it.

    A method of your own is a subclass in your own file, named on the command line by its dotted path; nothing
    in ftlab needs an edit. Whoever calls `adapt` seeds first: a method draws its new weights from the global
    generator, so that the same seed gives the same weights.
    """

    quantization: Quantization | None = None
    """How the base is held; None is full precision. Read before the network is opened."""

    trains: ClassVar[bool] = True
    """False for a baseline: nothing is optimised, the network is only judged."""

    identity_at_start: bool = True
    """Whether the adapted network answers exactly as the base until the first step."""

    rewrites_base: bool = False
    """Whether `adapt` takes a part out of the base that it computes, by a decomposition for example: with other
    rounding on another machine, or with another number of threads."""

    needs_batches: bool = False
    """Whether `adapt` looks at training batches first."""

    bases: frozenset[str] = frozenset({"full"})
    """The bases it works on: "full" and kinds of `Quantization`; any other is refused before it is opened."""

    merge_tolerance: float = 1e-4
    """The largest difference of a logit between the merged network and the adapted one, as a share of the largest
    logit, both in float32."""

    @abstractmethod
    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        """Freezes and injects, and returns the network to train (it may be `network` itself, changed).

        Args:
            network: Freshly opened, on its device.
            batches: Training batches (`input_ids`, `attention_mask`, `labels`, each (batch, length)) in the order of
                training; given where `needs_batches`.

        Raises:
            UserError: The method cannot adapt this network; the sentence says why.
        """

    def trained(self, network: nn.Module) -> set[str]:
        """Names of the parameters that training changes, at any step: what a checkpoint holds of `network`.

        A tensor that has several names counts under its first.
        """
        return {name for name, parameter in network.named_parameters() if parameter.requires_grad}

    def param_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Groups for the optimiser: decay for matrices, none for norms and biases.

        A group may carry `lr_scale`, by which its learning rate is multiplied.
        """
        trained = [p for p in network.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim >= 2]},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    @abstractmethod
    def save(self, network: nn.Module, directory: Path) -> None:
        """Writes what was trained into `directory`, in the layout that transformers or peft opens alone."""

    @abstractmethod
    def load(self, network: PreTrainedModel, directory: Path) -> nn.Module:
        """Returns `network`, freshly opened and not adapted, with what `save` wrote put onto it."""

    @abstractmethod
    def merge(self, network: nn.Module) -> PreTrainedModel:
        """Folds the method into plain weights and returns them; `network` is used up.

        Raises:
            UserError: It cannot be folded away; the sentence says why.
        """

    def begin(self, network: nn.Module, steps: int, step: int = 0) -> None:  # noqa: B027  (a hook, as those below)
        """Called before the first step of a process: for budgets that change in the course of training.

        Args:
            network: As `adapt` returned it; of a run that goes on, with its weights and its `state` put back.
            steps: Optimiser steps of the whole training.
            step: Those that are done.
        """

    def penalty(self, network: nn.Module) -> Tensor | None:
        """A term that is added to the mean loss of a step, in nats, with its gradient; most methods have none."""
        return None

    def after_step(self, network: nn.Module, step: int) -> None:  # noqa: B027
        """Called after optimiser step number `step` (from 1), while the step's gradients are still there."""

    def state(self, network: nn.Module) -> dict[str, Any]:
        """What the method keeps from step to step beside weights: tensors and plain values, for a checkpoint."""
        return {}

    def restore(self, network: nn.Module, state: dict[str, Any]) -> None:  # noqa: B027
        """Puts back what `state` gave, into a network that `adapt` has just returned."""
