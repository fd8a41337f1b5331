"""What of a difference between two methods may be chance: intervals and tests over records, over seeds, and over both.

Of a method there are runs, alike but for their seeds, and each run has a score on every test record. Three questions
can be asked of such a table:

- over records: what these very networks would come to on other test records of the same kind. Records are drawn anew,
  the same ones for all runs (paired bootstrap: Koehn 2004), or the two methods' answers to a record change sides
  (approximate randomisation: Riezler and Maxwell 2005).
- over seeds: what other trainings would come to on the same records. Student's t, on one score a run.
- over both: what other trainings would come to on other records, which is what a reader takes from a table. Records and
  seeds are crossed, so their variances add up, less what both hold of the single answer's chance (quasi-F: Clark 1973,
  "The language-as-fixed-effect fallacy"). Their intervals are added as the sides of a right angle are, which never says
  too little (Banerjee 1960); Satterthwaite's degrees of freedom would raise up to 13 % false alarms with two seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from scipy import optimize, stats

from ftlab.evaluation.resampling import (
    CONFIDENCE,
    RESAMPLES,
    Array,
    Score,
    randomisation,
    resampled,
    share_as_far,
)

_LEAST = 1e-15
"""A p-value that is looked for no further down."""


@dataclass(frozen=True)
class Interval:
    """Both ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Sample:
    """What the runs of one method came to.

    Args:
        scores: Of each run on all records, (runs,).
        seeds: What tells the runs apart; those of two methods that have the same ones are paired.
        drawn: Whether other seeds make other runs: not where nothing is trained.
        resampled: Scores of each run on drawn records, (runs, resamples); those of two samples that are compared are on
            the same ones. None where nothing is known of single records.
        records: How many there are.
        sums: Statistics of each record, the mean over runs, (records, statistics); None likewise. Of a corpus' score,
            such as BLEU, their score is that of all runs in one corpus, and not quite the mean of scores.
    """

    scores: Array
    seeds: tuple[str, ...]
    drawn: bool = True
    resampled: Array | None = None
    records: int = 0
    sums: Array | None = None

    @property
    def mean(self) -> float:
        """Over runs."""
        return float(self.scores.mean())


@dataclass(frozen=True)
class Estimate:
    """A number with its intervals; None where one cannot be given.

    Args:
        value: The mean over seeds, or the difference of two.
        over_seeds: Student's t, for other trainings.
        over_records: Percentiles of the bootstrap, for other records.
        over_both: For both.
    """

    value: float
    over_seeds: Interval | None
    over_records: Interval | None
    over_both: Interval | None

    @property
    def widest(self) -> Interval | None:
        """The one that says most: over both, or what there is."""
        return self.over_both or self.over_records or self.over_seeds


@dataclass(frozen=True)
class Significance:
    """Two-sided p-values of a difference; None where a test cannot be done."""

    bootstrap: float | None
    randomisation: float | None
    seeds: float | None
    both: float | None
    paired_seeds: bool
    """Whether runs of the same seed were compared (paired t), or all with all (Welch's t)."""

    @property
    def deciding(self) -> float | None:
        """The one by which methods are told apart: over both, but no less than over records alone, where few records on
        which they differ at all make variances say little; over records alone where there is one seed."""
        if self.both is not None:
            return max(self.both, self.randomisation or 0.0)
        return self.randomisation if self.randomisation is not None else self.seeds


@dataclass(frozen=True)
class _Variance:
    """Of a mean.

    Args:
        value: The variance.
        freedom: Its degrees of freedom.
    """

    value: float
    freedom: float

    def half(self, p: float) -> float:
        """Of the width of an interval that leaves out the truth with probability p."""
        return float(stats.t.isf(p / 2, self.freedom)) * math.sqrt(self.value)

    def p(self, difference: float) -> float:
        """Two-sided."""
        if self.value == 0:
            return float(difference == 0)
        return float(2 * stats.t.sf(abs(difference) / math.sqrt(self.value), self.freedom))


