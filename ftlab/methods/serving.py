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
