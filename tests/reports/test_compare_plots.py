"""Figures of a comparison: what they show is what was found."""

import re
from io import BytesIO
from pathlib import Path

import matplotlib.image
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_runs import CURVES, write_method

from ftlab.reports.compare import Options, compare, find_runs
from ftlab.reports.compare.page import page
from ftlab.reports.compare.plots import drawn, figures
from ftlab.reports.compare.series import pareto, points


def test_the_front_by_hand() -> None:
    points = [(1.0, 50.0), (2.0, 40.0), (3.0, 60.0), (3.0, 55.0), (4.0, 60.0)]
    assert pareto(points, lower_is_better=False) == [0, 2]
    assert pareto(points, lower_is_better=True) == [0, 1]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_nothing_beats_the_front_and_the_front_beats_all_else(points: list[tuple[float, float]]) -> None:
    front = [points[n] for n in pareto(points, lower_is_better=False)]
    for cost, score in points:
        assert any(its_cost <= cost and its_score >= score for its_cost, its_score in front)
    for cost, score in front:
        assert not any((c <= cost and s > score) or (c < cost and s >= score) for c, s in points)


def test_figures_show_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_method(Path("runs/full"), 70, method="ftlab.methods.Full", cost={"peak_memory_bytes": 5e9})
    write_method(Path("runs/lora"), 74)
    comparison, groups = compare(find_runs(["runs/*"]), Options(resamples=200))
    found = figures(comparison, groups)
    assert list(found) == ["score_memory", "score_time", "score_parameters", "train_loss", "val_loss"]
    (axes,) = found["score_memory"].axes
    shown = [container.lines[0].get_xydata()[0].tolist() for container in axes.containers]
    full, lora = (row.score.value for row in comparison.rows)
    assert shown == [pytest.approx([5, full]), pytest.approx([3, lora])]
    assert [line.get_drawstyle() for line in axes.lines][-1] == "steps-post"
    (axes,) = found["val_loss"].axes
    assert axes.lines[0].get_xydata() == pytest.approx(numpy.array([[20, 1.5], [100, 0.7]]))
    files = drawn(Path("plots"), comparison, groups)
    assert len(files) == 10
    assert matplotlib.image.imread(BytesIO(files[Path("plots/score_memory.png")])).shape[1] == 1300
    assert files[Path("plots/score_time.pdf")].startswith(b"%PDF")


def test_the_page_and_the_plots_leave_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not trained takes no time, and of a single step there is no curve."""
    monkeypatch.chdir(tmp_path)
    nothing = {"trainable_parameters": 0, "training_seconds": 0.0, "total_tokens": 0}
    once = "".join(CURVES.splitlines(keepends=True)[:2])
    write_method(Path("runs/full"), 70, method="ftlab.methods.Full", curves=once)
    write_method(Path("runs/zero"), 20, method="ftlab.methods.ZeroShot", cost=nothing, curves=once)
    write_method(Path("runs/lora"), 74, curves=once)
    comparison, groups = compare(find_runs(["runs/full", "runs/zero", "runs/lora"]), Options(resamples=200))
    assert [(point.name, point.number) for point in points(comparison, "time")] == [("full", 0), ("lora", 2)]
    found = figures(comparison, groups)
    assert list(found) == ["score_memory", "score_time", "score_parameters"]
    (axes,) = found["score_time"].axes
    assert [container.get_label() for container in axes.containers] == ["full", "lora"]
    assert [container.lines[0].get_color() for container in axes.containers] == ["C0", "C2"]  # as beside the memory
    html = page(comparison, groups)
    assert re.findall(r'id="chart-(\w+)"', html) == ["memory", "time", "size", "lengths"]
    (time,) = re.findall(r'id="chart-time" role="img" aria-label="([^"]*)"', html)
    assert "full" in time
    assert "zero" not in time
