"""What methods have forgotten, side by side: over seeds, and only where it was measured on the same documents."""

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from written_runs import write_run

from ftlab.errors import UserError
from ftlab.reports.compare import Comparison, Options, compare, find_runs
from ftlab.reports.compare.tables import csv_text, sentences, tables
from ftlab.runs import Run

DOCUMENTS = (("k.jsonl:1", 10), ("k.jsonl:2", 20))


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def compared(**options: Any) -> Comparison:
    return compare(find_runs(["runs/*"]), Options(**({"resamples": 500} | options)))[0]


def write(
    method: str,
    changes: Sequence[float],
    before: float = 1.0,
    documents: Sequence[tuple[str, int]] | None = DOCUMENTS,
    **more: Any,
) -> None:
    for seed, change in enumerate(changes):
        scores = {"retention_k_loss_change": change, "retention_k_loss_before": before} | more
        run = Run(write_run(Path(f"runs/{method}/{seed}"), [1, 2], seed=seed, method=method, more_scores=scores))
        if documents:
            rows = [{"source": source, "tokens": tokens} for source, tokens in documents]
            run.write_lines(run.retention("k"), rows)


def test_it_has_an_interval_over_seeds() -> None:
    write("a", [0.25])
    write("b", [0.5, 0.6, 0.9])
    found = compared()
    one, three = found.rows
    assert dict(one.forgetting) == {"forgetting k": 0.25}
    assert dict(one.forgetting_over_seeds) == {}
    low, high = stats.t.interval(0.95, 2, 2 / 3, stats.sem([0.5, 0.6, 0.9]))
    assert three.forgetting["forgetting k"] == pytest.approx(2 / 3)
    interval = three.forgetting_over_seeds["forgetting k"]
    assert (interval.low, interval.high) == pytest.approx((low, high))
    cost = tables(found)[2]
    assert cost.header[-1] == "forgetting k"
    assert [row[-1] for row in cost.rows] == ["+0.250", "+0.667 [+0.150, +1.184]"]
    line = list(csv.DictReader(io.StringIO(csv_text(found))))[1]
    assert float(line["forgetting k_high_over_seeds"]) == interval.high
    assert "intervals of forgetting are over seeds alone, on the documents of the set" in sentences(found)


def test_a_run_that_has_no_such_set_has_none() -> None:
    write("a", [0.25])
    write_run(Path("runs/b/0"), [1, 2])
    found = compared()
    assert [dict(row.forgetting) for row in found.rows] == [{"forgetting k": 0.25}, {}]
    assert not any("retention" in note or "forgetting" in note for note in found.notes)


@pytest.mark.parametrize(("change", "said"), [(None, "none"), (math.nan, "nan"), (math.inf, "inf")])
def test_where_one_of_several_seeds_has_none_it_is_said(change: float | None, said: str) -> None:
    write("a", [0.25])
    write("b", [0.5, 0.6 if change is None else change])
    if change is None:
        path = Path("runs/b/1/scores.json")
        path.write_text(path.read_text().replace("retention_k", "retention_other"))
    found = compared()
    assert f"forgetting k of b is left out: runs/b/1 has {said}" in found.notes
    assert dict(found.rows[1].forgetting) == {}
    assert found.rows[0].forgetting["forgetting k"] == 0.25


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        (DOCUMENTS[:1], "runs/a/0 measured it on 2 documents and runs/b/0 on 1"),
        (
            (("k.jsonl:1", 10), ("k.jsonl:3", 21)),
            "runs/a/0 and runs/b/0 measured it on other documents: document 2 is k.jsonl:2 with 20 tokens there and "
            "k.jsonl:3 with 21 here",
        ),
    ],
)
def test_other_documents_under_one_name_are_not_compared(documents: Any, said: str) -> None:
    write("a", [0.25])
    write("b", [0.5], documents=documents)
    found = compared()
    assert f"forgetting k is left out: {said}" in found.notes
    assert not any(row.forgetting for row in found.rows)
    with pytest.raises(UserError, match="judge both on the same"):
        compared(metric="retention_k_loss_change")


@pytest.mark.parametrize(("before", "noted"), [(1.0005, False), (1.05, True)])
def test_another_loss_before_training_is_noted(before: float, noted: bool) -> None:
    write("a", [0.25, 0.3])
    write("b", [0.5], before=before, documents=None)
    notes = [note for note in compared().notes if note.startswith("before training")]
    said = "before training the loss on k was 1.0000 of a, 1.0500 of b: other bits, precision or device of the base"
    assert len(notes) == noted
    assert all(note.startswith(said) for note in notes)


def test_methods_are_compared_by_what_they_forget() -> None:
    write("a", [0.25, 0.3, 0.35])
    write("b", [0.5, 0.62, 0.55])
    found = compared(metric="retention_k_loss_change")
    assert (found.metric, found.lower_is_better, found.records) == ("retention_k_loss_change", True, None)
    versus = found.rows[1].versus
    assert versus is not None
    assert versus.verdict == "worse"
    assert versus.p == pytest.approx(stats.ttest_rel([0.5, 0.62, 0.55], [0.25, 0.3, 0.35]).pvalue)
    assert "retention_k_loss_change is one number a run: intervals and tests are over seeds alone" in found.notes


def test_what_it_cannot_be_compared_by() -> None:
    write("a", [0.25], harness_x_acc=0.5)
    write("b", [0.5], harness_x_acc=0.6)
    for metric in ("harness_x_acc", "retention_k_loss_before"):
        with pytest.raises(UserError, match=f"methods are not compared by {metric}, of which ftlab does not know"):
            compared(metric=metric)
    with pytest.raises(UserError, match="no run has retention_n_loss_change: there are"):
        compared(metric="retention_n_loss_change")


def test_what_was_measured_before_the_last_training_is_refused() -> None:
    write("a", [0.25])
    write("b", [0.5])
    path = Path("runs/b/0/retention/k.jsonl")
    os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    said = f"{path} is older than the beginning of the last session: the run has been trained on since; ftlab test -c "
    for metric in ("rougeL", "retention_k_loss_change"):
        with pytest.raises(UserError, match=f"{said}runs/b/0/config.yaml with the set's file writes it again"):
            compared(metric=metric)
    Run(Path("runs/b/0")).begin({}, {})  # what fit writes is older than its end, which it notes after a large model/
    path.touch()
    Run(Path("runs/b/0")).end("finished")
    Run(Path("runs/b/0")).note(ended="2100-01-01T00:00:00+00:00")
    with pytest.raises(UserError, match=r"predictions/test\.jsonl is older than the end of training"):
        compared()
    assert compared(metric="retention_k_loss_change").rows[1].score.value == 0.5


def test_a_damaged_file_is_refused() -> None:
    write("a", [0.25])
    write("b", [0.5])
    Path("runs/b/0/retention/k.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"k.jsonl is damaged: ftlab test -c runs/b/0/config.yaml writes it again"):
        compared()
