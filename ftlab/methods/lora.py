"""LoRA: two small matrices beside each frozen weight (Hu et al. 2021, arXiv 2106.09685), and its variants."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import peft
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.errors import UserError
from ftlab.methods.peft import Peft, linear_layers

REWRITES_THE_BASE = ("pissa", "pissa_niter_16", "olora")


class LoRA(Peft):
    """Low-rank adaptation: W x + (alpha / r) B A x, with W frozen, A (r, in) and B (out, r) trained.

    Args:
        r: Rank of the update.
        alpha: Scale of the update, which is multiplied by alpha / r; 2 r where none is given.
        dropout: Share of the adapter's inputs that are dropped in training.
        targets: Layers to adapt: `all-linear` (all but the head), last parts of their names, or a regular expression.
        dora: Learn magnitude and direction apart (DoRA, Liu et al. 2024, arXiv 2402.09353).
        rslora: Scale by alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732).
        init: Where A and B start. `default` is Kaiming-uniform A, zero B. `pissa` (arXiv 2404.02948; `pissa_niter_16`
            with fast SVD) and `olora` (arXiv 2406.01775) move a part of the base into the adapter; what is saved is
            converted to plain LoRA on the original base. `eva` (arXiv 2410.07170) takes A from the layers' inputs on
            training data.
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
        init: Literal["default", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora", "eva"] = "default",
        ratio: float = 1.0,
        modules_to_save: list[str] | None = None,
        layers: list[int] | None = None,
    ) -> None:
        if r < 1:
            raise UserError(f"method.r is {r}: a rank is at least 1")
        if init in REWRITES_THE_BASE and (dora or rslora):
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
                eva_config=peft.EvaConfig() if init == "eva" else None,
            )
        )
        if layers is not None and isinstance(targets, str) and targets != "all-linear":
            raise UserError(
                "method.layers goes with targets by name or all-linear: put the numbers into the expression"
            )
        self.layers = layers
        self.init = init
        self.ratio = ratio
        self.needs_batches = init == "eva"
        # these take a part out of the base and add it again, which rounds
        self.identity_at_start = init not in REWRITES_THE_BASE
        self._start: dict[str, Tensor] = {}

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        adapted = super().adapt(network)
        assert isinstance(adapted, peft.PeftModel)
        if self.init == "eva":
            if batches is None:
                raise UserError("method.init eva needs training data: give data.path")
            # a list, as peft asks for its length and goes through it more than once
            peft.initialize_lora_eva_weights(adapted, list(batches), show_progress_bar=False)
            for parameter in adapted.parameters():
                if parameter.requires_grad:  # it leaves them in the type of the activations, which may be bfloat16
                    parameter.data = parameter.data.float()
        if self.init in REWRITES_THE_BASE:
            self._start = {n: t.detach().cpu().clone() for n, t in peft.get_peft_model_state_dict(adapted).items()}
        return adapted

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
            if config.target_modules == "all-linear":  # peft takes numbers with names only
                head = {name for name, module in network.named_modules() if module is network.get_output_embeddings()}
                config.target_modules = [name for name in linear_layers(network) if name not in head]
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

    def save(self, network: nn.Module, directory: Path) -> None:
        """Writes the adapter for the original base.

        Where the initialisation moved B0 A0 out of the base, the update on the original base is B A - B0 A0: a plain
        LoRA of twice the rank (peft, `subtract_mutated_init`).
        """
        if not self._start:
            return super().save(network, directory)
        assert isinstance(network, peft.PeftModel)
        with TemporaryDirectory() as start:
            self._write_start(network, Path(start))
            network.save_pretrained(
                str(directory), save_embedding_layers=False, path_initial_model_for_weight_conversion=start
            )
        (directory / "README.md").unlink(missing_ok=True)
        return None

    def _write_start(self, network: peft.PeftModel, directory: Path) -> None:
        config = network.peft_config[network.active_adapter]
        assert isinstance(config, peft.LoraConfig)
        mutated, config.init_lora_weights = config.init_lora_weights, False
        config.save_pretrained(str(directory))
        config.init_lora_weights = mutated
        save_file(self._start, str(directory / "adapter_model.safetensors"))
