"""Training that is stopped anywhere and goes on ends with the same bits as training that never was."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from ranks import on_ranks

from ftlab.callbacks import Checkpoints, MetricsCSV, Preemption
from ftlab.callbacks.checkpoint_io import WholeCheckpointIO
from ftlab.data import FinetuneData
from ftlab.data.leaks import Leaks
from ftlab.errors import Preempted
from ftlab.methods import AdaLoRA, Full, LoRA, Method, QLoRA
from ftlab.modules import Constant, Cosine, FinetuneModule, Schedule
from ftlab.runs import CheckpointOptions, Run, RunOptions

Make = Callable[..., Any]

METHODS: dict[str, Callable[[], Method]] = {
    "lora": lambda: LoRA(r=2, dropout=0.3, init="gaussian"),
    "full": Full,
    "qlora": lambda: QLoRA(r=2, dropout=0.3, init="gaussian"),
    "adalora": lambda: AdaLoRA(init_r=4, target_r=1, warmup=0.0, final=0.1, dropout=0.3),
}
DATA: dict[str, dict[str, Any]] = {
    "padded": {"batching": "pad"},
    "bucketed": {"batching": "bucket"},
    "packed": {"batching": "pack", "max_length": 30, "batch_size": 1},
    "streaming": {"streaming": True, "shuffle_window": 6, "leaks": Leaks(ngram=None)},
    "workers": {"batching": "pad", "workers": 2},
}
STEPS = {"max_epochs": -1, "max_steps": 19, "val_check_interval": 6, "check_val_every_n_epoch": None}
TRAINERS: dict[str, dict[str, Any]] = {
    # 15 rows in batches of 2: 8 an epoch, the last one short; with windows of 3 the last one of an epoch is short, too
    "every epoch": {"max_epochs": 3, "accumulate_grad_batches": 3},
    "within epochs": {"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 4},
    "validated within windows": {"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 3},
    # epochs end before the loader does
    "limited": {"max_epochs": 3, "limit_train_batches": 5},
    # epochs end after 8 and 16 steps, without a validation
    "by steps": STEPS,
    "to a last validation": STEPS | {"max_steps": 12},
    # an epoch ends before the first validation, and others after it
    "seldom validated": STEPS | {"max_steps": 34, "val_check_interval": 10},
}
# those whose epochs and windows end apart from each other; the others are slow
IN_CI = ("every epoch", "validated within windows", "to a last validation")
HOOKS = (
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_train_epoch_end",
)


class Killed(Exception):  # noqa: N818  (no error: a stop)
    """Stands for a process that ends between two lines."""


class At(pl.Callback):
    """Does something when a hook is called for the n-th time."""

    def __init__(self, hook: str, call: int, do: Callable[[], Any]) -> None:
        self.calls = 0

        def count(*_: Any, **__: Any) -> None:
            self.calls += 1
            if self.calls == call:
                do()

        setattr(self, hook, count)


def kill() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class OutOfTime(pl.Callback):
    """Has training stop at the n-th batch and later, as `trainer.max_time` does."""

    def __init__(self, batch: int) -> None:
        self.left = batch

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.left -= 1
        trainer.should_stop = trainer.should_stop or self.left <= 0


@dataclass
class Bench:
    """Trains the same again and again, in a run directory of its own each time."""

    make_module: Make
    make_data: Callable[..., FinetuneData]
    make_trainer: Make
    place: Path
    method: Callable[[], Method]
    data: dict[str, Any]
    trainer: dict[str, Any]
    schedule: Callable[[], Schedule] = Cosine

    def train(self, run: Run, *callbacks: pl.Callback, **options: Any) -> dict[str, Any]:
        """Trains, or goes on, to the end; what there is then that must not depend on stops."""
        torch.manual_seed(int.from_bytes(os.urandom(4)))  # what another process may have drawn before
        module: FinetuneModule = self.make_module(
            self.method(), optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2), schedule=self.schedule()
        )
        curves = MetricsCSV(run)
        checkpoints = Checkpoints(run, CheckpointOptions(**({"every_n_steps": 2} | options)))
        preemption = Preemption(checkpoints, RunOptions())
        begin, _ = run.checkpoints.to_go_on_from()
        trainer = self.make_trainer(
            **({"limit_val_batches": 1.0, "logger": curves} | self.trainer),
            callbacks=[curves, *callbacks, preemption, checkpoints],
        )
        with preemption:
            trainer.fit(module, self.make_data(**({"batch_size": 2} | self.data)), ckpt_path=begin)
        curves.save()
        names = module.trained_names()
        return {
            "weights": {name: p.detach().clone() for name, p in module.named_parameters() if name in names},
            "optimizer": trainer.optimizers[0].state_dict()["state"],
            "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict()["last_epoch"],
            "best": checkpoints.best,
            "best weights": torch.load(run.best)["state_dict"] if run.best.exists() else None,
            "curves": run.metrics.read_text(),
        }

    def run(self, name: str) -> Run:
        return Run(self.place / "runs" / name)


@pytest.fixture
def bench(make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path) -> Callable[..., Bench]:
    def make(method: str = "lora", data: str = "padded", trainer: str = "within epochs") -> Bench:
        return Bench(make_module, make_data, make_trainer, tmp_path, METHODS[method], DATA[data], TRAINERS[trainer])

    return make


def assert_same(ours: Any, theirs: Any, place: str = "") -> None:
    """To the bit."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), place
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{place} {key}")
    elif isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs), place
    else:
        assert ours == theirs, place