@dataclass(frozen=True)
class _Both:
    """Of a mean, over seeds and over records.

    Args:
        seeds: Of which the chance of single answers is a part.
        records: Likewise.
        shared: That chance: what both variances hold.
    """

    seeds: _Variance
    records: _Variance
    shared: float

    def half(self, p: float) -> float:
        """As with one variance; never less than with either alone."""
        rest = _Variance(max(0.0, self.records.value - self.shared), self.records.freedom)
        return max(math.hypot(self.seeds.half(p), rest.half(p)), self.records.half(p))

    def p(self, difference: float) -> float:
        """Two-sided."""
        if abs(difference) >= self.half(_LEAST):
            return _LEAST if difference else 1.0
        return float(optimize.brentq(lambda p: self.half(p) - abs(difference), _LEAST, 1.0))


@dataclass(frozen=True)
class _Spread:
    """Of a mean: its variances, as far as they are known, and what both hold."""

    seeds: _Variance | None
    records: _Variance | None
    shared: float

    @property
    def both(self) -> _Both | None:
        """Over seeds and records."""
        return _Both(self.seeds, self.records, self.shared) if self.seeds and self.records else None


def _interval(middle: float, of: _Variance | _Both | None, confidence: float) -> Interval | None:
    half = of.half(1 - confidence) if of else 0.0
    return Interval(middle - half, middle + half) if of else None


