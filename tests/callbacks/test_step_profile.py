"""A profile says where the time of a step goes."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from ftlab.callbacks import StepProfile
from ftlab.callbacks.step_profile import _PARTS
from ftlab.methods import LoRA
from ftlab.runs import Run

Make = Callable[..., Any]


def test_ten_lines_and_a_trace(
    run: Run, make_module: Make, make_data: Make, make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    profiled = StepProfile(run)
    trainer = make_trainer(max_steps=10, accumulate_grad_batches=2, callbacks=[profiled, profiled.last], max_epochs=-1)
    trainer.fit(make_module(LoRA(r=2)), make_data(batch_size=2))
    said = (run.directory / "profile" / "summary.txt").read_text()
    assert said in capsys.readouterr().out
    lines = said.splitlines()
    assert len(lines) <= 10
    whole = float(re.fullmatch(r"a step of 4 profiled: ([\d.]+) ms", lines[0])[1])  # type: ignore[index]
    parts = [float(line.split(" ms ")[0]) for line in lines[1 : 1 + len(_PARTS)]]
    assert sum(parts) == pytest.approx(whole, abs=0.1 * len(parts))
    assert min(parts[1:4]) > 0
    assert [line.split("%")[1].strip() for line in lines[1 : 1 + len(_PARTS)]] == list(_PARTS.values())
    with gzip.open(run.directory / "profile" / "trace.json.gz") as trace:
        events = json.load(trace)["traceEvents"]
    assert sum(event.get("name") == "aten::embedding" for event in events) == 8  # micro-batches of four steps


def test_of_a_short_training_there_are_fewer_steps(
    run: Run, make_module: Make, make_data: Make, make_trainer: Make
) -> None:
    profiled = StepProfile(run)
    make_trainer(max_steps=6, callbacks=[profiled, profiled.last], max_epochs=-1).fit(
        make_module(LoRA(r=2)), make_data()
    )
    assert (run.directory / "profile" / "summary.txt").read_text().startswith("a step of 2 profiled:")


def test_of_none_it_says_so(
    run: Run, make_module: Make, make_data: Make, make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    profiled = StepProfile(run)
    make_trainer(max_steps=4, callbacks=[profiled, profiled.last], max_epochs=-1).fit(
        make_module(LoRA(r=2)), make_data()
    )
    assert "ftlab: nothing was profiled: training took no step after the first 4" in capsys.readouterr().err
    assert not (run.directory / "profile").exists()
