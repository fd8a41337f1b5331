"""Which method stands for what the tools say of adapters and of bases in few bits."""

from __future__ import annotations

from typing import Any

from ftlab.cli.importing.foreign import Foreign, asset


def whole(foreign: Foreign, **options: Any) -> None:
    """Every weight is trained, or those that the options choose."""
    _method(foreign, "whole", options)


def adapter(
    foreign: Foreign,
    targets: str | list[str] | None,
    bits: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Low-rank adapters.

    Args:
        foreign: What is translated.
        targets: As ftlab names them; None for those that peft takes for a network.
        bits: How the base is held: kind, double, compute_dtype; None for its own type.
        options: What else LoRA takes, as ftlab calls it; None is left out.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if targets is None:
        names = {"alpha": "lora_alpha", "dropout": "lora_dropout", "rslora": "use_rslora", "dora": "use_dora"}
        config = _named("configuration of adapters", {names.get(name, name): value for name, value in options.items()})
        _method(foreign, "by peft", {"config": config, **({"quantization": bits} if bits else {})})
    else:
        name = "adapter over few bits" if bits else "adapter"
        _method(foreign, name, {**options, "targets": targets, **(bits or {})})


def rotations(foreign: Foreign, options: dict[str, Any]) -> None:
    """Orthogonal factors, as peft's OFT has them."""
    _method(foreign, "by peft", {"config": _named("configuration of rotations", options)})


def _method(foreign: Foreign, name: str, options: dict[str, Any]) -> None:
    foreign.put("model.method", _named(name, options))


def _named(name: str, options: dict[str, Any]) -> dict[str, Any]:
    path = asset("shared")["methods"][name]
    return {"class_path": path, "init_args": options} if options else {"class_path": path}
