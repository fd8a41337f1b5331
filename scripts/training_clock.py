"""What is noted of a training's steps, whichever tool takes them."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

from training_cost import Work


class Clock:
    """Notes when steps begin and end, what they hold, their losses, and the norm of the first gradient.

    The device is waited for twice, where the measured steps begin and where they end.

    Args:
        work: What is trained; `last` is the number of its steps, where rows are packed to be said anew.
    """

    def __init__(self, work: Work) -> None:
        self.work, self.step, self.last = work, 0, work.steps
        self.held: dict[str, list[Any]] = {"tokens": [], "targets": [], "positions": []}
        self.losses: list[Any] = []
        self.norm = self.began = self.first = self.seconds = self.cpu = 0.0
        self.profiler: Any = None

    def holds(self, tokens: Any, targets: Any, positions: int) -> None:
        """Of a step: real tokens, those that are learned, and places in its rows; tensors are read at the end."""
        for name, number in (("tokens", tokens), ("targets", targets), ("positions", positions)):
            self.held[name].append(number)

    def begins(self) -> None:
        if self.step == 0:
            self.first = since_start()
        if self.step == self.work.warm:
            _wait()
            self.began, self.cpu = time.perf_counter(), time.process_time()
        if self.work.profiled and self.step == self.last - 3:
            from torch.profiler import profile

            self.profiler = profile()
            self.profiler.__enter__()

    def updates(self, parameters: Any) -> None:
        """Of the first step, before the optimiser's: afterwards gradients may be gone."""
        if self.step == 0:
            import torch

            gradients = [p.grad for p in parameters if p.grad is not None]
            self.norm = float(torch.nn.utils.get_total_norm(gradients))

    def ends(self, loss: Any) -> bool:
        """Whether it was the last; `loss` is the mean over the step's targets."""
        self.losses.append(loss.detach())
        self.step += 1
        if self.step < self.last:
            return False
        _wait()
        self.seconds, self.cpu = time.perf_counter() - self.began, time.process_time() - self.cpu
        return True

    def figures(self) -> dict[str, Any]:
        import torch

        if self.profiler:
            self.profiler.__exit__(None, None, None)
            self.profiler.export_chrome_trace(self.work.profiled)
            for by in ("self_cuda_time_total", "self_cpu_time_total"):
                print(self.profiler.key_averages().table(sort_by=by, row_limit=16, max_name_column_width=60))
        steps = self.last - self.work.warm
        if self.step != self.last or steps < 1:
            raise SystemExit(
                f"{self.step} steps were taken, {self.last} were to be, of them {self.work.warm} unmeasured"
            )
        cuda = torch.cuda.is_available()
        return {
            "seconds": self.seconds / steps,
            "cpu": self.cpu / steps,
            "first_step": self.first,
            "losses": [float(loss) for loss in self.losses],
            **{name: [int(number) for number in numbers] for name, numbers in self.held.items()},
            "norm": self.norm,
            "memory": torch.cuda.max_memory_allocated()
            if cuda
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
        }


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def since_start() -> float:
    """Seconds since this process was started."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
