"""Whether a saved model has the layout that an inference server takes."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open

_PASSED_OVER = (
    "alora_invocation_tokens",
    "arrow_config",
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
)


def why_not_vllm(directory: Path) -> str | None:
    """Why vLLM cannot put the adapter in `directory` onto its base; None where it can.

    vLLM reads `r`, `lora_alpha` and `use_rslora` of adapter_config.json, one rank and one scale for all layers, and
    tensors called lora_A and lora_B (vllm/lora/peft_helper.py and utils.py, 0.11). It refuses some of what is named
    below, and would pass over the rest.
    """
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    if config["peft_type"] != "LORA":
        return f"vLLM serves LoRA adapters, and this is {config['peft_type']}"
    if config.get("use_dora") or config.get("modules_to_save") or config.get("bias", "none") != "none":
        return "vLLM takes no DoRA, no layers trained whole and no biases beside LoRA"
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        return "vLLM takes one rank and one scale for all layers"
    if field := next((field for field in _PASSED_OVER if config.get(field)), None):
        return f"vLLM would pass over {field}"
    weights = directory / "adapter_model.safetensors"
    if not weights.is_file():
        return "vLLM reads no adapter in few bits: widen it with ftlab export"
    with safe_open(weights, "pt") as file:
        other = [name for name in file.keys() if not name.endswith((".lora_A.weight", ".lora_B.weight"))]  # noqa: SIM118
    return f"vLLM would pass over {other[0]}" if other else None
