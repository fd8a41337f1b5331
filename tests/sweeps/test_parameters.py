"""Every distribution of W&B, against scipy's, W&B's own translation for Optuna, and by hand."""

import math
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from wandb.sdk.sweeps.scheduler.optuna import sweep_parameter_to_distribution

from ftlab.errors import UserError
from ftlab.sweeps.parameters import FIELDS, Parameter, read_parameters
from ftlab.sweeps.search import random_trial

QUANTILES = np.linspace(0.001, 0.999, 97)
RANGE = {"min": -2.0, "max": 3.0}
VALUES = {"min": 0.01, "max": 10.0}
# The distribution, and what scipy draws the same from.
CONTINUOUS = [
    ({"distribution": "uniform", **RANGE}, stats.uniform(-2, 5)),
    ({"distribution": "log_uniform", **RANGE}, stats.loguniform(math.exp(-2), math.exp(3))),
    ({"distribution": "log_uniform_values", **VALUES}, stats.loguniform(0.01, 10)),
    ({"distribution": "inv_log_uniform", **RANGE}, stats.loguniform(math.exp(-3), math.exp(2))),
    ({"distribution": "inv_log_uniform_values", **VALUES}, stats.loguniform(0.01, 10)),
    ({"distribution": "normal", "mu": 1.0, "sigma": 2.0}, stats.norm(1, 2)),
    ({"distribution": "normal"}, stats.norm(0, 1)),
    ({"distribution": "log_normal", "mu": 1.0, "sigma": 0.5}, stats.lognorm(s=0.5, scale=math.e)),
    ({"distribution": "beta", "a": 2.0, "b": 5.0}, stats.beta(2, 5)),
    ({"distribution": "beta"}, stats.uniform(0, 1)),
]


def read(**said: Any) -> Parameter:
    [parameter] = read_parameters({"x": said}, "sweep.yaml")
    return parameter


def test_all_that_wandb_documents_are_known() -> None:
    assert set(FIELDS) == {
        *("constant", "categorical", "categorical_w_probabilities", "int_uniform", "uniform", "q_uniform"),
        *("log_uniform", "log_uniform_values", "q_log_uniform", "q_log_uniform_values"),
        *("inv_log_uniform", "inv_log_uniform_values", "normal", "q_normal", "log_normal", "q_log_normal"),
        *("beta", "q_beta"),
    }


