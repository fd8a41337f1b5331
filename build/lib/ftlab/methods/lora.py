"""LoRA: two small matrices beside each frozen weight (Hu et al. 2021, arXiv 2106.09685), and its variants."""

from __future__ import annotations

from typing import Any, Literal

import peft
from torch import nn
from transformers import PreTrainedModel

from ftlab.errors import UserError
from ftlab.methods import starts
from ftlab.methods.peft import Peft
from ftlab.methods.targets import name_all_linear

Start = Literal["default", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora", "eva", "corda", "lora_ga"]


class LoRA(Peft):
    """Low-rank adaptation: W x + (alpha / r) B A x, with W frozen, A (r, in) and B (out, r) trained.

    Args:
        r: Rank of the update.
        alpha: Scale of the update, which is multiplied by alpha / r; 2 r where none is given.
        dropout: Share of the adapter's inputs that are dropped in training.
        targets: Layers to adapt: `all-linear` (all but the head), last parts of their names, or a regular expression.
        dora: Learn magnitude and direction apart (DoRA, Liu et al. 2024, arXiv 2402.09353).
        rslora: Scale by alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732).
        init: Where A and B start. `default` is Kaiming-uniform A, zero B. `eva` (arXiv 2410.07170) takes A from the
            layers' inputs on training data. `pissa` (arXiv 2404.02948; `pissa_niter_16` with fast SVD), `olora`
            (arXiv 2406.01775), `corda` (on training data, arXiv 2406.05223) and `lora_ga` (on training data,
            arXiv 2407.05000) move a part of the base into the adapter; what is saved is converted to plain LoRA on
            the original base.
        ratio: B learns this many times as fast as A (LoRA+, Hayou et al. 2024, arXiv 2402.12354).
        modules_to_save: Layers that are trained whole beside the adapters, such as `lm_head`.
        layers: Numbers of the decoder layers to adapt; all where none is given.
    """

    def __init__(
        self,
        r: int = 16,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: str | list[str] = "all-linear",
        dora: bool = False,
        rslora: bool = False,
        init: Start = "default",
        ratio: float = 1.0,
        modules_to_save: list[str] | None = None,
        layers: list[int] | None = None,
    ) -> None:
        if r < 1:
            raise UserError(f"method.r is {r}: a rank is at least 1")
        if init not in ("default", "gaussian", "orthogonal", "eva") and (dora or rslora):
            raise UserError(
                f"method.init {init} together with {'dora' if dora else 'rslora'} has no plain LoRA form on the "
                "original base: use one of the two"
            )
        super().__init__(
            peft.LoraConfig(
                r=r,
                lora_alpha=2 * r if alpha is None else alpha,  # type: ignore[arg-type]  # peft takes floats
                lora_dropout=dropout,
                target_modules=targets,
                use_dora=dora,
                use_rslora=rslora,
                init_lora_weights=True if init == "default" else init,  # type: ignore[arg-type]  # pissa_niter_16
                modules_to_save=modules_to_save,
                # peft takes the same where none is given, with a warning
                **({f"{init}_config": starts.CONFIGS[init]()} if init in starts.CONFIGS else {}),
            )
        )
        if layers is not None and isinstance(targets, str) and targets != "all-linear":
            raise UserError(
                "method.layers goes with targets by name or all-linear: put the numbers into the expression"
            )
        self.layers = layers
        self.ratio = ratio

    def config_for(self, network: PreTrainedModel) -> peft.PeftConfig:
        config = super().config_for(network)
        assert isinstance(config, peft.LoraConfig)
        if self.layers is not None:
            missing = sorted(set(self.layers) - set(range(network.config.num_hidden_layers)))
            if missing:
                raise UserError(
                    f"method.layers: there is no layer {missing[0]}, they are numbered from 0 to "
                    f"{network.config.num_hidden_layers - 1}"
                )
            config.layers_to_transform = self.layers
            name_all_linear(config, network)
        return config

    def param_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """LoRA+: B learns `ratio` times as fast as A (Hayou et al. 2024, arXiv 2402.12354)."""
        groups = super().param_groups(network)
        if self.ratio == 1.0:
            return groups
        b = {id(parameter) for name, parameter in network.named_parameters() if "lora_B" in name}
        split = [
            group | {"params": [p for p in group["params"] if (id(p) in b) == is_b]} | scale
            for group in groups
            for is_b, scale in ((False, {}), (True, {"lr_scale": self.ratio}))
        ]
        return [group for group in split if group["params"]]
