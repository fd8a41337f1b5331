"""Which trials are stopped early: W&B's Hyperband, by the values that trials had at the same number of validations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_RUNGS = 40


@dataclass(frozen=True)
class Hyperband:
    """At certain numbers of validations, only about 1/eta of the trials that came so far go on (Li et al. 2018, arXiv
    1603.06560), judged as they come and without waiting for others, as in ASHA (Li et al. 2020, arXiv 1810.05934).

    Args:
        rungs: The numbers of validations, ascending.
        eta: Of how many one goes on.
        strict: Whether exactly the best 1/eta go on; otherwise the first that is not among them does, too, which is
            what W&B does.
    """

    rungs: tuple[int, ...]
    eta: float = 3
    strict: bool = False

    @classmethod
    def from_min(cls, min_iter: int, eta: float = 3, strict: bool = False) -> Hyperband:
        """Rungs at min_iter, min_iter x eta, min_iter x eta x eta, …"""
        return cls(tuple(dict.fromkeys(int(min_iter * eta**n) for n in range(_RUNGS))), eta, strict)

    @classmethod
    def from_max(cls, max_iter: int, s: int, eta: float = 3, strict: bool = False) -> Hyperband:
        """Rungs at max_iter / eta, max_iter / eta / eta, …, `s` of them where so many come to 1 or more."""
        rungs = (int(max_iter / eta**n) for n in range(1, s + 1))
        return cls(tuple(sorted({rung for rung in rungs if rung >= 1})), eta, strict)

    def stops(self, own: Sequence[float], others: Iterable[Sequence[float]], seen: int = 0) -> bool:
        """Whether a trial is to be stopped, at any of the rungs that it has come to since it was last judged.

        Args:
            own: Its values at each validation so far; lower is better, and NaN is the worst.
            others: Those of all other trials, ended or not.
            seen: How many of its values there were then. A fast trial passes several rungs between two looks.
        """
        curves = list(others)
        new = [rung for rung in self.rungs if seen < rung <= len(own)]
        return any(self._stops_at(rung, own, curves) for rung in new or self._last(len(own)))

    def _last(self, values: int) -> list[int]:
        """The last rung that a trial with so many values has come to, where there is one: others come there, too."""
        return [rung for rung in self.rungs if rung <= values][-1:]

    def _stops_at(self, rung: int, own: Sequence[float], others: Iterable[Sequence[float]]) -> bool:
        value = _comparable(own[rung - 1])
        there = sorted([value, *(_comparable(other[rung - 1]) for other in others if len(other) >= rung)])
        last = max(int(len(there) / self.eta), 1) - 1 if self.strict else int(len(there) / self.eta)
        return value > there[last]


def _comparable(value: float) -> float:
    """A trial that has diverged comes last: NaN is neither more nor less than anything, and spoils an order."""
    return math.inf if math.isnan(value) else value
