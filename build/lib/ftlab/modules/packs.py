"""By which attention packs are computed; and none where their samples would see each other."""

from __future__ import annotations

from typing import Any

from torch import nn

from ftlab.attention import PACKED, SDPA, unfit
from ftlab.data.layout import FLASH
from ftlab.errors import UserError, one_line, out_of_memory
from ftlab.modules.isolation import attention_is_isolated
from ftlab.networks import Network, language_model


def attend_to_packs(network: nn.Module, pretrained: Network, before: str | None = None) -> bool:
    """Has packs be computed sample by sample where the network is fit for that, else as it computes them itself.

    Which of the two is tried on the network as it stands. A run that goes on computes as it did before: an attention
    rounds as no other does.

    Args:
        network: Adapted, in training mode.
        pretrained: As it was opened.
        before: The attention by which a run was computed so far that goes on now.

    Returns:
        Whether the network is to be told where samples begin.

    Raises:
        UserError: Packed records see each other, or it cannot be tried; or what `before` says is not possible.
    """
    model: Any = language_model(network)
    default = pretrained.attention is None and model.config._attn_implementation == SDPA and before in (None, PACKED)
    if default or pretrained.attention == PACKED:
        why = unfit(model)
        if why is None:
            model.set_attn_implementation(PACKED)
            why = _leak(network, 2, told_bounds=True)
        if why is None:
            return True
        if before == PACKED or pretrained.attention == PACKED:
            raise UserError(
                f"network.attention {PACKED}: {pretrained.path} with this method is not fit for it ({why}): "
                + ("start another run (--run.name)" if pretrained.attention is None else f"take {SDPA}")
            )
        model.set_attn_implementation(SDPA)
    if why := _leak(network, 1 if pretrained.attention in FLASH else 2):  # as the collator lays packs
        raise UserError(
            f"data.batching pack: in {pretrained.path} with this method {why}, so the loss would be of something else; "
            "set data.batching to bucket"
        )
    return False


def _leak(network: nn.Module, packs: int, told_bounds: bool = False) -> str | None:
    """In what packed records of a network fail to be as if alone; None where they are."""
    try:
        isolated = attention_is_isolated(network, packs, told_bounds)
    except Exception as error:  # whatever a network raises on a batch that it was not made for
        if out_of_memory(error):
            raise
        return f"packed records cannot be read ({one_line(error)})"
    return None if isolated else "packed records see each other"