@pytest.mark.parametrize(("said", "theirs"), CONTINUOUS, ids=lambda value: str(value)[:60])
def test_quantiles_are_scipys(said: dict[str, Any], theirs: Any) -> None:
    ours = [read(**said).at(quantile) for quantile in QUANTILES]
    assert ours == pytest.approx(theirs.ppf(QUANTILES), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", ["uniform", "log_uniform", "log_uniform_values", "normal", "log_normal", "beta"])
@pytest.mark.parametrize("q", [2, 0.25])
def test_quantized_ones_are_the_nearest_multiples(kind: str, q: float) -> None:
    said, theirs = next((said, theirs) for said, theirs in CONTINUOUS if said["distribution"] == kind)
    quantized = read(**said | {"distribution": f"q_{kind}", "q": q})
    ours = [quantized.at(quantile) for quantile in QUANTILES]
    assert ours == pytest.approx(np.round(theirs.ppf(QUANTILES) / q) * q, rel=1e-9)
    assert all(isinstance(value, type(q)) for value in ours)


@pytest.mark.parametrize(("said", "theirs"), CONTINUOUS, ids=lambda value: str(value)[:60])
def test_draws_of_a_random_search_follow_the_distribution(said: dict[str, Any], theirs: Any) -> None:
    parameters = read_parameters({"x": said}, "sweep.yaml")
    drawn = [random_trial(parameters, seed=3, k=k)["x"] for k in range(2000)]
    assert stats.kstest(drawn, theirs.cdf).pvalue > 0.001


def test_draws_among_values_keep_to_the_probabilities() -> None:
    counted = {
        "even": ({"values": ["a", "b", "c"]}, [1 / 3] * 3),
        "weighted": ({"values": ["a", "b", "c"], "probabilities": [0.5, 0.2, 0.3]}, [0.5, 0.2, 0.3]),
        "whole": ({"min": 1, "max": 3}, [1 / 3] * 3),
    }
    parameters = read_parameters({name: said for name, (said, _) in counted.items()}, "sweep.yaml")
    drawn = [random_trial(parameters, seed=0, k=k) for k in range(3000)]
    for name, (said, expected) in counted.items():
        values = [trial[name] for trial in drawn]
        there = [values.count(value) for value in said.get("values", [1, 2, 3])]
        assert stats.chisquare(there, np.array(expected) * 3000).pvalue > 0.001


@pytest.mark.parametrize(
    ("said", "count"),
    [
        ({"value": 3}, 1),
        ({"values": [1, 2, 1, True, [1], [1]]}, 4),
        ({"values": ["a", "b", "c"], "probabilities": [0.5, 0.5, 0]}, 2),
        ({"min": -1, "max": 3}, 5),
        ({"min": 0.5, "max": 0.5}, 1),
        ({"distribution": "q_uniform", "min": 0.1, "max": 1.0, "q": 0.25}, 5),
        ({"distribution": "q_uniform", "min": 1, "max": 9, "q": 2}, 4),  # 2, 4, 6, 8
        ({"distribution": "q_log_uniform", "min": 0, "max": 2, "q": 2}, 4),
        ({"distribution": "q_log_uniform_values", "min": 3, "max": 9, "q": 2}, 3),
        ({"distribution": "q_beta", "a": 2, "b": 2, "q": 0.25}, 5),
    ],
)
def test_values_are_counted_as_they_are_drawn(said: dict[str, Any], count: int) -> None:
    parameter = read(**said)
    drawn = {repr(parameter.at(quantile)) for quantile in np.linspace(1e-6, 1 - 1e-6, 2000)}
    assert len(drawn) == parameter.count() == count


def test_of_some_distributions_there_is_no_end_of_values() -> None:
    endless = [{"min": 0.5, "max": 2}, {"distribution": "q_normal"}, {"distribution": "q_log_normal"}]
    assert [read(**said).count() for said in endless] == [None] * 3


@pytest.mark.parametrize(
    "said",
    [
        {"values": [1, 2, 3]},
        {"min": 1, "max": 9},
        {"min": 0.5, "max": 2},
        {"distribution": "uniform", "min": 1, "max": 9},
        {"distribution": "log_uniform_values", "min": 1e-5, "max": 1.0},
    ],
)
def test_a_learning_sampler_draws_from_what_wandbs_own_translation_has(said: dict[str, Any]) -> None:
    theirs, ours = sweep_parameter_to_distribution(said), read(**said).space()
    if isinstance(theirs, optuna.distributions.CategoricalDistribution):
        assert isinstance(ours, optuna.distributions.CategoricalDistribution)
        assert [read(**said).value(choice) for choice in ours.choices] == list(theirs.choices)
    else:
        assert ours == theirs


@pytest.mark.parametrize("q", [1, 2, 0.5])
def test_values_of_q_uniform_are_those_of_wandbs_translation(q: float) -> None:
    said = {"distribution": "q_uniform", "min": 2, "max": 8, "q": q}
    theirs = sweep_parameter_to_distribution(said)
    assert isinstance(theirs, optuna.distributions.IntDistribution | optuna.distributions.FloatDistribution)
    assert list(read(**said).grid()) == pytest.approx(np.arange(theirs.low, theirs.high + q / 2, q))


@given(st.floats(1e-9, 1 - 1e-9), st.floats(-50, 50), st.floats(0, 100))
def test_values_stay_between_min_and_max(quantile: float, low: float, width: float) -> None:
    for kind in ("uniform", "log_uniform", "inv_log_uniform"):
        ends = sorted(math.exp(end) for end in (low, low + width))
        if kind == "uniform":
            ends = [low, low + width]
        if kind == "inv_log_uniform":
            ends = sorted(math.exp(-end) for end in (low, low + width))
        value = read(distribution=kind, min=low, max=low + width).at(quantile)
        assert ends[0] <= value <= ends[1]


def test_nested_parameters_have_dotted_names() -> None:
    found = read_parameters({"model": {"parameters": {"method": {"parameters": {"r": {"value": 4}}}}}}, "sweep.yaml")
    assert [(parameter.name, parameter.at(0.5)) for parameter in found] == [("model.method.r", 4)]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"min": 3, "max": 1}, "has min 3 above max 1: exchange them"),
        ({"distribution": "uniform", "min": 3}, "is uniform and has no max: it needs min and max"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "a logarithm needs more than 0"),
        ({"distribution": "log_uniform", "min": 1, "max": 9999}, "name log_uniform_values"),
        ({"min": "1e-5", "max": 1}, "has min '1e-5': it must be a number: YAML reads 1e-5 as a text"),
        ({"distribution": "normal", "sigma": -1}, "has sigma -1: it must be more than 0"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}, "has q 0: it must be more than 0"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 1e-9}, "give a greater q"),
        ({"distribution": "unifrom", "min": 0, "max": 1}, "did you mean uniform?"),
        ({"distribution": "int_uniform", "min": 0.5, "max": 2}, "both must be whole numbers"),
        ({"vales": [1]}, "has 'vales': did you mean values?"),
        ({"values": []}, "give a list"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "give 2 numbers, one for each value, of sum 1"),
        ({"values": [1], "maxx": 2}, "has 'maxx'"),
        ({"min": 1}, "says no values"),
        ({}, "says no values"),
    ],
)
def test_what_is_no_parameter_is_refused(said: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        read(**said)
    assert "sweep.yaml: parameter x" in str(refusal.value)
    assert sentence in str(refusal.value)


def test_a_number_in_place_of_a_parameter_is_refused() -> None:
    with pytest.raises(UserError, match="write value: 3 under it"):
        read_parameters({"x": 3}, "sweep.yaml")
