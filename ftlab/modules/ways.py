"""By which ways a network is computed in training: trials before it choose them, and nobody should have to guess."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftlab.attention import SDPA, unfit
from ftlab.networks import language_model

if TYPE_CHECKING:
    from ftlab.modules.finetune import FinetuneModule


def ways(module: FinetuneModule) -> dict[str, str]:
    """Of the loss (see Head), of padding, and of packs where rows are packs.

    Args:
        module: In training.
    """
    assert module.head.way is not None
    found = {"loss": module.head.way, "padding": "masked" if module.told_padding else "unseen"}
    if module.data.layout.kind == "pack":
        config: Any = language_model(module.head.network).config
        found["packs"] = "by sample" if module.told_bounds else f"by {config._attn_implementation}"
    return found


def slower(module: FinetuneModule) -> list[str]:
    """Sentences about those ways that take more memory or time than the usual ones, and that nobody asked for."""
    found, said = ways(module), []
    if found["loss"] != "fused":
        which = "token" if found["loss"] == "whole" else "target"
        said.append(
            f"the logits of every {which} of a micro-batch are held at once: the network does something with them "
            "after its output layer"
        )
    if found.get("packs") in (f"by {SDPA}", "by eager") and module.pretrained.attention is None:
        why = unfit(language_model(module.head.network))
        said.append(f"packs are computed with a mask of every pair of positions{f': {why}' if why else ''}")
    return said