def stopped_and_resumed(bench: Bench, hook: str, call: int, stop: Callable[[], None]) -> tuple[dict[str, Any], bool]:
    """What training comes to that is stopped once; and whether it was, or had ended before."""
    run = bench.run(f"{hook}-{call}-{stop.__name__}")
    try:
        return bench.train(run, At(hook, call, stop)), False
    except (Killed, Preempted):
        return bench.train(run), True


@pytest.mark.parametrize("stops", [
    pytest.param((kill, terminate), marks=pytest.mark.resume),
    pytest.param((terminate, kill), marks=pytest.mark.slow),
])  # fmt: skip
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("trainer", IN_CI)
def test_stopped_at_every_call_of_every_hook(
    trainer: str, hook: str, stops: tuple[Callable[[], None], ...], bench: Callable[..., Bench]
) -> None:
    """In turn by a kill and by a signal; the slow test has the other half of the stops."""
    stop_at_every_call(bench(trainer=trainer), hook, stops)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(kill, terminate), (terminate, kill)])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("trainer", [name for name in TRAINERS if name not in IN_CI])
def test_and_so_does_training_that_ends_otherwise(
    trainer: str, hook: str, stops: tuple[Callable[[], None], ...], bench: Callable[..., Bench]
) -> None:
    stop_at_every_call(bench(trainer=trainer), hook, stops)


def stop_at_every_call(made: Bench, hook: str, stops: tuple[Callable[[], None], ...]) -> None:
    whole = made.train(made.run("whole"))
    call, was_stopped = 0, True
    while was_stopped:
        call += 1
        resumed, was_stopped = stopped_and_resumed(made, hook, call, stops[call % 2])
        assert_same(resumed, whole, f"{hook} {call}")
    assert call > 1


@pytest.mark.parametrize(("hook", "call", "stop"), [
    ("on_train_batch_start", 6, kill),
    ("on_validation_batch_end", 4, terminate),
    pytest.param("on_train_batch_end", 5, terminate, marks=pytest.mark.slow),
    pytest.param("on_train_batch_start", 11, terminate, marks=pytest.mark.slow),
])  # fmt: skip
@pytest.mark.parametrize(("method", "data"), [
    *((method, "padded") for method in METHODS),
    *(("lora", data) for data in DATA if data != "padded"),
])  # fmt: skip
def test_every_method_and_layout(
    method: str, data: str, hook: str, call: int, stop: Callable[[], None], bench: Callable[..., Bench]
) -> None:
    made = bench(method, data, "by steps" if data == "streaming" else "within epochs")
    whole = made.train(made.run("whole"))
    resumed, was_stopped = stopped_and_resumed(made, hook, call, stop)
    assert was_stopped
    assert_same(resumed, whole)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_stopped_five_times(method: str, bench: Callable[..., Bench]) -> None:
    made = bench(method)
    whole, run = made.train(made.run("whole")), made.run("often")
    hooks = product(("on_train_batch_start", "on_validation_batch_start"), (2, 3))
    for hook, call in [*hooks, ("on_train_batch_end", 2)]:
        with pytest.raises((Killed, Preempted)):
            made.train(run, At(hook, call, terminate if call == 2 else kill))
    assert_same(made.train(run), whole)


@pytest.mark.parametrize(("trainer", "batches", "stop"), [
    ("validated within windows", (2,), kill),
    ("seldom validated", (8, 16, 16), kill),
    *(
        pytest.param(*each, marks=pytest.mark.slow)
        for each in product(TRAINERS, ((1,), (2,), (3,), (8,), (8, 16, 16)), (kill, terminate))
    ),
])  # fmt: skip
def test_no_process_gets_far(
    trainer: str, batches: tuple[int, ...], stop: Callable[[], None], bench: Callable[..., Bench]
) -> None:
    """They take so many batches in turn, 8 are an epoch, and each goes on where another came to."""
    made = bench(trainer=trainer)
    whole, run = made.train(made.run("whole"), every_n_steps=1), made.run("often")
    window = made.trainer.get("accumulate_grad_batches", 1)  # or none gets to a checkpoint
    starts = 0
    for taken in islice(cycle(batches), 40):
        starts += 1
        with suppress(Killed, Preempted):
            resumed = made.train(run, At("on_train_batch_start", 1 + max(taken, window), stop), every_n_steps=1)
            break
    assert starts > 1
    assert_same(resumed, whole)


