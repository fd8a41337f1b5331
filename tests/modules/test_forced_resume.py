"""Training that goes on with another configuration: refused unless forced, and then as exact as can be."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftlab.data.leaks import Leaks
from ftlab.errors import UserError
from ftlab.methods import LoRA
from ftlab.modules import Cosine, FinetuneModule, Linear
from ftlab.modules.steps import steps_left

Make = Callable[..., Any]
Row = tuple[int, ...]

PADDED = {"batching": "pad", "batch_size": 2}


class Seen(pl.Callback):
    """Notes the rows of every batch, and saves a checkpoint after some."""

    def __init__(self, path: Path | None = None, after: int = 0) -> None:
        self.path, self.after = path, after
        self.rows: list[list[Row]] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        self.rows.append([tuple(ids[mask.bool()].tolist()) for ids, mask in rows])

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if len(self.rows) == self.after:
            assert self.path
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.fixture
def leg(make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path) -> Callable[..., Any]:
    """Trains from the leg before, if there is one, to the end or until so many batches are seen."""

    def run(
        data: dict[str, Any],
        trainer: dict[str, Any] | None = None,
        after: int = 0,
        first: bool = False,
        forced: bool = True,
        lr: float = 0.1,
        optimizer: Callable[..., Any] = torch.optim.AdamW,
        **options: Any,
    ) -> tuple[Seen, pl.Trainer, FinetuneModule]:
        path = tmp_path / "between.ckpt"
        made_as = options.pop("method", LoRA(r=2, init="gaussian"))
        module = make_module(made_as, optimizer=lambda groups: optimizer(groups, lr=lr), **options)
        module.forced = forced
        seen = Seen(path, after)
        made = make_trainer(callbacks=[seen], **({"max_epochs": 2} | (trainer or {})))
        made.fit(module, make_data(**data), ckpt_path=None if first else path, weights_only=True)
        return seen, made, module

    return run


def rows_of(*legs: Seen) -> Counter[Row]:
    return Counter(row for seen in legs for batch in seen.rows for row in batch)


@pytest.mark.parametrize("then", [
    {"batching": "pad", "batch_size": 3},
    {"batching": "pad", "batch_size": 7},
    {"batching": "bucket", "batch_size": 4},
    {"batching": "pad", "batch_size": 2, "seed": 7},
])  # fmt: skip
@pytest.mark.parametrize("after", [1, 3, 7, 8, 9, 15])
def test_each_record_comes_once_an_epoch(then: dict[str, Any], after: int, leg: Callable[..., Any]) -> None:
    first, _, _ = leg(PADDED, after=after, first=True)
    second, trainer, _ = leg(then)
    seen = rows_of(first, second)
    assert len(seen) == 15
    assert set(seen.values()) == {2}
    assert trainer.current_epoch == 2


def test_a_third_leg_goes_on_within_the_same_epoch(leg: Callable[..., Any]) -> None:
    legs = [leg(PADDED, after=2, first=True), leg({"batching": "bucket", "batch_size": 3}, after=2), leg(PADDED)]
    assert set(rows_of(*(seen for seen, _, _ in legs)).values()) == {2}


def test_padded_rows_keep_their_order(leg: Callable[..., Any]) -> None:
    whole, _, _ = leg(PADDED, first=True)
    first, _, _ = leg(PADDED, after=3, first=True)
    second, _, _ = leg({"batching": "pad", "batch_size": 5})
    flat = [row for seen in (first, second) for batch in seen.rows for row in batch]
    assert flat == [row for batch in whole.rows for row in batch]


def test_other_accumulation(leg: Callable[..., Any]) -> None:
    first, _, _ = leg(PADDED, {"accumulate_grad_batches": 2}, after=4, first=True)
    second, trainer, _ = leg(PADDED, {"accumulate_grad_batches": 4})
    assert set(rows_of(first, second).values()) == {2}
    assert trainer.global_step == 2 + 1 + 2


@pytest.mark.parametrize(("batch_size", "accumulate"), [(3, 1), (2, 2), (1, 1)])
def test_a_stream_goes_on_with_the_next_row(batch_size: int, accumulate: int, leg: Callable[..., Any]) -> None:
    stream = {"streaming": True, "shuffle_window": 6, "batch_size": 2, "leaks": Leaks(ngram=None)}
    whole, _, _ = leg(stream, {"max_epochs": -1, "max_steps": 30}, first=True)
    first, _, _ = leg(stream, {"max_epochs": -1, "max_steps": 30}, after=3, first=True)
    then = {"max_epochs": -1, "max_steps": 10, "accumulate_grad_batches": accumulate}
    second, trainer, _ = leg(stream | {"batch_size": batch_size}, then)
    flat = [row for seen in (first, second) for batch in seen.rows for row in batch]
    assert trainer.global_step == 10
    assert flat == [row for batch in whole.rows for row in batch][: len(flat)]


def test_what_the_user_says_now_holds(leg: Callable[..., Any]) -> None:
    leg(PADDED, after=3, first=True, schedule=Cosine(warmup=0))
    second, trainer, _ = leg(PADDED, {"max_epochs": 4}, lr=0.02, schedule=Linear(warmup=0))
    assert second.rates == pytest.approx([0.02 * (1 - step / 32) for step in range(3, 32)])
    assert trainer.optimizers[0].state_dict()["state"][0]["step"] == 32


def test_another_optimizer_begins_without_moments(leg: Callable[..., Any]) -> None:
    leg(PADDED, after=3, first=True)
    _, trainer, _ = leg(PADDED, optimizer=torch.optim.Adam)
    assert trainer.optimizers[0].state_dict()["state"][0]["step"] == 16 - 3


@pytest.mark.parametrize(("said", "sentence"), [
    ({"lr": 0.2}, "model.optimizer: the run to resume had lr 0.1 and this one has 0.2: resume with the same, start "),
    ({"optimizer": torch.optim.Adam}, "had optimizer torch.optim.adamw.AdamW and this one has torch.optim.adam.Adam"),
    ({"data": PADDED | {"batch_size": 3}}, "had global batch size 2 and this one has 3, so it would train other"),
    ({"data": PADDED | {"seed": 7}}, "had seed 42 and this one has 7"),
])  # fmt: skip
def test_without_force_it_is_refused(said: dict[str, Any], sentence: str, leg: Callable[..., Any]) -> None:
    leg(PADDED, after=3, first=True)
    with pytest.raises(UserError, match=sentence):
        leg(**({"data": PADDED, "forced": False} | said))


def test_a_later_end_goes_on_at_its_own_rate(leg: Callable[..., Any]) -> None:
    leg(PADDED, after=3, first=True, schedule=Linear(warmup=0))
    second, _, _ = leg(PADDED, {"max_epochs": 4}, forced=False, schedule=Linear(warmup=0))
    assert second.rates == pytest.approx([0.1 * (1 - step / 32) for step in range(3, 32)])


def test_tensors_that_do_not_fit_are_refused_all_the_same(leg: Callable[..., Any], make_module: Make) -> None:
    leg(PADDED, after=3, first=True)
    with pytest.raises(UserError, match="in shape"):
        leg(PADDED, method=LoRA(r=3))


@pytest.mark.parametrize("after", [2, 3, 4])
def test_a_limit_holds_for_the_epoch_under_way(after: int, leg: Callable[..., Any]) -> None:
    limit = {"limit_train_batches": 5}
    first, _, _ = leg(PADDED, limit, after=after, first=True)
    second, trainer, _ = leg({"batching": "pad", "batch_size": 1}, limit)
    assert trainer.current_epoch == 2
    epochs = len(first.rows) * 2 + max(0, 5 - 2 * after) + 5
    assert sum(map(len, first.rows + second.rows)) == epochs
    assert len(rows_of(first)) + len(rows_of(second)) == epochs or after == 2  # none comes twice in an epoch


@pytest.mark.parametrize(("after", "epochs"), [(8, 1), (5, 2)])
def test_other_records_begin_the_epoch_anew_unless_it_was_over(
    after: int, epochs: int, leg: Callable[..., Any], data_path: str, tmp_path: Path
) -> None:
    lines = (Path(data_path) / "train.jsonl").read_text().splitlines()
    shutil.copytree(data_path, tmp_path / "other")
    (tmp_path / "other/train.jsonl").write_text("\n".join(lines[:11]) + "\n")
    leg(PADDED, after=after, first=True, schedule=Linear(warmup=0))
    second, trainer, _ = leg(PADDED | {"path": str(tmp_path / "other")}, schedule=Linear(warmup=0))
    assert trainer.current_epoch == 2
    assert sum(map(len, second.rows)) == 11 * epochs
    total = after + 6 * epochs
    assert second.rates == pytest.approx([0.1 * (1 - step / total) for step in range(after, total)])


def test_the_schedule_ends_with_the_training(leg: Callable[..., Any], tmp_path: Path) -> None:
    """8 batches of 2 an epoch, then 4 of 4: three of the first, 3 of what is left, and 4 of the second."""
    leg(PADDED, after=3, first=True, schedule=Linear(warmup=0))
    larger = {"batching": "pad", "batch_size": 4}
    second, _, _ = leg(larger, after=5, schedule=Linear(warmup=0))
    third, _, _ = leg(larger, schedule=Linear(warmup=0), forced=False)
    assert [len(rows) for rows in second.rows + third.rows] == [4, 4, 1, 4, 4, 4, 3]
    assert second.rates + third.rates == pytest.approx([0.1 * (1 - step / 10) for step in range(3, 10)])


@given(st.integers(1, 40), st.integers(0, 50), st.integers(1, 12))
def test_steps_that_are_left_of_an_epoch(batches: int, done: int, window: int) -> None:
    """Lightning steps where the number of a batch is a multiple of the window, and at the last one."""
    steps = [number for number in range(1, batches + 1) if number % window == 0 or number == batches]
    trainer: Any = SimpleNamespace(accumulate_grad_batches=window)
    assert steps_left(batches, done, trainer) == sum(number > done for number in steps)


@pytest.mark.parametrize(("after", "window", "total"), [(2, 3, 2 + 3 + 3), (3, 3, 3 + 2 + 3), (7, 5, 7 + 1 + 2)])
def test_the_schedule_ends_with_windows_that_began_otherwise(
    after: int, window: int, total: int, leg: Callable[..., Any]
) -> None:
    leg(PADDED, after=after, first=True, schedule=Linear(warmup=0))
    second, trainer, _ = leg(PADDED, {"accumulate_grad_batches": window}, schedule=Linear(warmup=0))
    assert trainer.global_step == total
    assert second.rates == pytest.approx([0.1 * (1 - step / total) for step in range(after, total)])
