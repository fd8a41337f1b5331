"""One bar from the first step to the last, and one for a judging: on a terminal alone."""

from __future__ import annotations

import io
import itertools
import logging
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.strategies import SingleDeviceStrategy
from terminals import Terminal, without_codes

from ftlab import progress
from ftlab.callbacks import FrozenBase, TrainingBar
from ftlab.methods import LoRA
from ftlab.progress import Progress

Make = Callable[..., Any]


class Says(pl.Callback):
    """Prints a sentence after the second step, or raises there."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            print("ftlab: the second step", file=sys.stderr)
            if self.error:
                raise self.error


@pytest.fixture
def make_trainer(make_trainer: Make) -> Make:
    return partial(make_trainer, enable_progress_bar=True)


def shown(terminal: Terminal) -> str:
    return without_codes(terminal.read())


def test_steps_are_counted_through_all_epochs(
    terminal: Terminal, at_once: None, make_trainer: Make, make_module: Make, make_data: Make
) -> None:
    bar = TrainingBar()
    trainer = make_trainer(max_epochs=3, accumulate_grad_batches=2, limit_val_batches=2, callbacks=[bar, Says()])
    trainer.fit(make_module(LoRA()), make_data(batch_size=2))
    steps, seen = trainer.global_step, shown(terminal)
    counts = [int(found) for found in re.findall(rf" (\d+)/{steps} steps", seen)]
    assert counts == sorted(counts)
    assert {*counts} >= {1, steps - 1, steps}
    assert re.search(r"\rtrain_loss \d", seen)
    assert re.search(rf"validating 2/2 [^\r\n]*{steps // 3}/{steps} steps", seen)
    assert re.search(r"\rtrain_loss [\d.]+, val_loss [\d.]+ ", seen)
    assert re.search(r"/s  0:00:\d\d left", seen)
    said = next(line for line in seen.splitlines() if "second step" in line)
    assert said.rpartition("\r")[2].strip() == "ftlab: the second step"
    assert terminal.read().rstrip().endswith("\x1b[2K")  # the bar is gone


@pytest.mark.parametrize(
    ("verb", "said", "total"),
    [("validate", "validating", 2), ("test", "testing", 4), ("predict", "answering", 2)],  # a test: losses, and answers
)
def test_judging_has_a_bar_of_its_own(
    verb: str,
    said: str,
    total: int,
    terminal: Terminal,
    at_once: None,
    make_trainer: Make,
    make_module: Make,
    make_data: Make,
) -> None:
    limits = {"limit_val_batches": 2, "limit_test_batches": 2, "limit_predict_batches": 2}
    trainer = make_trainer(**limits, callbacks=[TrainingBar(), FrozenBase()])
    getattr(trainer, verb)(make_module(LoRA()), make_data(batch_size=1, eval_batch_size=1))
    seen = shown(terminal)
    counts = re.findall(rf"{said} [^\r\n]* (\d+)/(\d+) batches", seen)
    assert [*dict.fromkeys(counts)] == [(str(n), str(total)) for n in range(1, total + 1)]


def test_the_rate_is_that_of_whole_steps(
    terminal: Terminal,
    at_once: None,
    make_trainer: Make,
    make_module: Make,
    make_data: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second goes by between any two looks at the clock, and many batches are a step."""
    began, looks = time.monotonic(), itertools.count()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: began + next(looks)))
    trainer = make_trainer(max_steps=2, accumulate_grad_batches=6, callbacks=[TrainingBar()])
    trainer.fit(make_module(LoRA()), make_data(batch_size=1))
    rates = re.findall(r" 1/2 steps  ([\d.]+)/s", shown(terminal))
    assert len(rates) >= 6
    assert len({*rates}) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")], ids=str)
def test_the_bar_is_gone_after_an_error(
    error: BaseException, terminal: Terminal, at_once: None, make_trainer: Make, make_module: Make, make_data: Make
) -> None:
    trainer = make_trainer(max_epochs=3, callbacks=[TrainingBar(), Says(error)])
    before = sys.stderr
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        trainer.fit(make_module(LoRA()), make_data(batch_size=1))
    assert sys.stderr is before
    assert terminal.read().rstrip().endswith("\x1b[2K")


def test_other_processes_show_none(
    terminal: Terminal,
    at_once: None,
    make_trainer: Make,
    make_module: Make,
    make_data: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SingleDeviceStrategy, "is_global_zero", False)
    trainer = make_trainer(callbacks=[TrainingBar(), FrozenBase()])
    trainer.fit(make_module(LoRA()), make_data(batch_size=1))
    seen = shown(terminal)
    assert "steps" not in seen
    assert "digest of the base" not in seen


def test_a_line_is_not_broken_and_holders_of_the_stream_are_heard(
    terminal: Terminal, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = io.StringIO()
    monkeypatch.setattr(sys, "stderr", old)
    handler = logging.StreamHandler()
    logger = logging.getLogger("a library")
    monkeypatch.setattr(logger, "handlers", [handler])
    path = "runs/" + "long/" * 40
    with Progress("working", "things", 3, forks=True, prints=True) as bar:
        logger.warning("before")
        bar.advance()
        print(path, file=sys.stderr)
        logger.warning("a warning")
        print("no whole line", end="", file=sys.stderr)
        bar.advance()
    assert sys.stderr is old
    assert handler.stream is old
    assert old.getvalue() == "before\nno whole line"
    lines = [line.strip() for line in shown(terminal).splitlines()]
    assert path in lines
    assert "a warning" in lines


def test_the_digest_of_the_base_has_a_bar(
    terminal: Terminal, at_once: None, make_trainer: Make, make_module: Make, make_data: Make
) -> None:
    callbacks = [TrainingBar(), FrozenBase()]
    make_trainer(callbacks=callbacks, max_steps=2).fit(make_module(LoRA()), make_data(batch_size=1))
    seen = shown(terminal)
    first, middle, last = (seen.find(word) for word in ("digest of the base", "1/2 steps", "2/2 steps"))
    assert 0 <= first < middle < last < seen.rfind("digest of the base")