def test_an_epoch_that_no_validation_ends(bench: Callable[..., Bench]) -> None:
    """Lightning would begin the next one with a batch too many."""
    made = bench(trainer="by steps")
    whole = made.train(made.run("whole"))
    resumed, was_stopped = stopped_and_resumed(made, "on_train_epoch_start", 2, kill)
    assert was_stopped
    assert_same(resumed, whole)


@pytest.mark.parametrize("options", [
    {"every_n_steps": None},
    {"every_n_steps": 1, "asynchronous": True},
    {"every_n_minutes": 1e-9},
    {"best": 3},
])  # fmt: skip
def test_when_checkpoints_are_written_changes_nothing(options: dict[str, Any], bench: Callable[..., Bench]) -> None:
    made = bench()
    whole, run = made.train(made.run("whole")), made.run("other")
    with pytest.raises(Preempted):
        made.train(run, At("on_train_batch_start", 7, terminate), **options)
    resumed = made.train(run, **options)
    for kept in ("best", "best weights"):
        del whole[kept], resumed[kept]
    assert_same(resumed, whole)


@pytest.mark.parametrize(("trainer", "call"), [
    ("to a last validation", 1),
    ("to a last validation", 7),
    ("to a last validation", 10),
    ("validated within windows", 1),
    ("validated within windows", 6),
])  # fmt: skip
@pytest.mark.parametrize("stop", [kill, terminate])
def test_in_validations_after_the_last_step_and_within_windows(
    trainer: str, call: int, stop: Callable[[], None], bench: Callable[..., Bench]
) -> None:
    made = bench(trainer=trainer)
    whole = made.train(made.run("whole"))
    resumed, _ = stopped_and_resumed(made, "on_validation_batch_start", call, stop)
    assert_same(resumed, whole)


def test_a_signal_that_a_library_swallows_is_answered_at_the_first_step(bench: Callable[..., Bench]) -> None:
    def swallowed() -> None:
        with suppress(Preempted):
            terminate()

    made = bench()
    with pytest.raises(Preempted, match="at step 1"):
        made.train(made.run("swallowed"), At("on_fit_start", 1, swallowed))


@pytest.mark.parametrize("options", [
    {"limit_val_batches": 0},
    {"limit_val_batches": 0, "min_steps": 4},
    {"check_val_every_n_epoch": 3},
])  # fmt: skip
@pytest.mark.parametrize(("batch", "step"), [(3, 1), (4, 2), (5, 2), (8, 3), (10, 4)])
def test_out_of_time_where_no_validation_follows(
    batch: int, step: int, options: dict[str, Any], bench: Callable[..., Bench]
) -> None:
    """`last` is what training ended with, and goes on to the same bits: windows of 3 batches, 8 an epoch."""
    made = bench()
    made.trainer = {"max_epochs": 3, "accumulate_grad_batches": 3} | options
    whole, run = made.train(made.run("whole")), made.run("stopped")
    ended = made.train(run, OutOfTime(batch), every_n_steps=None)
    last = torch.load(run.last)
    assert last["global_step"] == max(step, options.get("min_steps", 0))
    assert_same(last["state_dict"], ended["weights"])
    assert_same(made.train(run), whole)


def there_when_stopped(made: Bench, run: Run, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints that a process finds when it is about to leave, one of two that were told to stop."""
    write = WholeCheckpointIO._write

    def slowly(io: WholeCheckpointIO, *args: Any) -> None:
        time.sleep(2)
        write(io, *args)

    monkeypatch.setattr(WholeCheckpointIO, "_write", slowly)
    with pytest.raises(Preempted, match="at step 3"):
        made.train(run, At("on_train_batch_start", 3, terminate), every_n_steps=None, asynchronous=True)
    return [path.name for path in run.checkpoints.directory.glob("last-*.ckpt")]


def test_no_process_leaves_another_that_writes(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first would be ended for one that has left it, in the midst of its write."""
    made = bench()
    made.trainer = {"devices": 2, "strategy": "ddp"}
    first, second = on_ranks(2, partial(there_when_stopped, made, made.run("stopped"), monkeypatch))
    assert len(first) == 1
    assert second == first


@pytest.mark.parametrize("options", [
    {},
    {"accumulate_grad_batches": 3},
    {"val_check_interval": 3, "accumulate_grad_batches": 2},
    {"limit_train_batches": 5},
    {"limit_val_batches": 0},
])  # fmt: skip
def test_extended_epoch_by_epoch(options: dict[str, Any], bench: Callable[..., Bench]) -> None:
    made = bench()
    made.schedule = Constant
    made.trainer = {"max_epochs": 4} | options
    whole, run = made.train(made.run("whole")), made.run("extended")
    for epochs in (1, 2, 4):
        made.trainer = {"max_epochs": epochs} | options
        extended = made.train(run)
    assert_same(extended, whole)
