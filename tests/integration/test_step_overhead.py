"""Between two log lines nobody waits for the device, and nobody walks through the network: both are counted.

On a CPU no read waits; it is counted all the same, as on a GPU it would. What transformers and bitsandbytes do within a
forward pass is theirs (docs/how-to/speed.md).
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from terminals import Terminal
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ftlab.callbacks import (
    Checkpoints,
    FrozenBase,
    MetricsCSV,
    NonfiniteSteps,
    Preemption,
    Throughput,
    TrainingBar,
    Whereabouts,
)
from ftlab.methods import AdaLoRA, Full, LoRA, QLoRA
from ftlab.modules.nonfinite import Soundness, Step
from ftlab.modules.outcomes import Outcome
from ftlab.networks import decoder_blocks
from ftlab.runs import Run, RunOptions

Make = Callable[..., Any]

EVERY, ACCUMULATE = 4, 2
READS = {
    *(torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default),
    *(torch.ops.aten.masked_select.default, torch.ops.aten.is_nonzero.default),
}
THEIRS = ("/transformers/", "/bitsandbytes/")


def fused(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-3, fused=True)


class Watch(TorchDispatchMode, pl.Callback):
    """Counts, in micro-batches that end in no log line, reads of tensors, walks through modules, and gradient norms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.on = False
        self.steps = self.norms = 0
        self.reads: Counter[str] = Counter()
        self.walks: Counter[str] = Counter()
        self.lags: list[int] = []
        """How many steps later the outcome of each was read."""
        self._wide: set[nn.Module] = set()
        for name in ("tolist", "numpy", "cpu", "__array__"):
            self._note(monkeypatch, Tensor, name, lambda *_: self._reads())
        for name in ("named_modules", "named_children", "state_dict"):
            self._note(monkeypatch, nn.Module, name, self._walks)
        self._note(monkeypatch, nn.utils, "get_total_norm", lambda *_: self._norm())
        read, judge = Outcome.read, Soundness.judge

        def unseen(outcome: Outcome) -> tuple[float, float]:  # has arrived
            with self.off():
                return read(outcome)

        def judged(soundness: Soundness, step: Step) -> bool:
            if self.on:
                self.lags.append(self._module.global_step + 1 - step.number)
            return judge(soundness, step)

        monkeypatch.setattr(Outcome, "read", unseen)
        monkeypatch.setattr(Soundness, "judge", judged)

    def _note(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, note: Callable[[Any], None]) -> None:
        real = getattr(owner, name)

        def noted(it: Any, *args: Any, **kwargs: Any) -> Any:
            if self.on:
                note(it)
            return real(it, *args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    @contextmanager
    def off(self) -> Iterator[None]:
        before, self.on = self.on, False
        yield
        self.on = before

    def _norm(self) -> None:
        self.norms += 1

    def _reads(self) -> None:
        if not any(part in (by := _caller()) for part in THEIRS):
            self.reads[by] += 1

    def _walks(self, module: nn.Module) -> None:
        if module in self._wide:
            self.walks[_caller()] += 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.on and function in READS:
            self._reads()
        return function(*args, **(kwargs or {}))

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._module = pl_module
        blocks = decoder_blocks(pl_module.network)
        self._wide = {module for module in pl_module.modules() if blocks[0] in set(module.modules())}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        logs = (batch_idx + 1) % ACCUMULATE == 0 and (trainer.global_step + 1) % EVERY == 0
        self.on = trainer.global_step > 0 and not (logs or trainer.is_last_batch)

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.steps += self.on

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.on = False
        self.bar, self.curves = dict(trainer.progress_bar_metrics), dict(trainer.callback_metrics)


def _caller() -> str:
    """The innermost place outside of torch and of this file."""
    frame = sys._getframe(1)
    while frame.f_back and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"


@pytest.fixture
def watched(
    make_module: Make,
    make_data: Make,
    make_trainer: Make,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    terminal: Terminal,
    at_once: None,
) -> Callable[..., Watch]:
    """Trains with all that a run has beside its training, and a bar that is drawn anew at each step."""

    def train(method: Any, optimizer: Make = fused, **layout: Any) -> Watch:
        watch, checkpoints = Watch(monkeypatch), Checkpoints(run)
        others = [NonfiniteSteps(run), Throughput(), FrozenBase(run), Preemption(checkpoints, RunOptions())]
        curves = MetricsCSV(run)
        trainer = make_trainer(
            accumulate_grad_batches=ACCUMULATE,
            log_every_n_steps=EVERY,
            gradient_clip_val=1.0,
            logger=[curves],
            enable_progress_bar=True,
            callbacks=[watch, Whereabouts(), curves, *others, checkpoints, TrainingBar()],
        )
        with watch:
            trainer.fit(make_module(method, optimizer=optimizer), make_data(batch_size=1, **layout))
        return watch

    return train


@pytest.mark.parametrize("layout", [{"batching": "pad"}, {"batching": "pack", "max_length": 24}], ids=str)
@pytest.mark.parametrize("method", [Full, LoRA, QLoRA])
def test_nobody_waits_and_nobody_walks(method: Make, layout: dict[str, Any], watched: Callable[..., Watch]) -> None:
    """What a step came to is read at the next; of one with a log line it is known before."""
    watch = watched(method(), **layout)
    assert not watch.reads
    assert not watch.walks
    assert watch.norms == watch.steps >= 4
    assert watch.lags == [1] * (watch.steps - 1)
    assert watch.bar["train_loss"] == watch.curves["train_loss"]


def test_an_optimiser_that_cannot_be_guarded_is_waited_for(watched: Callable[..., Watch]) -> None:
    watch = watched(LoRA(), optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3))
    assert watch.lags == [0] * watch.steps


def test_a_method_that_walks_is_seen_to(watched: Callable[..., Watch]) -> None:
    """AdaLoRA, as peft has it, does after an optimiser step, and reads what it decides by."""
    watch = watched(AdaLoRA(init_r=4, target_r=2))
    assert {place.split(":")[0].split("/")[-3:][0] for place in [*watch.walks, *watch.reads]} == {"tuners"}
    assert watch.lags == [0] * watch.steps