def sample(
    sums: Array,
    score: Score,
    seeds: Sequence[str],
    drawn: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Sample:
    """A method's runs, from what each came to on each record.

    Args:
        sums: (runs, records, statistics).
        score: Of sums.
        seeds: What tells the runs apart.
        drawn: Whether other seeds make other runs.
        resamples: How often records are drawn.
        seed: Of the draws: samples that are compared need the same.
    """
    records = sums.shape[1]
    means = sums.mean(axis=0)
    return Sample(score(sums.sum(axis=1)), tuple(seeds), drawn, resampled(sums, score, resamples, seed), records, means)


def estimate(one: Sample, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of a method over its seeds, with intervals."""
    means = _means(one)
    over_records = None if means is None else percentiles(means, one.records, confidence)
    return _estimated(one.mean, _spread(one), over_records, one.drawn, confidence)


def difference(one: Sample, other: Sample, confidence: float = CONFIDENCE) -> Estimate:
    """How much more the first has than the second, with intervals."""
    mine, theirs = _means(one), _means(other)
    known = mine is not None and theirs is not None
    over_records = percentiles(mine - theirs, one.records, confidence) if known else None  # type: ignore[operator]
    return _estimated(
        one.mean - other.mean, _spread_of_two(one, other), over_records, one.drawn or other.drawn, confidence
    )


def significance(one: Sample, other: Sample, score: Score, trials: int = RESAMPLES, seed: int = 0) -> Significance:
    """Whether two methods differ.

    Args:
        one: Of one method.
        other: Of another, on the same records.
        score: Of sums.
        trials: Of approximate randomisation.
        seed: Of its draws.
    """
    value, spread = one.mean - other.mean, _spread_of_two(one, other)
    drawn, both = one.drawn or other.drawn, spread.both
    known = one.sums is not None and other.sums is not None
    return Significance(
        bootstrap=bootstrap(one, other),
        randomisation=randomisation(one.sums, other.sums, score, trials, seed) if known else None,  # type: ignore[arg-type]
        seeds=spread.seeds.p(value) if spread.seeds and drawn else None,
        both=both.p(value) if both else None,
        paired_seeds=_paired(one, other),
    )


def bootstrap(one: Sample, other: Sample) -> float | None:
    """The p-value of the paired bootstrap: how often the difference on drawn records is further from the one observed
    than that is from nothing. Two-sided: sacreBLEU's folds the draws before it centres them, which is one-sided."""
    mine, theirs = _means(one), _means(other)
    if mine is None or theirs is None:
        return None
    value = one.mean - other.mean
    return share_as_far(numpy.abs(mine - theirs - value), abs(value))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number (Holm 1979); None is no comparison."""
    order = sorted((p, place) for place, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    least = 0.0
    for rank, (p, place) in enumerate(order):
        least = max(least, min(1.0, p * (len(order) - rank)))
        corrected[place] = least
    return corrected


def corrected(found: Sequence[Significance]) -> list[Significance]:
    """The same of several comparisons, each kind of test corrected for their number."""
    return [
        Significance(bootstrap, randomisation, seeds, both, each.paired_seeds)
        for bootstrap, randomisation, seeds, both, each in zip(
            holm([each.bootstrap for each in found]),
            holm([each.randomisation for each in found]),
            holm([each.seeds for each in found]),
            holm([each.both for each in found]),
            found,
            strict=True,
        )
    ]


def _estimated(
    value: float, spread: _Spread, over_records: Interval | None, drawn: bool, confidence: float
) -> Estimate:
    over_seeds = _interval(value, spread.seeds if drawn else None, confidence)
    return Estimate(value, over_seeds, over_records, _interval(value, spread.both, confidence))


def percentiles(drawn: Array, records: int, confidence: float = CONFIDENCE) -> Interval:
    """Those of the bootstrap, further out for few records, of which the plain ones say too little (Hesterberg 2015).

    Args:
        drawn: What came of each draw, (resamples,).
        records: That were drawn from.
        confidence: Share of other such sets of records whose number lies between them.
    """
    others = max(1, records - 1)
    tail = stats.norm.cdf(-math.sqrt(records / others) * stats.t.ppf((1 + confidence) / 2, others))
    low, high = numpy.quantile(drawn, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _means(one: Sample) -> Array | None:
    """Of the runs, on each draw of records, (resamples,)."""
    return None if one.resampled is None else one.resampled.mean(axis=0)


def _paired(one: Sample, other: Sample) -> bool:
    return one.drawn and other.drawn and len(one.seeds) > 1 and sorted(one.seeds) == sorted(other.seeds)


def _aligned(one: Sample, other: Sample) -> Sample:
    """The difference of runs of the same seed, as if it were a method."""
    order = [other.seeds.index(seed) for seed in one.seeds]
    both_known = one.resampled is not None and other.resampled is not None
    drawn = one.resampled - other.resampled[order] if both_known else None  # type: ignore[operator,index]
    return Sample(one.scores - other.scores[order], one.seeds, True, drawn, one.records)


def _spread(one: Sample) -> _Spread:
    """Of a method's mean."""
    return _Spread(_of_seeds(one), _of_records(one), _shared(one))


def _spread_of_two(one: Sample, other: Sample) -> _Spread:
    """Of the difference of two means."""
    if _paired(one, other):
        return _spread(_aligned(one, other))
    mine, theirs = _means(one), _means(other)
    records = _resampled_variance(mine - theirs, one.records) if mine is not None and theirs is not None else None
    return _Spread(_added(_of_seeds(one), _of_seeds(other)), records, _shared(one) + _shared(other))


def _of_seeds(one: Sample) -> _Variance | None:
    """Of a mean, over seeds; none where there is one."""
    if not one.drawn:
        return _Variance(0.0, math.inf)
    number = len(one.scores)
    return _Variance(float(one.scores.var(ddof=1)) / number, number - 1) if number > 1 else None


def _added(one: _Variance | None, other: _Variance | None) -> _Variance | None:
    """Of the difference of two that know nothing of each other: Welch's, with Satterthwaite's degrees of freedom."""
    if one is None or other is None:
        return None
    total = one.value + other.value
    weighed = one.value**2 / one.freedom + other.value**2 / other.freedom
    return _Variance(total, total**2 / weighed if weighed > 0 else min(one.freedom, other.freedom))


def _of_records(one: Sample) -> _Variance | None:
    means = _means(one)
    return None if means is None else _resampled_variance(means, one.records)


def _resampled_variance(drawn: Array, records: int) -> _Variance:
    """Over records; a bootstrap's variance is too small by a share of one record."""
    others = max(1, records - 1)
    return _Variance(float(drawn.var()) * records / others, others)


def _shared(one: Sample) -> float:
    """What both variances hold: the chance of single answers, which is new with each record and each seed.

    Over records it makes the scores of single runs vary more than that of their mean.
    """
    number = len(one.scores)
    if not one.drawn or one.resampled is None or number < 2:
        return 0.0
    single, mean = one.resampled.var(axis=1).mean(), one.resampled.mean(axis=0).var()
    return max(0.0, float(single - mean)) / (number - 1) * one.records / max(1, one.records - 1)
