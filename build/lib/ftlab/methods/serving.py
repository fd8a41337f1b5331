"""Whether a saved model has the layout that an inference server takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ftlab.methods.adapter_bits import CONFIG, PLAIN

_PASSED_OVER = (
    "alora_invocation_tokens",
    "arrow_config",
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
)


_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM's --max-lora-rank takes."""


def why_not_vllm(directory: Path) -> str | None:
    """Why vLLM cannot put the adapter in `directory` onto its base; None where it can.

    vLLM reads `r`, `lora_alpha` and `use_rslora` of adapter_config.json, one rank and one scale for all layers, and
    tensors called lora_A and lora_B (vllm/lora/peft_helper.py and utils.py, 0.11). It refuses some of what is named
    below, and would pass over the rest.
    """
    config = _config(directory)
    if config["peft_type"] != "LORA":
        return f"vLLM serves LoRA adapters, and this is {config['peft_type']}"
    if config.get("use_dora") or config.get("modules_to_save") or config.get("bias", "none") != "none":
        return "vLLM takes no DoRA, no layers trained whole and no biases beside LoRA"
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        return "vLLM takes one rank and one scale for all layers"
    if config["r"] > _RANKS[-1]:
        return f"vLLM takes ranks up to {_RANKS[-1]}, and this is of rank {config['r']}"
    if field := next((field for field in _PASSED_OVER if config.get(field)), None):
        return f"vLLM would pass over {field}"
    with safe_open(directory / PLAIN, "pt") as file:
        other = [name for name in file.keys() if not name.endswith((".lora_A.weight", ".lora_B.weight"))]  # noqa: SIM118
    return f"vLLM would pass over {other[0]}" if other else None


def vllm_rank(directory: Path) -> int:
    """What vLLM's --max-lora-rank must be at least for an adapter that it can serve."""
    return next(rank for rank in _RANKS if rank >= _config(directory)["r"])


def _config(directory: Path) -> dict[str, Any]:
    return json.loads((directory / CONFIG).read_text(encoding="utf-8"))


def misfit(directory: Path, base: Path) -> str | None:
    """The first tensor of a LoRA adapter that does not fit the weights of a base, in a clause; None where all do.

    Args:
        directory: The adapter.
        base: Directory of a network in safetensors; only the heads of its files are read.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in base.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    with safe_open(directory / PLAIN, "pt") as adapter:
        for name in adapter.keys():  # noqa: SIM118
            layer, _, matrix = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
            theirs = shapes.get(f"{layer}.weight") or shapes.get(f"{layer.partition('.')[2]}.weight")
            if theirs is None:
                return f"there is no {layer}"
            rows, columns = adapter.get_slice(name).get_shape()
            if (columns if matrix == "lora_A" else rows) not in theirs:  # GPT-2 stores its matrices the other way
                return f"{layer} is {' x '.join(map(str, theirs))}, and {matrix} is {rows} x {columns}"
    return None
