"""Devices by name: how much they hold, and how fast they multiply."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from ftlab.errors import UserError

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(MB|MiB|GB|GiB)", re.IGNORECASE)
_UNITS = {"mb": 1e6, "mib": 2.0**20, "gb": 1e9, "gib": 2.0**30}
_CONTEXT = 0.6e9
_IN_PIECES = 0.03


@dataclass(frozen=True)
class Device:
    """What one is planned for.

    Args:
        name: As its maker calls it.
        memory: In bytes.
        operations: Dense bfloat16 operations a second, sums in float32, by the maker's datasheet; None where unknown.
        is_gpu: Whether it is one.
    """

    name: str
    memory: float
    operations: float | None = None
    is_gpu: bool = True

    @property
    def usable(self) -> float:
        """Bytes that tensors may take: on a GPU its context takes 0.6 GB, and 3 % are lost between blocks."""
        return (self.memory - _CONTEXT) * (1 - _IN_PIECES) if self.is_gpu else self.memory


_GIB = 2.0**30
DEVICES = (
    Device("T4", 15 * _GIB),  # it has no bfloat16
    Device("L4", 22.5 * _GIB, 121e12),
    Device("A10", 22.5 * _GIB, 125e12),
    Device("RTX 3090", 24 * _GIB, 71e12),
    Device("RTX 4090", 24 * _GIB, 165e12),
    Device("RTX 5090", 32 * _GIB, 209e12),
    Device("V100 32GB", 32 * _GIB),  # nor has it
    Device("A100 40GB", 39.5 * _GIB, 312e12),
    Device("RTX A6000", 47.5 * _GIB, 155e12),
    Device("L40S", 44.5 * _GIB, 362e12),
    Device("A100 80GB", 79.2 * _GIB, 312e12),
    Device("H100", 79.2 * _GIB, 989e12),
    Device("H100 PCIe", 79.2 * _GIB, 756e12),
    Device("H100 NVL", 93.6 * _GIB, 835e12),
    Device("H200", 139.8 * _GIB, 989e12),
    Device("B200", 178 * _GIB, 2250e12),
    Device("MI300X", 191 * _GIB, 1307e12),
)
"""With the memory that their drivers report, where the memory check of the card (ECC) has taken its part."""


def size_in_bytes(text: str) -> float | None:
    """Of a size such as "24 GB" or "500 MiB"; None of any other text."""
    size = _SIZE.fullmatch(text.strip())
    return float(size[1]) * _UNITS[size[2].lower()] if size else None


def device_named(name: str) -> Device:
    """A device by its name, or one of so much memory, such as "24 GB".

    Raises:
        UserError: There is no such name.
    """
    if (size := size_in_bytes(name)) is not None:
        return Device(name.strip(), size)
    by_name = {_plain(device.name): device for device in DEVICES}
    plain = _plain(name)
    if plain in by_name:
        return by_name[plain]
    near = [device.name for known, device in by_name.items() if plain in known or known in plain]
    near = near or [by_name[found].name for found in difflib.get_close_matches(plain, by_name, n=2)]
    known = ", ".join(device.name for device in DEVICES)
    raise UserError(
        f"device: there is no {name!r}; did you mean {' or '.join(near)}?"
        if near
        else f"device: there is no {name!r}: give its memory, such as '24 GB', or one of {known}"
    )


def operations_of(name: str, memory: float = 0.0) -> float | None:
    """Of a device as its driver calls it, such as "NVIDIA A100-SXM4-80GB": by the one here of which most words are in
    that name, and whose memory is nearest; None where there is none, or the device is a laptop's."""
    words = _words(name)
    if {"laptop", "mobile", "max"} & set(words):  # a slower one of the same name
        return None
    found = [(len(asked), device) for device in DEVICES if _in_a_row(asked := _model(device.name), words)]
    most = max((count for count, _ in found), default=0)
    alike = [device for count, device in found if count == most]
    nearest = min(alike, key=lambda device: abs(device.memory - memory), default=None)
    return nearest.operations if nearest else None


def _words(name: str) -> list[str]:
    return re.split(r"[\W_]+", name.lower())


def _model(name: str) -> list[str]:
    """Its words without its memory, which drivers tell otherwise."""
    return [word for word in _words(name) if not re.fullmatch(r"\d+gb", word)]


def _in_a_row(some: list[str], words: list[str]) -> bool:
    return any(words[start : start + len(some)] == some for start in range(len(words)))


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|[\W_]", "", name.lower())
