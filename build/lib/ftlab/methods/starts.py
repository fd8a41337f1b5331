"""Where LoRA's A and B start, if not at random: from data, from the base's own directions, or from its rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import peft
import torch
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.errors import UserError
from ftlab.methods.targets import name_all_linear

Batches = Iterable[dict[str, Tensor]]

FROM_DATA = ("eva", "corda", "lora_ga")
REWRITE_THE_BASE = ("pissa", "olora", "corda", "lora_ga")
"""These (and `pissa_niter_16`) move a part of the base into the adapter."""

CONFIGS: dict[str, Callable[[], Any]] = {"eva": peft.EvaConfig, "corda": CordaConfig, "lora_ga": peft.LoraGAConfig}
"""Of the starts that have one of their own, under the name of the start and `_config`."""

CORDA_ROWS = 256
"""As many samples as the authors take for the covariance of a layer's inputs."""
EVA_BATCHES = 256
"""They stay in memory while the directions settle, which takes tens of them."""
LORA_GA_BATCHES = 8
"""One gradient over a few batches: a start, no step."""


def kind(config: peft.PeftConfig) -> str:
    """The start that a LoRA configuration asks for; empty for the usual ones, and for other configurations."""
    asked = getattr(config, "init_lora_weights", None)
    return asked if isinstance(asked, str) else ""


def needs_batches(config: peft.PeftConfig) -> bool:
    """Whether the start is found on training data."""
    return kind(config) in FROM_DATA


def rewrites_the_base(config: peft.PeftConfig) -> bool:
    """Whether the start takes a part out of the base."""
    return kind(config).startswith(REWRITE_THE_BASE)


def adapted(network: PreTrainedModel, config: Any, batches: Batches | None) -> peft.PeftModel:
    """The network, adapted by peft, its adapter begun as the configuration says.

    On data: EVA takes A from the principal directions of each layer's inputs (Paischer et al. 2024, arXiv 2410.07170),
    CorDA both from the weights seen through them (Yang et al. 2024, arXiv 2406.05223), LoRA-GA both from the first
    gradient (Wang et al. 2024, arXiv 2407.05000).

    Raises:
        UserError: The start needs data and there is none.
    """
    start = kind(config)
    if batches is None and needs_batches(config):
        raise UserError(f"method.init {start} needs training data: give data.path")
    if start in CONFIGS:  # peft fills it in where nothing else of the configuration is given
        name = f"{start}_config"
        setattr(config, name, getattr(config, name) or CONFIGS[start]())
    rows: Batches = () if batches is None else batches
    if start in ("corda", "lora_ga"):
        name_all_linear(config, network)
    if start == "corda":
        preprocess_corda(network, config, run_model=lambda: _see_rows(network, rows))
    elif start == "lora_ga":
        preprocess_loraga(network, config, train_step=lambda: _back_propagate(network, rows))
    if start == "eva":
        rows = list(islice(rows, EVA_BATCHES))  # peft asks for their length and goes through them more than once
        _enough_to_see(config, rows)
    model: Any = peft.get_peft_model(network, config)
    if start == "eva":
        peft.initialize_lora_eva_weights(model, rows, show_progress_bar=False)
        for parameter in model.parameters():
            if parameter.requires_grad:  # left in the type of the activations, which may be bfloat16
                parameter.data = parameter.data.float()
    return model


def _enough_to_see(config: Any, batches: list[dict[str, Tensor]]) -> None:
    """EVA passes over batches with too few learned tokens for its directions, for ever where all have too few."""
    needed = int(config.eva_config.rho * config.r)
    most = max((int((batch["labels"] != -100).sum()) for batch in batches), default=0)
    if most <= needed:
        raise UserError(
            f"method.init eva finds directions for r {config.r} in batches of more than {needed} learned tokens, and "
            f"the largest has {most}: raise data.batch_size or lower method.r"
        )


@torch.no_grad()
def take_from_rounding(adapted: peft.PeftModel) -> None:
    """B A is the best approximation, of its rank, of what the 4-bit base has lost: W - Q(W) (LoftQ with one
    iteration, Li et al. 2023, arXiv 2310.08659).

    The base's own weights are opened once more, in full precision, on the CPU. peft's own LoftQ computes on CUDA only
    and leaves the scale of the update out.

    Raises:
        UserError: No layer of 4 bits is adapted.
    """
    from bitsandbytes.functional import dequantize_4bit
    from peft.tuners.lora.bnb import Linear4bit

    base: Any = adapted.get_base_model()
    original = type(base).from_pretrained(
        base.name_or_path, revision=getattr(base.config, "_commit_hash", None), dtype=torch.float32
    )
    layers: dict[str, Any] = {
        name: module for name, module in adapted.named_modules() if isinstance(module, Linear4bit)
    }
    if not layers:
        raise UserError("method.init loftq starts from what 4 bits lose, and no adapted layer is held in 4 bits")
    for name, layer in layers.items():
        [adapter] = layer.active_adapters
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        rounded = layer.get_base_layer().weight
        whole: Any = original.get_submodule(name.removeprefix("base_model.model.")).weight
        lost = whole.to(a.device) - dequantize_4bit(rounded.data, rounded.quant_state).float()
        u, s, v = torch.linalg.svd(lost, full_matrices=False)
        rank = a.shape[0]
        root = s[:rank].sqrt()
        a.copy_(root[:, None] * v[:rank])
        b.copy_(u[:, :rank] * root / layer.scaling[adapter])


@torch.no_grad()
def _see_rows(network: nn.Module, batches: Batches) -> None:
    """Row by row and without padding: peft's hook takes each call for one text."""
    rows = ((ids, mask) for batch in batches for ids, mask in zip(batch["input_ids"], _mask(batch), strict=True))
    for ids, mask in islice(rows, CORDA_ROWS):
        network(input_ids=ids[mask.bool()][None], use_cache=False)


def _back_propagate(network: nn.Module, batches: Batches) -> None:
    for batch in islice(batches, LORA_GA_BATCHES):
        names = ("input_ids", "attention_mask", "position_ids", "labels")
        inputs = {name: batch[name] for name in names if name in batch}  # a packed batch has places and no mask
        network(**inputs, use_cache=False).loss.backward()


def _mask(batch: dict[str, Tensor]) -> Tensor:
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None else mask
