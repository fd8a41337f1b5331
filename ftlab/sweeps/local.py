"""The local launcher: workers as processes of this machine, which end with it.

A launcher is a function `(directory, workers, watch)` that has workers of a sweep started, and returns when they have
ended; `ftlab.sweeps.slurm` has another.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Protocol

from ftlab.errors import Preempted, UserError
from ftlab.sweeps.directory import SweepDirectory
from ftlab.sweeps.worker import command, stop_with_parent

_LOOK = 1.0
"""Seconds between looks at where the sweep stands."""


class Launcher(Protocol):
    """Has `workers` workers of a sweep started, calls `watch` from time to time, returns when all have ended."""

    def __call__(self, directory: SweepDirectory, workers: int, watch: Callable[[], None]) -> None: ...


def local(directory: SweepDirectory, workers: int, watch: Callable[[], None]) -> None:
    """Workers on this machine; of the GPUs that CUDA_VISIBLE_DEVICES names, each has as many as a trial takes.

    Raises:
        KeyboardInterrupt: The user has stopped it; the trials have been saved.
        Preempted: A signal has.
        UserError: A worker could not go on.
    """
    logs = directory.path / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    devices = directory.plan().devices
    with _interrupts() as told:
        running = [_start(directory, logs / f"worker-{n}.log", _gpus(n, devices)) for n in range(workers)]
        stopping = False
        while any(process.poll() is None for process in running):
            time.sleep(_LOOK / 5 if stopping else _LOOK)
            if told and not stopping:
                stopping = True
                for process in running:
                    process.terminate()
            watch()
    if told == ["SIGINT"]:
        raise KeyboardInterrupt(f"stopped: ftlab sweep resume {directory.path} goes on")
    if told:
        raise Preempted(f"stopped by {told[0]}: ftlab sweep resume {directory.path} goes on")
    for number, process in enumerate(running):
        if process.returncode > 0 and process.returncode != Preempted.EXIT_CODE:
            raise UserError(_last_line(logs / f"worker-{number}.log"))
    if all(process.returncode < 0 for process in running):
        raise UserError(f"all workers were killed: ftlab sweep resume {directory.path} goes on where they were")


def named_gpus() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, which workers share out among themselves."""
    return [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]


def _gpus(worker: int, devices: int) -> dict[str, str]:
    """The environment that shows the worker of this number its GPUs: where there are more workers, they share some."""
    gpus = named_gpus()
    if devices >= len(gpus):
        return {}
    first = worker * devices
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[n % len(gpus)] for n in range(first, first + devices))}


def _start(directory: SweepDirectory, log: Path, own: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command(directory.path),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **own},
            start_new_session=True,  # Ctrl-C is for this process, which stops them in order
            preexec_fn=stop_with_parent,
        )


@contextlib.contextmanager
def _interrupts() -> Iterator[list[str]]:
    """A list that holds the name of the first signal to stop."""
    told: list[str] = []

    def tell(number: int, _: FrameType | None) -> None:
        if not told:
            told.append(signal.Signals(number).name)

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("ftlab: ") if lines else f"a worker has failed without a word: see {log}"
