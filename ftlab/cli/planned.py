"""An experiment as `ftlab.planning` takes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision

from ftlab.attention import PACKED
from ftlab.cli.experiment import Experiment
from ftlab.errors import UserError
from ftlab.planning import Batch, Device, Processes, Step, operations_of, shape_of

_CPU_SHARE = 0.8
"""Of a machine's memory that tensors may take: the rest is the system's, the libraries' and the data's."""

_PRECISIONS: dict[str, Callable[[], Precision]] = {
    "32-true": Precision,
    "64-true": DoublePrecision,
    "bf16-true": lambda: HalfPrecision("bf16-true"),
    "bf16-mixed": lambda: MixedPrecision("bf16-mixed", "cpu"),
}
_SHORT = {"None": "32-true", "32": "32-true", "64": "64-true", "bf16": "bf16-mixed"}
_STRATEGIES = {"auto": "ddp", "ddp": "ddp", "fsdp": "fsdp", "fsdp2": "fsdp2"}


def step_of(experiment: Experiment, on_gpu: bool, length: int | None = None, rows: int | None = None) -> Step:
    """A training step of an experiment, its micro-batch full to the last token.

    Args:
        experiment: Opened or not.
        on_gpu: Whether it is planned for one.
        length: Tokens of a row; by default `data.max_length`, or the network's context.
        rows: By default those of `data.batch_size`, or as many as `data.batch_tokens` hold.

    Raises:
        UserError: Its precision cannot be planned, or its network's shape is not known.
    """
    config, module, data = experiment.config, experiment.model, experiment.datamodule
    precision = _SHORT.get(str(config.trainer.precision), str(config.trainer.precision))
    if precision not in _PRECISIONS:
        raise UserError(f"trainer.precision {precision} cannot be planned: it must be one of {', '.join(_PRECISIONS)}")
    length = length or data.encoding.max_length or _context(experiment)
    if rows is None:
        rows = data.batch_size if data.batch_tokens is None else max(1, data.batch_tokens // length)
    by_auto = data.batching == "auto" and data.batch_tokens is not None and module.pretrained.attention == PACKED
    return Step(
        module.pretrained,
        module.method,
        module.optimizer_over,
        _PRECISIONS[precision](),
        Batch(rows, length, packed=data.batching == "pack" or by_auto),
        module.gradient_checkpointing,
        config.trainer.accumulate_grad_batches > 1,
        on_gpu,
    )


def _context(experiment: Experiment) -> int:
    context = getattr(shape_of(experiment.model.pretrained), "max_position_embeddings", None)
    if context is None:
        raise UserError("data.max_length is not given, and the network says no context: give --length")
    return int(context)


def processes_of(experiment: Experiment) -> Processes:
    """Over which it trains.

    Raises:
        UserError: Nothing is known of their strategy.
    """
    trainer = experiment.config.trainer
    devices: Any = trainer.devices
    if isinstance(devices, str) and not devices.lstrip("-").isdigit() and devices != "auto":
        devices = [device for device in devices.split(",") if device]
    count = len(devices) if isinstance(devices, list) else -1 if devices == "auto" else int(devices)
    if count < 1:  # all there are
        count = max(1, torch.cuda.device_count())
    strategy = trainer.strategy
    if not isinstance(strategy, str) or strategy not in _STRATEGIES:
        raise UserError(f"trainer.strategy {strategy} cannot be planned: it must be one of {', '.join(_STRATEGIES)}")
    return Processes(count * trainer.num_nodes, _STRATEGIES[strategy], trainer.accumulate_grad_batches)


def device_of_this_machine(accelerator: str = "auto") -> Device:
    """Its first GPU, or its memory."""
    if torch.cuda.is_available() and accelerator != "cpu":
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory
        return Device(properties.name, memory, operations_of(properties.name, memory))
    total = min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *memory_limits()])
    return Device("this machine's CPU", _CPU_SHARE * total, is_gpu=False)


def memory_limits(proc: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes that the container, the job and what else this process is in may take: of its control group, and of those
    that this one is in (cgroups(7), both versions).

    Args:
        proc: Names the groups that a process is in.
        groups: Where they are.
    """
    found = []
    for line in proc.read_text(encoding="utf-8").splitlines() if proc.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        inner = top / path.lstrip("/")
        for group in (inner, *inner.parents):
            file = group / name
            if file.is_file() and (limit := file.read_text(encoding="utf-8").strip()).isdigit():
                found.append(int(limit))
            if group == top:
                break
    return found
