"""AdaLoRA: a budget of ranks that moves, in the course of training, to where it matters (Zhang et al. 2023)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

from ftlab.errors import UserError
from ftlab.methods.peft import Peft
from ftlab.networks import Quantization


class AdaLoRA(Peft):
    """W x + s B E A x with a diagonal E, whose entries that matter least are cut while training goes on (Zhang et al.
    2023, arXiv 2303.10512).

    All layers begin with rank `init_r`. Between `warmup` and `final` the sum of ranks falls, by the third power of the
    way that is left, to `target_r` a layer on average; the last steps train what is left. Every step adds the penalty
    that keeps A and B near orthogonal.

    Args:
        init_r: Rank of every layer at the start.
        target_r: Mean rank at the end.
        alpha: Scale of the update, which is multiplied by alpha / init_r; 2 init_r where none is given.
        dropout: Share of the adapter's inputs that are dropped in training.
        targets: Layers to adapt: `all-linear` (all but the head), last parts of their names, or a regular expression.
        warmup: Share of the steps before the first cut.
        final: Share of the steps after the last cut.
        every: Optimiser steps between cuts.
        orthogonality: Weight of the penalty.
        beta: Decay of the running means by which the importance of an entry is told, and its uncertainty.
        modules_to_save: Layers that are trained whole beside the adapters, such as `lm_head`.
        quantization: Hold the frozen base in few bits.
    """

    sees_to = frozenset({"AdaLoraConfig"})

    def __init__(
        self,
        init_r: int = 12,
        target_r: int = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: str | list[str] = "all-linear",
        warmup: float = 0.1,
        final: float = 0.3,
        every: int = 1,
        orthogonality: float = 0.1,
        beta: float = 0.85,
        modules_to_save: list[str] | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        if not 1 <= target_r < init_r:
            raise UserError(f"method.target_r is {target_r}: it is at least 1 and less than init_r, {init_r}")
        if not (warmup >= 0 and final >= 0 and warmup + final < 1):
            raise UserError(f"method.warmup {warmup} and method.final {final} leave no steps for cuts between them")
        if every < 1:
            raise UserError(f"method.every is {every}: give a number of steps from 1 on")
        super().__init__(
            peft.AdaLoraConfig(
                init_r=init_r,
                target_r=target_r,
                lora_alpha=2 * init_r if alpha is None else alpha,  # type: ignore[arg-type]  # peft takes floats
                lora_dropout=dropout,
                target_modules=targets,
                deltaT=every,
                beta1=beta,
                beta2=beta,
                orth_reg_weight=orthogonality,
                total_step=1,  # of its schedule `begin` knows
                modules_to_save=modules_to_save,
            ),
            quantization,
        )
        self.warmup = warmup
        self.final = final
        self._penalised: nn.Module | None = None
        self._matrices: list[tuple[str, nn.Parameter]] = []  # A and B of that network

    def begin(self, network: nn.Module, steps: int, step: int = 0) -> None:
        """Lays the budget's way over the steps of this training."""
        config = _config(network)
        config.total_step = steps
        config.tinit, config.tfinal = round(self.warmup * steps), round(self.final * steps)
        if config.tinit >= steps - config.tfinal - 1:
            raise UserError(
                f"method: {steps} optimiser steps leave AdaLoRA none to cut in, with warmup {self.warmup} and final "
                f"{self.final}: train longer, or lower these"
            )

    def penalty(self, network: nn.Module) -> Tensor | None:
        """Mean over all A and B of the Frobenius norms of A A^T - I and B^T B - I, times `orthogonality`.

        peft adds it to the loss that it computes itself, which is not the one that is trained here.
        """
        weight = _config(network).orth_reg_weight
        if not weight:
            return None
        if self._penalised is not network:  # it is called at every micro-batch, which a walk would take longer
            self._penalised, named = network, list(network.named_parameters())
            self._matrices = [(name, p) for name, p in named if "lora_A" in name or "lora_B" in name]
        distances = []
        for name, matrix in self._matrices:
            product = matrix @ matrix.T if "lora_A" in name else matrix.T @ matrix
            distances.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device)))
        return weight * torch.stack(distances).mean()

    def after_step(self, network: nn.Module, step: int) -> None:
        """Weighs the entries by their gradients, and cuts down to the budget of `step`."""
        _tuner(network).update_and_allocate(step)

    def save(self, network: nn.Module, directory: Path) -> None:
        config = _config(network)
        ranks = config.rank_pattern
        super().save(network, directory)
        config.rank_pattern = ranks  # peft saves under other names, and leaves these behind

    def state(self, network: nn.Module) -> dict[str, Any]:
        """The importances so far, and which ranks are left."""
        allocator, ranks = _tuner(network).rankallocator, _config(network).rank_pattern
        return {
            "importance": dict(allocator.exp_avg_ipt),
            "uncertainty": dict(allocator.exp_avg_unc),
            "ranks": ranks and {name: list(kept) for name, kept in ranks.items()},
        }

    def restore(self, network: nn.Module, state: dict[str, Any]) -> None:
        tuner = _tuner(network)
        allocator, places = tuner.rankallocator, dict(tuner.model.named_parameters())

        def beside(values: dict[str, Tensor]) -> dict[str, Tensor]:  # a checkpoint's are on the CPU
            return {name: value.to(places[name].device) for name, value in values.items()}

        allocator.exp_avg_ipt, allocator.exp_avg_unc = beside(state["importance"]), beside(state["uncertainty"])
        allocator.ipt = dict.fromkeys(allocator.exp_avg_ipt)  # peft takes those for new that are not in it
        _config(network).rank_pattern = state["ranks"]


def _tuner(network: nn.Module) -> Any:
    assert isinstance(network, peft.PeftModel)
    return network.base_model


def _config(network: nn.Module) -> Any:
    assert isinstance(network, peft.PeftModel)
    return network.peft_config[network.active_adapter]
