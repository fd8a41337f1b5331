"""The plots of a sweep, and the page that holds them with all trials."""

import base64
import re
from collections.abc import Callable

import pytest
from optuna.trial import TrialState

from ftlab.errors import UserError
from ftlab.sweeps import Study
from ftlab.sweeps.plots import importances, write_plots


def end_all(study: Study, value: Callable[[dict], float]) -> None:
    while task := study.take():
        study.finish(task, TrialState.COMPLETE, value(task.said["parameters"]))


def test_one_page_holds_the_plots_and_every_trial(make_study: Callable[..., Study]) -> None:
    parameters = {"x": {"values": [1.0, 2.0, 3.0]}, "kind": {"values": ["<b>", "plain"]}, "c": {"value": 1}}
    study = make_study(parameters=parameters)
    failed = study.take()
    assert failed is not None
    study.finish(failed, TrialState.FAIL, error="a & b")
    end_all(study, lambda tried: tried["x"])
    importance, parallel, page = write_plots(study)
    text = page.read_text()
    images = [base64.b64decode(image) for image in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]
    assert images == [importance.read_bytes(), parallel.read_bytes()]
    assert all(image.startswith(b"\x89PNG") for image in images)
    assert "http" not in text  # it needs nothing but itself
    assert "<b>plain" not in text
    assert text.count("<td>&lt;b&gt;</td>") == 3
    assert "a &amp; b" in text
    numbers = [int(number) for number in re.findall(r'<tr class="\w+"><td>(\d+)</td>', text)]
    assert numbers == [3, 1, 4, 2, 5, 0]  # by value, then those that have none; x changes first
    assert importances(study)["x"] > 0.9


def test_nothing_to_compare(make_study: Callable[..., Study]) -> None:
    study = make_study(parameters={"x": {"values": [1.0]}})
    end_all(study, lambda tried: 1.0)
    with pytest.raises(UserError, match="too few finished trials"):
        write_plots(study)
    study = make_study(parameters={"x": {"values": [1.0, 2.0]}}, name="same")
    end_all(study, lambda tried: 1.0)
    with pytest.raises(UserError, match="came to the same val_loss"):
        write_plots(study)
