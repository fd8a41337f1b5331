"""metrics.csv: a row a step, all columns, whole at every moment, and one curve over every interruption."""

import csv
from collections.abc import Callable
from typing import Any

import pytest

from ftlab.callbacks import MetricsCSV
from ftlab.errors import UserError
from ftlab.methods import LoRA
from ftlab.runs import Run


def rows(run: Run) -> list[dict[str, str]]:
    with run.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_a_step_with_the_union_of_the_columns(run: Run) -> None:
    curves = MetricsCSV(run)
    curves.log_metrics({"train_loss": 3.0, "step": 1.0}, 1)
    curves.log_metrics({"train_loss": 2.0}, 2)
    curves.log_metrics({"val_loss": 2.5}, 2)
    curves.log_metrics({"val_loss": 2.25}, 3)
    curves.finalize("success")
    assert rows(run) == [
        {"step": "1", "train_loss": "3.0", "val_loss": ""},
        {"step": "2", "train_loss": "2.0", "val_loss": "2.5"},
        {"step": "3", "train_loss": "", "val_loss": "2.25"},
    ]


def test_rows_after_the_checkpoint_are_forgotten(run: Run) -> None:
    interrupted = MetricsCSV(run)
    for step in range(1, 6):
        interrupted.log_metrics({"train_loss": float(step)}, step)
    interrupted.save()

    resumed = MetricsCSV(run)
    resumed.start_from(3)
    resumed.log_metrics({"train_loss": 40.0, "lr": 0.1}, 4)
    resumed.save()
    assert [(row["step"], row["train_loss"], row["lr"]) for row in rows(run)] == [
        ("1", "1.0", ""),
        ("2", "2.0", ""),
        ("3", "3.0", ""),
        ("4", "40.0", "0.1"),
    ]


def test_rows_are_in_the_order_of_the_steps(run: Run) -> None:
    curves = MetricsCSV(run)
    for step in (10, 2, 1):
        curves.log_metrics({"train_loss": 0.0}, step)
    curves.save()
    assert [row["step"] for row in rows(run)] == ["1", "2", "10"]


def test_file_is_whole_at_every_moment(run: Run) -> None:
    curves = MetricsCSV(run, every=2)
    for step in range(1, 10):
        curves.log_metrics({"train_loss": 1.0} | ({"val_loss": 1.0} if step > 5 else {}), step)
        if step == 1:
            assert not run.metrics.exists()
            continue
        assert [row["step"] for row in rows(run)] == [str(n) for n in range(1, step - step % 2 + 1)]
        assert None not in rows(run)[-1]
        assert [path.name for path in run.directory.iterdir()] == ["metrics.csv"]


def test_in_training(run: Run, make_module: Callable, make_data: Callable, make_trainer: Callable) -> None:
    curves: Any = MetricsCSV(run)
    make_trainer(max_epochs=2, limit_val_batches=1.0, logger=curves).fit(make_module(LoRA(r=1)), make_data())
    written = rows(run)
    assert [row["step"] for row in written] == [str(step) for step in range(1, 9)]
    assert [row["step"] for row in written if row["val_loss"]] == ["4", "8"]
    assert all(row["train_loss"] and row["lr"] and row["grad_norm"] for row in written)


def test_a_damaged_file_is_refused(run: Run) -> None:
    run.directory.mkdir(parents=True)
    run.metrics.write_bytes(b"\x00\xff nothing")
    with pytest.raises(UserError, match=r"metrics\.csv is damaged"):
        MetricsCSV(run).start_from(3)
