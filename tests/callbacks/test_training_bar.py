"""One bar from the first step to the last, and one for a judging: on a terminal alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
from terminals import Terminal, without_codes

from ftlab.callbacks import FrozenBase, TrainingBar, training_bar
from ftlab.methods import LoRA

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
def always(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_bar, "_AGAIN", 0.0)


@pytest.fixture
def make_trainer(make_trainer: Make) -> Make:
    return partial(make_trainer, enable_progress_bar=True)


def shown(terminal: Terminal) -> str:
    return without_codes(terminal.read())


def test_steps_are_counted_through_all_epochs(
    terminal: Terminal, always: None, make_trainer: Make, make_module: Make, make_data: Make
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


@pytest.mark.parametrize(("verb", "said"), [("validate", "validating"), ("test", "testing")])
def test_judging_has_a_bar_of_its_own(
    verb: str, said: str, terminal: Terminal, always: None, make_trainer: Make, make_module: Make, make_data: Make
) -> None:
    trainer = make_trainer(limit_val_batches=2, limit_test_batches=2, callbacks=[TrainingBar()])
    getattr(trainer, verb)(make_module(LoRA()), make_data(batch_size=1), verbose=False)
    seen = shown(terminal)
    counts = re.findall(rf"{said} [^\r\n]* (\d+)/(\d+) batches", seen)
    total = 2 if verb == "validate" else 4  # losses, and in testing answers
    assert [*dict.fromkeys(counts)] == [(str(n), str(total)) for n in range(1, total + 1)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")], ids=str)
def test_the_bar_is_gone_after_an_error(
    error: BaseException, terminal: Terminal, always: None, make_trainer: Make, make_module: Make, make_data: Make
) -> None:
    trainer = make_trainer(max_epochs=3, callbacks=[TrainingBar(), Says(error)])
    before = sys.stderr
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        trainer.fit(make_module(LoRA()), make_data(batch_size=1))
    assert sys.stderr is before
    assert terminal.read().rstrip().endswith("\x1b[2K")


def test_nobody_else_sees_it(
    terminal: Terminal, always: None, make_trainer: Make, make_module: Make, make_data: Make
) -> None:
    bar = TrainingBar()
    bar.setup = lambda *_, **__: bar.disable()  # type: ignore[assignment,method-assign]  # as on the second process
    make_trainer(callbacks=[bar]).fit(make_module(LoRA()), make_data(batch_size=1))
    assert "steps" not in shown(terminal)


def test_the_digest_of_the_base_has_a_bar(
    terminal: Terminal, always: None, make_trainer: Make, make_module: Make, make_data: Make
) -> None:
    callbacks = [TrainingBar(), FrozenBase()]
    make_trainer(callbacks=callbacks, max_steps=2).fit(make_module(LoRA()), make_data(batch_size=1))
    seen = shown(terminal)
    first, middle, last = (seen.find(word) for word in ("digest of the base", "1/2 steps", "2/2 steps"))
    assert 0 <= first < middle < last < seen.rfind("digest of the base")
