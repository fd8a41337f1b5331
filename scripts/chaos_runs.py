"""The run that every fault of chaos.py is done to: the commands on it, each a process, and what it leaves.

A command is a process, forked from this one, which has imported torch: it is killed, starves and exits like any other,
and starts in a fraction of the time. What needs Lightning to start further processes starts from nothing.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
STEPS = 40
FAULTY = '''
"""LoRA on a network that fails where a file of the fault's name lies in the working directory."""
from pathlib import Path
import torch
from ftlab.methods import LoRA

def fail(network, arguments, output):
    if Path("no memory in training").exists() and network.training or \\
            Path("no memory in evaluation").exists() and not network.training:
        torch.empty(1 << 50)
    if Path("not a number").exists() and network.training:
        output.logits = output.logits * float("nan")
    return output

class Faulty(LoRA):
    def adapt(self, network, batches=None):
        network.register_forward_hook(fail)
        return super().adapt(network, batches)
'''


def import_all() -> None:
    """What every command needs, before processes are forked; torch starts no thread by it."""
    import ftlab.cli.export
    import ftlab.cli.verbs  # noqa: F401


class Command:
    """One ftlab command in a process of its own.

    Args:
        place: Its working directory.
        words: The command.
        fresh: Start the interpreter anew instead of forking this one.
        before: Called in the process first.
    """

    def __init__(
        self, place: Path, words: list[str], fresh: bool = False, before: Callable[[], object] | None = None
    ) -> None:
        self.said = place / f"said-{len(list(place.glob('said-*')))}"
        self.pid = os.fork()
        if self.pid:
            self._code: int | None = None
            self._descriptor = os.pidfd_open(self.pid)  # readable when the process has ended
            return
        code = 70
        try:
            os.chdir(place)
            out = os.open(self.said, os.O_WRONLY | os.O_CREAT)
            for descriptor in (1, 2):
                os.dup2(out, descriptor)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if fresh:
                os.environ["PYTHONPATH"] = str(TOP)
                os.execv(sys.executable, [sys.executable, "-m", "ftlab", *words])
            if before:
                before()
            from ftlab.cli import main as ftlab

            code = ftlab(words)
        except BaseException:  # a bug of ours, to be seen in what was said
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, seconds: float = 120) -> int | None:
        """The exit code, negative for a signal; None where the process does not end in time."""
        if self._code is None and select.select([self._descriptor], [], [], seconds)[0]:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._descriptor)
        return self._code

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal, where the process has not ended."""
        if self.wait(0) is None:
            os.kill(self.pid, number)

    def children(self) -> list[int]:
        """Processes that it has started and that live."""
        found = [Path(f"/proc/{self.pid}/task/{task}/children") for task in os.listdir(f"/proc/{self.pid}/task")]
        return [int(pid) for path in found for pid in path.read_text().split()]

    def sentence(self) -> str:
        """The last line that was said."""
        lines = [line for line in self.said.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def refused(self) -> bool:
        """Whether it ended with 1 and a sentence of ftlab, and no trace."""
        said = self.said.read_text(errors="replace")
        return self._code == 1 and self.sentence().startswith("ftlab: ") and "Traceback" not in said


def words(verb: str, *options: str) -> list[str]:
    """The command of a verb on the experiment that all faults are done to."""
    said = {
        "run.name": "chaos",
        "run.checkpoints.every_n_steps": "1",
        "wandb.mode": "disabled",
        # an epoch is six steps: faults come at the ends of epochs, too
        "data.path": "null",
        "data.sources": json.dumps([{"path": str(TOP / "ftlab/assets/data"), "limit": 12}]),
        "data.batch_size": "2",
        "data.validation_limit": "8",
        "data.cache": "cache",
        "model.network.path": str(TOP / "ftlab/assets/network"),
        "model.method": "faulty.Faulty",
        "model.method.dropout": "0.1",
        "trainer.accelerator": "cpu",
        "trainer.max_steps": str(STEPS),
        "trainer.val_check_interval": "9",
        "trainer.check_val_every_n_epoch": "null",
        "trainer.log_every_n_steps": "1",
        "trainer.enable_progress_bar": "false",
    }
    files = ["-c", str(TOP / "experiments/base.yaml"), "-c", str(TOP / "experiments/data/demo.yaml")]
    return [verb, *files, *(word for name, value in said.items() for word in (f"--{name}", value)), *options]


def run_of(place: Path) -> Path:
    return place / "runs/demo/chaos"


def left(place: Path) -> dict[str, bytes]:
    """What a run leaves that must not depend on faults, by name."""
    run = run_of(place)
    files = {path.name: path.read_bytes() for path in sorted((run / "model").glob("*"))}
    header, *rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    kept = [number for number, name in enumerate(header) if name not in ("tokens_per_second", "peak_memory")]
    curves = "\n".join(",".join(row[number] for number in kept) for row in [header, *rows])
    return files | {"curves": curves.encode()}


def newest(place: Path) -> int:
    """The step of its newest checkpoint; 0 where there is none."""
    return max((int(path.name.split("-")[1]) for path in run_of(place).glob("checkpoints/last-*.ckpt")), default=0)


def bits_apart(one: dict[str, bytes], other: dict[str, bytes]) -> int:
    """Bits in which two runs differ; where one is longer, all that it has more."""
    apart = 0
    for name in {**one, **other}:
        a, b = one.get(name, b""), other.get(name, b"")
        apart += sum((x ^ y).bit_count() for x, y in zip(a, b, strict=False)) + 8 * abs(len(a) - len(b))
    return apart


def short(sentence: str, place: Path) -> str:
    """A sentence as a cell of a table, without where this machine has things."""
    return sentence.removeprefix("ftlab: ").replace(f"{place}/", "").replace(str(TOP), ".")[:300]
