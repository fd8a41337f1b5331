"""What has been found of peft's configurations by trying each, not by what they say (docs/results/method_bases.md).

Some take the packed bytes of few bits for weights, some add to the loss only where peft computes it, some lose a tensor
when they are saved, and none of them says so. What has not been tried is taken to work on a base in full precision.
"""

from __future__ import annotations

from typing import Any

import peft
from peft.tuners.boft.layer import get_fbd_cuda

from ftlab.methods import starts

FOUR_BITS = frozenset({"nf4", "fp4"})
CHECKPOINTS = frozenset({"torchao"})
"""What others have quantised: no kind of `Quantization`, and not to be asked for."""
EVERY = FOUR_BITS | CHECKPOINTS | {"full", "int8"}

_ON_EVERY_BASE = """
    AdaLora AdaptionPrompt BOFT Beft C3A CPT Cartridge FourierFT Gralora Hira IA3 LNTuning Lily Lora Miss OFT
    PrefixTuning PromptEncoder PromptTuning Pvera RandLora Road Shira TrainableTokens VBLoRA Vera WaveFT
"""
_NOT_ON_FOUR_BITS = "LoHa LoKr"
_NOT_ON_INT8 = "Shira"
"""Computes over the weights that the 8 bits stand for, without what int8 does to activations: it begins elsewhere."""
_RANK_OF_THE_LAYER = "Delora Hira HRA LoHa Psoft"
# of the last four it is a decomposition of the base that is put together again
_STARTS_ELSEWHERE = "CPT Cartridge PrefixTuning PromptEncoder PromptTuning UniLora VBLoRA XLora Deft Frod HRA OSF"


def bases_of(config: peft.PeftConfig) -> frozenset[str]:
    """The bases on which a configuration works: "full", kinds of `Quantization`, and "torchao" checkpoints."""
    name = _name(config)
    if name in _NOT_ON_FOUR_BITS.split():
        return EVERY - FOUR_BITS
    if name in _NOT_ON_INT8.split():
        return EVERY - {"int8"}
    if name not in _ON_EVERY_BASE.split():
        return frozenset({"full"})
    if name == "Hira":
        return EVERY - {"torchao"}
    return _bases_of_lora(config) if isinstance(config, peft.LoraConfig) else EVERY


def starts_as_the_base(config: peft.PeftConfig) -> bool:
    """Whether the adapted network answers, to the bit, as the base does."""
    said: Any = [getattr(config, name, True) for name in ("init_weights", "init_lora_weights", "init_ia3_weights")]
    if False in said or (_name(config) == "C3A" and said[0] is not True):
        return False
    if isinstance(config, peft.LoraConfig) and config.layer_replication:
        return False
    return not (starts.rewrites_the_base(config) or _name(config) in _STARTS_ELSEWHERE.split())


def refusal(config: peft.PeftConfig) -> str | None:
    """Why a configuration would train or keep something else than it says; None where it does not."""
    lora: Any = config if isinstance(config, peft.LoraConfig) else None
    name = _name(config)
    if name == "AdaLora":
        return "its budget is laid over the steps of the training by ftlab.methods.AdaLoRA: use that"
    if name in ("Poly", "MultitaskPromptTuning"):
        return "it wants a task number with each record, which batches do not carry"
    if name == "XLora":
        return "peft leaves the first layer of its router out when it saves it: use ftlab.methods.XLoRA"
    if name == "Shadow" or (lora and (lora.monteclora_config or lora.kasa_config)):
        return "a part of its loss is only added where peft computes the loss itself, which is not the one trained here"
    if name == "CPT" and getattr(config, "opt_weighted_loss_type", "none") != "none":
        return "its weighted loss is only computed by peft itself: set opt_weighted_loss_type to none"
    if name == "Adamss" and getattr(config, "use_asa", False):
        return "the importances that use_asa gathers would be lost in a checkpoint: set it to false"
    if name == "BOFT" and config.boft_n_butterfly_factor > 1 and get_fbd_cuda() is None:  # type: ignore[attr-defined]
        return (
            "peft takes one butterfly factor where its CUDA extension cannot be built, which is so here: set "
            "boft_n_butterfly_factor to 1"
        )
    if lora and (why := _of_another_start(lora)):
        return why
    if lora and lora.velora_config:
        return "what velora_config notes of the first batch would be lost in a checkpoint"
    if starts.kind(config) == "loftq":
        return "peft's LoftQ needs CUDA and rewrites the base: use ftlab.methods.QLoRA with init loftq"
    return None


def _of_another_start(config: peft.LoraConfig) -> str | None:
    """What peft would leave aside with a warning."""
    for start in ("eva", "corda"):
        if getattr(config, f"{start}_config") is not None and config.init_lora_weights != start:
            return f"{start}_config acts with init_lora_weights {start} alone: give both, or neither"
    return None


def rank_is_of_the_layer(config: peft.PeftConfig) -> bool:
    """Whether `r` is the rank of an update, which is that of the layer at most, and not a size of something shared."""
    return isinstance(config, peft.LoraConfig) or _name(config) in _RANK_OF_THE_LAYER.split()


def _name(config: peft.PeftConfig) -> str:
    return type(config).__name__.removesuffix("Config")


def _bases_of_lora(config: peft.LoraConfig) -> frozenset[str]:
    """LoRA's variants: those that compute with the weight itself need all of it."""
    with_the_weight = starts.rewrites_the_base(config) or starts.kind(config) in ("orthogonal", "mica")
    if with_the_weight or config.layer_replication:
        return frozenset({"full"})
    if config.lora_bias:
        return EVERY - {"torchao"}
    return EVERY - {"int8"} if config.use_dora else EVERY
