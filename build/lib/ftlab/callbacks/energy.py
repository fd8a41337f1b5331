"""The energy that a GPU has used, as its driver counts it: by NVML, which comes with the driver."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch


def joules(device: torch.device) -> float | None:
    """Used by the whole board since its driver was loaded; None where it does not tell.

    Boards before Volta, slices of a board (MIG) and processors do not.
    """
    if device.type != "cuda" or (nvml := _nvml()) is None:
        return None
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()  # indices are others than torch's
    handle, used = ctypes.c_void_p(), ctypes.c_ulonglong()
    if nvml.nvmlDeviceGetHandleByUUID(ctypes.c_char_p(name), ctypes.byref(handle)):
        return None
    if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used)):
        return None
    return used.value / 1000


@functools.cache
def _nvml() -> Any:
    """The library; None where there is none."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return None if library.nvmlInit_v2() else library
