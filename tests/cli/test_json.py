"""What verbs print with --json: programs read it, and it says what the files say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab.cli import check_method
from ftlab.testing import Report
from ftlab.testing.report import Outcome


def test_scores(finished: Callable[[str], Path], ftlab: Callable[..., Any]) -> None:
    run = finished("lora")
    before = json.loads((run / "scores.json").read_text())
    for verb, prefix in (("test", "test_"), ("validate", "val_")):
        answer = ftlab(verb, "-c", run / "config.yaml", "--json")
        assert answer.code == 0, answer.err
        said = json.loads(answer.out)
        assert said["run"] == str(run)
        written = json.loads((run / "scores.json").read_text())
        assert said["scores"] == {name: value for name, value in written.items() if name.startswith(prefix)}
        assert "loss" in {name.removeprefix(prefix) for name in said["scores"]}
    assert before.keys() < written.keys()


def test_an_export_and_a_widened_one(finished: Callable[[str], Path], ftlab: Callable[..., Any]) -> None:
    run = finished("qlora")
    said = json.loads(ftlab("export", run, "small", "--adapter-bits", 8, "--json").out)
    files = {
        place: sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
        for place in (Path("small"), run / "model")
    }
    assert (said["run"], said["to"]) == (str(run), "small")
    assert (said["bytes"], said["model_bytes"]) == tuple(files.values())
    assert said["records"] == 5
    assert 0 < said["logit"] < 0.5
    assert said["scores"].keys() == {"run", "export", "full_precision"}
    assert all("loss" in scores for scores in said["scores"].values())
    widened = json.loads(ftlab("export", "small", "plain", "--json").out)
    assert (widened["run"], widened["to"], widened["model_bytes"]) == ("small", "plain", said["bytes"])


def test_plans(workplace: Path, ftlab: Callable[..., Any]) -> None:
    command = ["plan", "-c", "tiny.yaml", "--lengths", 128]
    table = ftlab(*command, "--device", "16 GB", "--batches", "1,64", "--json", "-")
    assert (table.code, table.err) == (0, "")
    assert [(plan["rows"], plan["fits"]) for plan in json.loads(table.out)] == [(1, True), (64, True)]
    one = ftlab(*command, "--json", "--device", "0.6012 GB", "--batches", 64)
    assert one.code == 1
    (plan,) = json.loads(one.out)
    assert plan["fits"] is False
    assert one.err.startswith("ftlab: 64 rows of 128 tokens take ")


def test_checks_of_a_method(workplace: Path, ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = (Outcome("identity", "full", "passed"), Outcome("merge", "nf4", "failed", "a logit differs"))
    monkeypatch.setattr(check_method, "examine", lambda *_, **__: Report("LoRA", outcomes))
    answer = ftlab("check-method", "LoRA", "--json")
    assert (answer.code, answer.err) == (1, "")
    assert json.loads(answer.out) == {
        "method": "LoRA",
        "outcomes": [
            {"check": "identity", "base": "full", "status": "passed", "remark": ""},
            {"check": "merge", "base": "nf4", "status": "failed", "remark": "a logit differs"},
        ],
    }
