"""Records drawn anew: the bootstrap's scores, and approximate randomisation.

Scores of a corpus that are no mean of its records, such as BLEU, are computed anew from the summed statistics of the
records drawn. Arrays of these sums are (…, records, statistics).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy
from numpy.typing import NDArray

Array = NDArray[numpy.float64]
Score = Callable[[Array], Array]
"""From sums over records, (…, statistics), to scores, (…)."""

CONFIDENCE = 0.95
RESAMPLES = 10_000
_ROUNDING = 1e-10
"""By which equal differences of scores may differ: of an exact match many are equal."""
_AT_ONCE = 2**22
"""Numbers drawn at a time: 32 MiB."""


def resampled(sums: Array, score: Score, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Scores on records that are drawn with replacement, (runs, resamples), the same ones for every run.

    Args:
        sums: (runs, records, statistics).
        score: Of sums.
        resamples: How often records are drawn.
        seed: Of the draws.
    """
    runs, records, kinds = sums.shape
    flat = sums.transpose(1, 0, 2).reshape(records, runs * kinds)
    parts = [(counts @ flat).reshape(-1, runs, kinds) for counts in _counts(records, resamples, seed)]
    return score(numpy.concatenate(parts)).T


def _counts(records: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each record is drawn, (some, records)."""
    generator = numpy.random.default_rng(seed)
    for some in _portions(resamples, records):
        drawn = generator.integers(records, size=(some, records)) + records * numpy.arange(some)[:, None]
        yield numpy.bincount(drawn.ravel(), minlength=some * records).reshape(some, records).astype(float)


def _portions(total: int, each: int) -> Iterator[int]:
    most = max(1, _AT_ONCE // each)
    yield from (min(most, total - start) for start in range(0, total, most))


def randomisation(one: Array, other: Array, score: Score, trials: int = RESAMPLES, seed: int = 0) -> float:
    """The p-value of approximate randomisation: each record's two answers change sides or do not, at random.

    Args:
        one: Statistics of each record, (records, statistics).
        other: Of the other method.
        score: Of sums.
        trials: How often.
        seed: Of the draws.
    """
    generator = numpy.random.default_rng(seed)
    apart, total = one - other, one.sum(axis=0) + other.sum(axis=0)
    found = []
    for some in _portions(trials, len(one)):
        mixed = generator.integers(2, size=(some, len(one))).astype(float) @ apart + other.sum(axis=0)
        found.append(numpy.abs(score(mixed) - score(total - mixed)))
    return share_as_far(numpy.concatenate(found), abs(float(score(one.sum(axis=0)) - score(other.sum(axis=0)))))


def share_as_far(drawn: Array, observed: float) -> float:
    """The share of draws that come to as much; one is added, so that it is never 0 (Davison and Hinkley 1997)."""
    as_much = int((drawn >= observed - _ROUNDING).sum())
    return (as_much + 1) / (len(drawn) + 1)
