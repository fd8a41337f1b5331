"""QLoRA: LoRA over a frozen base held in few bits (Dettmers et al. 2023, arXiv 2305.14314)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import peft
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.methods import starts
from ftlab.methods.lora import LoRA, Start
from ftlab.methods.traits import FOUR_BITS
from ftlab.networks import DType, Quantization


class QLoRA(LoRA):
    """LoRA whose base is quantised; the adapter stays in full precision.

    Args:
        r: Rank of the update.
        alpha: Scale of the update, which is multiplied by alpha / r; 2 r where none is given.
        dropout: Share of the adapter's inputs that are dropped in training.
        targets: Layers to adapt: `all-linear` (all but the head), last parts of their names, or a regular expression.
        dora: Learn magnitude and direction apart (DoRA, arXiv 2402.09353).
        rslora: Scale by alpha / sqrt(r) (rsLoRA, arXiv 2312.03732).
        init: Where A and B start, as for LoRA, of which those that rewrite the base need a full-precision one; `loftq`
            (arXiv 2310.08659, one iteration) begins with the best approximation of what 4 bits have lost.
        ratio: B learns this many times as fast as A (LoRA+, arXiv 2402.12354).
        modules_to_save: Layers that are trained whole beside the adapters, such as `lm_head`.
        layers: Numbers of the decoder layers to adapt; all where none is given.
        kind: nf4 (normal float, for weights that are normally distributed), fp4, or int8 (LLM.int8()).
        double: Quantise the scales of the blocks too (4-bit kinds).
        compute_dtype: Type in which dequantised weights are multiplied.
    """

    def __init__(
        self,
        r: int = 16,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: str | list[str] = "all-linear",
        dora: bool = False,
        rslora: bool = False,
        init: Start | Literal["loftq"] = "default",
        ratio: float = 1.0,
        modules_to_save: list[str] | None = None,
        layers: list[int] | None = None,
        kind: Literal["nf4", "fp4", "int8"] = "nf4",
        double: bool = True,
        compute_dtype: DType = "bfloat16",
    ) -> None:
        self._from_rounding = init == "loftq"
        start: Any = "default" if self._from_rounding else init
        super().__init__(r, alpha, dropout, targets, dora, rslora, start, ratio, modules_to_save, layers)
        if self._from_rounding:
            self.bases = FOUR_BITS
        self._quantise(Quantization(kind, double, compute_dtype))
        self.rewrites_base = self.rewrites_base or self._from_rounding
        self.identity_at_start = not self._from_rounding

    @property
    def described(self) -> str:
        return "QLoRA with init loftq" if self._from_rounding else super().described

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        adapted = super().adapt(network, batches)
        if self._from_rounding:
            assert isinstance(adapted, peft.PeftModel)
            starts.take_from_rounding(adapted)
        return adapted
