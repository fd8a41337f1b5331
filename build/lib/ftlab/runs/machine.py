"""The machine that a run is made on: what it consists of, what is installed, and what the environment says to it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ftlab
from ftlab.runs.redaction import redacted

# Variables that can change results or say where a run was made. An allow-list: no other one is written down.
_VARIABLES = {
    *("CUBLAS_WORKSPACE_CONFIG", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES"),
    *("FTLAB_CACHE", "HF_DATASETS_OFFLINE", "HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *("MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *("PYTHONHASHSEED", "TOKENIZERS_PARALLELISM", "WANDB_MODE"),
    *("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "NODE_RANK", "RANK", "WORLD_SIZE"),
    *("SLURM_CPUS_PER_TASK", "SLURM_GPUS_ON_NODE", "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_NODELIST"),
    *("SLURM_JOB_PARTITION", "SLURM_NNODES", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_RESTART_COUNT"),
}
_BEGINNINGS = ("NCCL_", "SLURM_ARRAY_")


def hardware() -> dict[str, Any]:
    """Processor, usable cores, memory in bytes, GPUs, driver, CUDA and cuDNN, system and name of this machine."""
    return {
        "hostname": socket.gethostname(),
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
    }


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of the environment, the variables of a fixed list, by name."""
    given = os.environ if variables is None else variables
    wanted = (name for name in given if name in _VARIABLES or name.startswith(_BEGINNINGS))
    return {name: redacted(given[name]) for name in sorted(wanted)}


def packages() -> dict[str, str]:
    """The version of every installed distribution, by its normalised name, and of ftlab, installed or not."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # what is half installed has none; of two of a name the first is imported
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    found["ftlab"] = ftlab.__version__  # which PYTHONPATH alone may have brought
    return {"python": platform.python_version()} | dict(sorted(found.items()))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpus() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        "devices": [{"name": device.name, "memory_bytes": device.total_memory} for device in devices],
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    """The version of NVIDIA's kernel module."""
    try:
        said = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    version = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", said)
    return version[0] if version else None
