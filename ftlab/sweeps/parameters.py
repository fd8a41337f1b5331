"""One parameter of a sweep: what W&B's sweep file says of it, and the values that a search takes from it."""

from __future__ import annotations

import difflib
import json
import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ftlab.errors import UserError

_RANGE = {"min": None, "max": None}
_NORMAL = {"mu": 0.0, "sigma": 1.0}
_BETA = {"a": 1.0, "b": 1.0}
_Q = {"q": 1}
FIELDS: dict[str, dict[str, Any]] = {
    "constant": {"value": None},
    "categorical": {"values": None},
    "categorical_w_probabilities": {"values": None, "probabilities": None},
    "int_uniform": _RANGE,
    "uniform": _RANGE,
    "q_uniform": _RANGE | _Q,
    "log_uniform": _RANGE,
    "log_uniform_values": _RANGE,
    "q_log_uniform": _RANGE | _Q,
    "q_log_uniform_values": _RANGE | _Q,
    "inv_log_uniform": _RANGE,
    "inv_log_uniform_values": _RANGE,
    "normal": _NORMAL,
    "q_normal": _NORMAL | _Q,
    "log_normal": _NORMAL,
    "q_log_normal": _NORMAL | _Q,
    "beta": _BETA,
    "q_beta": _BETA | _Q,
}
"""The distributions of W&B, each with its fields and W&B's defaults; None where the file must say it."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_ENDS = 1e-4
"""A sampler that learns takes quantiles of normal and beta from here on: at 0 and 1 they are infinite."""
_MANY = 1_000_000


@dataclass(frozen=True)
class Parameter:
    """A parameter and its distribution.

    Args:
        name: The option of the command line that it sets.
        distribution: One of FIELDS.
        fields: What the distribution needs, defaults filled in.
    """

    name: str
    distribution: str
    fields: Mapping[str, Any]

    def at(self, quantile: float) -> Any:
        """The value below which a share `quantile`, between 0 and 1, of all draws lie."""
        f, kind = self.fields, self.distribution
        if kind == "constant":
            return f["value"]
        if kind == "categorical":
            return f["values"][min(int(quantile * len(f["values"])), len(f["values"]) - 1)]
        if kind == "categorical_w_probabilities":
            sums = list(accumulate(f["probabilities"]))
            return f["values"][min(bisect_right(sums, quantile * sums[-1]), len(sums) - 1)]
        if kind == "int_uniform":
            return min(f["min"] + int(quantile * (f["max"] - f["min"] + 1)), f["max"])
        if kind.endswith("normal"):
            value = NormalDist().inv_cdf(quantile) * f["sigma"] + f["mu"]
            return self._quantized(math.exp(value) if "log" in kind else value)
        if kind.endswith("beta"):
            from scipy.special import betaincinv  # a fifth of a second, which most commands need not wait

            return self._quantized(float(betaincinv(f["a"], f["b"], quantile)))
        low, high = self._ends()
        if "log" in kind:
            value = math.exp(math.log(low) + quantile * (math.log(high) - math.log(low)))
        else:
            value = low + quantile * (high - low)
        return self._quantized(min(max(value, low), high))

    def grid(self) -> Sequence[Any]:
        """All its values, in order.

        Raises:
            UserError: There is no end of them.
        """
        f = self.fields
        if self.distribution == "constant":
            return [f["value"]]
        if self.distribution == "categorical":
            return f["values"]
        if self.distribution == "int_uniform":
            return range(f["min"], f["max"] + 1)
        if self.distribution == "q_uniform":
            first, last = round(f["min"] / f["q"]), round(f["max"] / f["q"])
            return [_multiple(n, f["q"]) for n in range(first, last + 1)]
        raise UserError(
            f"parameter {self.name} is {self.distribution}, which a grid cannot go through: give values, q_uniform, or "
            "whole numbers as min and max"
        )

    def count(self) -> int | None:
        """How many different values there are; None where there is no end of them. Some may be next to impossible."""
        f, kind = self.fields, self.distribution
        if kind == "constant":
            return 1
        if "values" in f:
            likely = f.get("probabilities", [1] * len(f["values"]))
            texts = [json.dumps(value, sort_keys=True, default=str) for value in f["values"]]  # a list has no hash
            return len({text for text, probability in zip(texts, likely, strict=True) if probability})
        if kind == "int_uniform":
            return f["max"] - f["min"] + 1
        if kind.endswith("normal"):
            return None
        low, high = (0.0, 1.0) if kind.endswith("beta") else self._ends()
        if low == high:
            return 1
        # the ends themselves are never drawn: just inside, a half is rounded inwards
        return math.ceil(high / f["q"] - 0.5) - math.floor(low / f["q"] + 0.5) + 1 if "q" in f else None

    def space(self) -> BaseDistribution | None:
        """What a sampler that learns draws from, and `value` translates; None for a constant.

        Raises:
            UserError: The sampler could not keep to it.
        """
        f = self.fields
        if self.distribution == "constant":
            return None
        if self.distribution == "categorical":
            return CategoricalDistribution(range(len(f["values"])))
        if self.distribution == "categorical_w_probabilities":
            raise UserError(
                f"parameter {self.name} has probabilities, which method bayes would not keep to: leave them out, or "
                "take method random"
            )
        if self.distribution == "int_uniform":
            return IntDistribution(f["min"], f["max"])
        if self.distribution.endswith(("normal", "beta")):
            return FloatDistribution(_ENDS, 1 - _ENDS)
        low, high = self._ends()
        return FloatDistribution(low, high, log="log" in self.distribution)

    def value(self, drawn: Any) -> Any:
        """The value that stands for what was drawn from `space`."""
        if self.distribution == "constant":
            return self.fields["value"]
        if self.distribution == "categorical":
            return self.fields["values"][drawn]
        if self.distribution.endswith(("normal", "beta")):
            return self.at(drawn)
        return self._quantized(drawn)

    def extremes(self) -> list[Any]:
        """Values that stand for all: if a configuration takes these, it takes any."""
        if "values" in self.fields:
            return list(self.fields["values"])
        return list(dict.fromkeys([self.at(_ENDS), self.at(1 - _ENDS)])) if self.space() else [self.fields["value"]]

    def _ends(self) -> tuple[float, float]:
        """Least and greatest value, before they are quantized: of some distributions the file gives exponents of e."""
        low, high = self.fields["min"], self.fields["max"]
        if self.distribution in ("log_uniform", "q_log_uniform"):
            return math.exp(low), math.exp(high)
        if self.distribution == "inv_log_uniform":
            return math.exp(-high), math.exp(-low)
        return low, high

    def _quantized(self, value: float) -> float:
        q = self.fields.get("q")
        return value if q is None else _multiple(round(value / q), q)


def _multiple(number: int, q: float) -> float:
    return number * q if isinstance(q, int) else float(f"{number * q:.12g}")


def read_parameters(content: Any, file: str, above: str = "") -> list[Parameter]:
    """The parameters under a key `parameters`; those of nested ones have dotted names.

    Raises:
        UserError: One is not as W&B's format has it.
    """
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{file}: parameters holds no parameter: give each a name and, say, values: [1, 2]")
    found: list[Parameter] = []
    for key, said in content.items():
        name = f"{above}{key}"
        if not isinstance(key, str) or not _NAME.fullmatch(key):
            raise UserError(f"{file}: {name!r} is no name of a parameter: give an option, such as model.method.r")
        if not isinstance(said, Mapping):
            raise UserError(f"{file}: parameter {name} is {said!r}: write value: {said!r} under it for a constant")
        if "parameters" in said:
            if other := [other for other in said if other != "parameters"]:
                raise UserError(f"{file}: parameter {name} has parameters, and {other[0]} beside them: take one out")
            found += read_parameters(said["parameters"], file, f"{name}.")
        else:
            found.append(_parameter(name, said, file))
    return found


def _parameter(name: str, said: Mapping[str, Any], file: str) -> Parameter:
    where = f"{file}: parameter {name}"
    kind = said.get("distribution") or _inferred(said, where)
    if kind not in FIELDS:
        near = difflib.get_close_matches(str(kind), FIELDS, n=1)
        raise UserError(f"{where} has distribution {kind!r}: {_did_you_mean(near) or 'there are ' + ', '.join(FIELDS)}")
    known = FIELDS[kind]
    for key in said:
        if key not in known and key != "distribution":
            near = difflib.get_close_matches(str(key), known, n=1)
            raise UserError(f"{where} has {key!r}: {_did_you_mean(near) or kind + ' has ' + ', '.join(known)}")
    if missing := [key for key, default in known.items() if default is None and key not in said]:
        raise UserError(f"{where} is {kind} and has no {missing[0]}: it needs {' and '.join(_needed(kind))}")
    fields = {key: said.get(key, default) for key, default in known.items()}
    _refuse_wrong_fields(kind, fields, where)
    return Parameter(name, kind, fields)


def _did_you_mean(near: Sequence[str]) -> str:
    return f"did you mean {near[0]}?" if near else ""


def _needed(kind: str) -> list[str]:
    return [key for key, default in FIELDS[kind].items() if default is None]


def _inferred(said: Mapping[str, Any], where: str) -> str:
    """The distribution that W&B takes where the file names none."""
    if "value" in said:
        return "constant"
    if "values" in said:
        return "categorical_w_probabilities" if "probabilities" in said else "categorical"
    if "min" in said and "max" in said:
        whole = all(isinstance(said[end], int) and not isinstance(said[end], bool) for end in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    known = {"value", "values", "probabilities", "min", "max", "distribution", "parameters"}
    for key in said:
        if near := difflib.get_close_matches(str(key), known, n=1) if key not in known else []:
            raise UserError(f"{where} has {key!r}: {_did_you_mean(near)}")
    raise UserError(f"{where} says no values: give value, values, min and max, or a distribution")


def _refuse_wrong_fields(kind: str, fields: Mapping[str, Any], where: str) -> None:
    for key in ("min", "max", "mu", "sigma", "a", "b", "q"):
        value = fields.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            hint = ": YAML reads 1e-5 as a text, write 1.0e-5" if isinstance(value, str) and "e" in value else ""
            raise UserError(f"{where} has {key} {value!r}: it must be a number{hint}")
    for key in ("sigma", "a", "b", "q"):
        if fields.get(key, 1) <= 0:
            raise UserError(f"{where} has {key} {fields[key]}: it must be more than 0")
    if "values" in fields and (not isinstance(fields["values"], list) or not fields["values"]):
        raise UserError(f"{where} has values {fields['values']!r}: give a list, such as [1, 2]")
    if "probabilities" in fields:
        _refuse_wrong_probabilities(fields["probabilities"], len(fields["values"]), where)
    if "min" in fields:
        low, high = fields["min"], fields["max"]
        if kind == "int_uniform" and not (isinstance(low, int) and isinstance(high, int)):
            raise UserError(f"{where} is int_uniform from {low} to {high}: both must be whole numbers")
        if low > high:
            raise UserError(f"{where} has min {low} above max {high}: exchange them")
        if kind.endswith("log_uniform_values") and low <= 0:
            raise UserError(f"{where} is {kind} and has min {low}: a logarithm needs more than 0")
        if kind.endswith("log_uniform") and max(abs(low), abs(high)) > 700:
            raise UserError(f"{where} is {kind} from {low} to {high}: these are exponents of e; name {kind}_values")
        if kind == "q_uniform" and (high - low) / fields["q"] > _MANY:
            raise UserError(f"{where} has more than {_MANY:,} values: give a greater q")


def _refuse_wrong_probabilities(said: Any, values: int, where: str) -> None:
    numbers = isinstance(said, list) and all(isinstance(p, int | float) and p >= 0 for p in said)
    if not numbers or len(said) != values or not math.isclose(sum(said), 1, abs_tol=1e-6):
        raise UserError(f"{where} has probabilities {said!r}: give {values} numbers, one for each value, of sum 1")
