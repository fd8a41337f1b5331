"""What the trials of a sweep say together: how much each parameter mattered, and a page of all with the plots."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from ftlab.errors import UserError
from ftlab.pages import filled
from ftlab.runs import write_atomically
from ftlab.runs.files import write_whole
from ftlab.sweeps.ledger import RESULT, SAID
from ftlab.sweeps.status import STATES, status
from ftlab.sweeps.study import Study, current

_TEMPLATE = Path(__file__).parent / "trials.html.j2"
_AT_LEAST = 2
"""Trials without which there is nothing to compare."""
_DRAWS = {"importance": "plot_param_importances", "parallel": "plot_parallel_coordinate"}
_STATE = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def write_plots(study: Study) -> list[Path]:
    """Draws importance.png, which says how much each parameter mattered (fANOVA), and parallel.png, a line a trial, and
    writes trials.html, which holds both and a table of the trials, in one file that needs no other.

    Raises:
        UserError: There is nothing to compare.
    """
    compared = _with_values(study, _finished(study))
    names = {name for trial in compared.trials for name in trial.params}
    if len(compared.trials) < _AT_LEAST or not names:
        raise UserError(f"{study.directory.path} has too few finished trials, or parameters, for a plot")
    if len({trial.value for trial in compared.trials}) < _AT_LEAST:
        raise UserError(
            f"all trials of {study.directory.path} came to the same {study.file.metric}: no plot tells more"
        )
    images = {name: _drawn(function, compared, study.file.metric) for name, function in _DRAWS.items()}
    written = [
        write_whole(study.directory.path / f"{name}.png", lambda file, image=image: file.write(image))  # type: ignore[misc]
        for name, image in images.items()
    ]
    page = study.directory.path / "trials.html"
    write_atomically(page, _page(study, images))
    return [*written, page]


def _drawn(function: str, compared: optuna.Study, metric: str) -> bytes:
    """A plot of optuna's, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(optuna.visualization.matplotlib, function)(compared, target_name=metric)
    figure, image = pyplot.gcf(), BytesIO()
    figure.set_size_inches(10, 5)
    figure.tight_layout()
    figure.savefig(image, format="png", dpi=120)
    pyplot.close(figure)
    return image.getvalue()


def _page(study: Study, images: dict[str, bytes]) -> str:
    shares = importances(study)
    return filled(
        _TEMPLATE,
        now=status(study),
        directory=study.directory.path,
        states=STATES,
        names=[parameter.name for parameter in study.file.parameters],
        rows=_rows(study),
        shares=sorted(shares.items(), key=lambda share: -share[1]),
        images={name: base64.b64encode(image).decode() for name, image in images.items()},
    )


def _rows(study: Study) -> list[dict[str, Any]]:
    """All trials, the best first, then those without a value."""
    sign = -1 if study.file.maximize else 1
    trials = sorted(
        current(study.trials()),
        key=lambda trial: (
            trial.state != TrialState.COMPLETE,
            trial.value is None,
            sign * (trial.value or 0.0),
            trial.number,
        ),
    )
    return [
        {
            "number": trial.number,
            "run": trial.user_attrs[SAID]["run"],
            "state": _STATE.get(trial.state, "not ended"),
            "value": trial.value,
            "parameters": trial.user_attrs[SAID]["parameters"],
            "seconds": trial.user_attrs.get(RESULT, {}).get("seconds"),
            "error": trial.user_attrs.get(RESULT, {}).get("error", ""),
        }
        for trial in trials
    ]


def _finished(study: Study) -> list[FrozenTrial]:
    return [trial for trial in study.trials() if trial.state == TrialState.COMPLETE]


def importances(study: Study) -> dict[str, float]:
    """The share of the variance of the metric that each parameter explains (fANOVA, Hutter et al. 2014)."""
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(_with_values(study, _finished(study)), evaluator=evaluator)


def _with_values(study: Study, trials: Sequence[FrozenTrial]) -> optuna.Study:
    """A study in memory whose parameters are the values that were tried, those that never changed left out."""
    tried = {p.name: [t.user_attrs[SAID]["parameters"][p.name] for t in trials] for p in study.file.parameters}
    spaces = {name: space for name, values in tried.items() if (space := _space(values)) is not None}
    made = optuna.create_study(direction="maximize" if study.file.maximize else "minimize")
    for trial in trials:
        said = trial.user_attrs[SAID]["parameters"]
        values = {
            name: float(said[name]) if isinstance(space, FloatDistribution) else _label(said[name])
            for name, space in spaces.items()
        }
        made.add_trial(optuna.trial.create_trial(params=values, distributions=spaces, value=trial.value))
    return made


def _space(values: Sequence[Any]) -> BaseDistribution | None:
    different = list(dict.fromkeys(_label(value) for value in values))
    if len(different) < _AT_LEAST:
        return None
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        return FloatDistribution(low, high, log=low > 0 and high / low >= 100)
    return CategoricalDistribution(different)


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
