"""A checkpoint in as many files as processes: each writes its part of the tensors, and the first all else.

The first's file is as that of any checkpoint without its tensors, and says which parts belong to it. Put together, they
are what one process would have written, so that any number of processes goes on from them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from ftlab.runs import CheckpointFiles

PARTED = ("state_dict", "optimizer_states")


@dataclass(frozen=True)
class Parts:
    """The parts of a checkpoint.

    Args:
        kind: last or best.
        step: Optimiser steps that it has seen.
        of: How many there are.
    """

    kind: str
    step: int
    of: int


def divide(checkpoint: dict[str, Any], parts: Parts) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the first process writes of a checkpoint, and the part with this process's tensors."""
    own = {name: checkpoint[name] for name in PARTED if name in checkpoint}
    rest = {name: value for name, value in checkpoint.items() if name not in own}
    return rest | {"parts": asdict(parts)}, own


def read(path: Path, own: tuple[int, int] | None = None, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint, whole, whether it is in parts or not. Tensors and plain values only: nothing in it is run.

    Weights and moments come into memory as they are used. Whoever changes them has a copy, and the file stays.

    Args:
        path: Of its first file, or a link to that.
        own: This process's number, and how many there are: of as many parts the optimiser's state is left in its own,
            under `own_state`, as the whole takes the room of all.
        map_location: Where the tensors go.

    Raises:
        UserError: A part is not there.
    """
    checkpoint = _mapped(path, map_location)
    said = checkpoint.pop("parts", None)
    if said is None:
        return checkpoint
    files = CheckpointFiles(path.resolve().parent).parts(**said)
    parts = [_mapped(file, map_location) for file in files]
    checkpoint["state_dict"] = joined([part["state_dict"] for part in parts])
    if own and own[1] == said["of"]:
        checkpoint["optimizer_states"] = parts[own[0]]["optimizer_states"]
        checkpoint["own_state"] = True
    else:
        checkpoint["optimizer_states"] = joined([part["optimizer_states"] for part in parts])
    return checkpoint


def _mapped(path: Path, map_location: Any) -> dict[str, Any]:
    content = torch.load(path, map_location=map_location, mmap=True, weights_only=True)

    def scalar_copied(tensor: Tensor) -> Tensor:
        return tensor if tensor.ndim else tensor.clone()

    # what stays on the CPU, such as an optimiser's counts of steps, keeps a deleted file's room on the disk: so do
    # moments where training is on a CPU, of which a copy would take more than it saves
    copies = {name: scalar_copied if name in PARTED else torch.clone for name in content}
    return {name: apply_to_collection(value, Tensor, copies[name]) for name, value in content.items()}


def joined(parts: list[Any]) -> Any:
    """Nested values of which tensors are cut by rows, put together; of all else every part has the same."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts) if first.ndim else first
    if isinstance(first, dict):
        return {key: joined([part[key] for part in parts]) for key in first}
    if isinstance(first, list) and len(first) and isinstance(first[0], dict):
        return [joined([part[number] for part in parts]) for number in range(len(first))]
    return first
