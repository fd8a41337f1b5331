"""QLoRA: LoRA over a frozen base held in few bits (Dettmers et al. 2023, arXiv 2305.14314)."""

from __future__ import annotations

from typing import Literal

from ftlab.errors import UserError
from ftlab.methods.lora import REWRITES_THE_BASE, LoRA
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
        init: Where A and B start, as for LoRA; those that rewrite the base need a full-precision one.
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
        init: Literal["default", "gaussian", "orthogonal", "eva"] = "default",
        ratio: float = 1.0,
        modules_to_save: list[str] | None = None,
        layers: list[int] | None = None,
        kind: Literal["nf4", "fp4", "int8"] = "nf4",
        double: bool = True,
        compute_dtype: DType = "bfloat16",
    ) -> None:
        if init in REWRITES_THE_BASE:
            raise UserError(
                f"method.init {init} rewrites the base, which QLoRA holds in few bits: use LoRA, or another init"
            )
        super().__init__(r, alpha, dropout, targets, dora, rslora, init, ratio, modules_to_save, layers)
        self.quantization = Quantization(kind, double, compute_dtype)
