"""The comparison itself: what each method came to, how it differs from the baseline, and what may be said of that."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftlab.errors import UserError
from ftlab.evaluation import statistics
from ftlab.evaluation.resampling import RESAMPLES
from ftlab.evaluation.statistics import Estimate, Interval, Significance
from ftlab.evaluation.sums import score_of_sums
from ftlab.progress import Progress
from ftlab.reports.compare.caveats import caveats
from ftlab.reports.compare.costs import Cost, costs, equal
from ftlab.reports.compare.forgetting import forgetting
from ftlab.reports.compare.groups import Group, JudgedRun, into_groups
from ftlab.reports.compare.judged import (
    find_metric,
    judged,
    refuse_others,
    refuse_unequal_tuning,
    refuse_unfinished,
)
from ftlab.reports.compare.metric import Metric, command
from ftlab.reports.compare.origin import origin


@dataclass(frozen=True)
class Options:
    """What is asked of a comparison.

    Args:
        baseline: Name of the method that others are compared with, or the directory of one of its runs; by default
            the first.
        metric: Of test records, such as rougeL, or with its prefix, such as val_loss; by default rougeL where all
            runs have it.
        price: Dollars of one device for an hour.
        quality: Validation loss to which time is taken.
        tuned: Keys of which each method has the best value of those that were tried.
        allowed: What may differ, of ALLOWED.
        skip_unscored: Leave out runs that have no scores or have not come to their end.
        confidence: Of intervals; what lies above it is the level at which methods are told apart.
        resamples: Draws of records.
    """

    baseline: str | None = None
    metric: str | None = None
    price: float | None = None
    quality: float | None = None
    tuned: Sequence[str] = ()
    allowed: Sequence[str] = ()
    skip_unscored: bool = False
    confidence: float = statistics.CONFIDENCE
    resamples: int = RESAMPLES


@dataclass(frozen=True)
class Versus:
    """A method beside the baseline.

    Args:
        difference: The method's score less the baseline's.
        tests: p-values.
        corrected: The same, corrected for the number of comparisons (Holm).
        p: By which the verdict was found, corrected: over seeds and records, or over what is known. None where nothing
            can be tested.
        verdict: better, worse, or cannot be told apart.
        sentence: The same in words.
    """

    difference: Estimate
    tests: Significance
    corrected: Significance
    p: float | None
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Row:
    """A method.

    Args:
        name: By which it is called.
        runs: Their directories.
        seeds: Of each run.
        scores: Of each run.
        drawn: Whether another seed would make another run.
        trained: Whether it has anything to learn.
        score: The mean over seeds.
        versus: Beside the baseline; None of the baseline.
        cost: What it cost.
        tuned: Values that were chosen.
        tried: Among how many.
        forgetting: By retention set, how much its loss has risen, in nats a token; means over seeds.
        forgetting_over_seeds: Their intervals, where there are two seeds or more.
    """

    name: str
    runs: tuple[str, ...]
    seeds: tuple[str, ...]
    scores: tuple[float, ...]
    drawn: bool
    trained: bool
    score: Estimate
    versus: Versus | None
    cost: Cost
    tuned: Mapping[str, Any]
    tried: int
    forgetting: Mapping[str, float]
    forgetting_over_seeds: Mapping[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """Methods side by side.

    Args:
        metric: Its name in scores.json.
        lower_is_better: Of the metric.
        records: That were judged; None where single records have no score.
        confidence: Of intervals.
        resamples: Draws of records.
        baseline: Name of a row.
        quality: Validation loss to which time was taken; None where there was none.
        price: Dollars of one device for an hour, where given.
        rows: A method each, in the order in which they were named.
        equal: Of steps, tokens, time and memory what was the same for all methods that are trained.
        notes: What a reader must know beside the table.
        origin: When, by which code, where and with what the runs were made.
    """

    metric: str
    lower_is_better: bool
    records: int | None
    confidence: float
    resamples: int
    baseline: str
    quality: float | None
    price: float | None
    rows: tuple[Row, ...]
    equal: tuple[str, ...]
    notes: tuple[str, ...]
    origin: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)


def compare(runs: Sequence[JudgedRun], options: Options) -> tuple[Comparison, list[Group]]:
    """Compares methods.

    Returns:
        What came of it, and the methods with their runs, in the order of its rows.

    Raises:
        UserError: They cannot be compared.
    """
    _refuse_options(options)
    runs, notes = _finished(runs, options)
    groups = _with_scores(into_groups(runs, options.tuned), options, notes)
    if len(groups) < 2:
        raise UserError(
            f"{groups[0].name} is the only method ({len(groups[0].runs)} runs that differ in nothing but seeds): "
            "there is nothing to compare it with"
        )
    metric = find_metric(options.metric, groups)
    refuse_unequal_tuning(groups, options.allowed)
    notes += refuse_others(groups, metric, options.allowed)
    base = _baseline(groups, options.baseline)
    samples = judged(groups, metric, options.resamples)
    versus = _versus(groups, samples, base, metric, options)
    found, quality = costs(groups, options.price, options.quality)
    forgotten, said = forgetting(groups, options.confidence)
    notes += said
    rows = [
        Row(
            name=group.name,
            runs=tuple(str(run) for run in group.runs),
            seeds=group.seeds,
            scores=tuple(sample.scores.tolist()),
            drawn=group.drawn,
            trained=group.trained,
            score=statistics.estimate(sample, options.confidence),
            versus=beside,
            cost=cost,
            tuned=dict(group.tuned),
            tried=group.tried,
            forgetting={name: estimate.value for name, estimate in lost.items()},
            forgetting_over_seeds={name: its.over_seeds for name, its in lost.items() if its.over_seeds},
        )
        for group, sample, beside, cost, lost in zip(groups, samples, versus, found, forgotten, strict=True)
    ]
    comparison = Comparison(
        metric=metric.key,
        lower_is_better=metric.lower_is_better,
        records=samples[0].records or None,
        confidence=options.confidence,
        resamples=options.resamples,
        baseline=groups[base].name,
        quality=quality,
        price=options.price,
        rows=tuple(rows),
        equal=tuple(equal(groups, found)),
        notes=(*notes, *caveats(groups, metric, samples)),
        origin=origin(groups),
    )
    return comparison, groups


def unscored(runs: Sequence[JudgedRun], options: Options) -> list[JudgedRun]:
    """The runs of what would be compared that have no scores yet: of tuned values those of the best alone.

    Raises:
        UserError: A run has not come to its end, unless such are to be left out.
    """
    runs, _ = _finished(runs, options)
    chosen = (run for group in into_groups(runs, options.tuned) for run in group.runs)
    return [run for run in chosen if not _has_scores(run, options)]


def _has_scores(run: JudgedRun, options: Options) -> bool:
    return any(key.startswith(Metric.of_key(options.metric or "").beginning) for key in run.scores)


def _refuse_options(options: Options) -> None:
    if not 0.5 <= options.confidence < 1:
        raise UserError(f"--confidence is {options.confidence}: give a share such as 0.95")
    if options.resamples < 100:
        raise UserError(f"--resamples is {options.resamples}: give 100 or more")
    if options.price is not None and not 0 <= options.price < math.inf:
        raise UserError(f"--price is {options.price}: give dollars of one device for an hour")
    if options.quality is not None and not math.isfinite(options.quality):
        raise UserError(f"--quality is {options.quality}: give a validation loss")


def _finished(runs: Sequence[JudgedRun], options: Options) -> tuple[list[JudgedRun], list[str]]:
    if not options.skip_unscored:
        for run in runs:
            refuse_unfinished(run)
        return list(runs), []
    there = [run for run in runs if run.record.get("state") == "finished" and run.fingerprints]
    if not there:
        raise UserError(f"none of the {len(runs)} runs has come to its end: let ftlab fit finish them")
    left = [str(run) for run in runs if run not in there]
    return there, [f"left out, as they have not come to their end: {', '.join(left)}"] if left else []


def _with_scores(groups: list[Group], options: Options, notes: list[str]) -> list[Group]:
    """The groups, without runs that have no scores of the split where such are to be left out."""
    if not options.skip_unscored:
        return groups
    metric = Metric.of_key(options.metric or "")
    what = metric.key if metric.of_retention else f"{metric.prefix}_… scores"
    left: list[str] = []
    kept = []
    for group in groups:
        scored = tuple(run for run in group.runs if _has_scores(run, options))
        left += [str(run) for run in group.runs if run not in scored]
        if scored:
            kept.append(dataclasses.replace(group, runs=scored))
    if not kept:
        raise UserError(f"no run has {what}: {command(groups[0].first, metric.beginning)} makes those of the first")
    if left:
        notes.append(f"left out, as they have no {what}: {', '.join(left)}")
    return kept


def _baseline(groups: Sequence[Group], name: str | None) -> int:
    if name is None:
        return 0
    for number, group in enumerate(groups):
        directories = [run.run.directory.resolve() for run in group.runs]
        if name == group.name or Path(name).resolve() in directories:
            return number
    inside = [
        number
        for number, group in enumerate(groups)
        if any(Path(name).resolve() in run.run.directory.resolve().parents for run in group.runs)
    ]
    if len(inside) == 1 and Path(name).is_dir():
        return inside[0]
    raise UserError(
        f"--baseline {name}: there is no such method; there are {'; '.join(group.name for group in groups)}"
    )


def _versus(
    groups: Sequence[Group],
    samples: Sequence[statistics.Sample],
    base: int,
    metric: Metric,
    options: Options,
) -> list[Versus | None]:
    others = [number for number in range(len(groups)) if number != base]
    score = score_of_sums(metric.name)
    found = []
    with Progress("testing differences", "methods", len(others)) as bar:
        for number in others:
            found.append(statistics.significance(samples[number], samples[base], score, options.resamples))
            bar.advance()
    corrected = statistics.corrected(found)
    deciding = statistics.holm([each.deciding for each in found])
    result: list[Versus | None] = [None] * len(groups)
    for number, tests, its, p in zip(others, found, corrected, deciding, strict=True):
        difference = statistics.difference(samples[number], samples[base], options.confidence)
        verdict = _verdict(difference.value, p, metric.lower_is_better, options.confidence)
        chance = None if p is None else in_words(p, options.confidence)
        sentence = _sentence(groups[number].name, groups[base].name, difference, chance, verdict, metric)
        if p is not None and tests.both is None and tests.randomisation is not None:
            sentence += "; of other seeds this says nothing"
        result[number] = Versus(difference, tests, its, p, verdict, sentence)
    return result


APART = "cannot be told apart"
_MOST_DIGITS = 9


def _verdict(difference: float, p: float | None, lower_is_better: bool, confidence: float) -> str:
    if p is None or p > 1 - confidence:
        return APART
    return "better" if (difference < 0) == lower_is_better else "worse"


def _sentence(name: str, baseline: str, difference: Estimate, p: str | None, verdict: str, metric: Metric) -> str:
    digits = metric.digits
    apart = f"{difference.value:+.{digits}f}"
    if difference.widest:
        apart += f" [{difference.widest.low:+.{digits}f}, {difference.widest.high:+.{digits}f}]"
    if p is None:
        return f"{name} and {baseline}: {metric.name} {apart}, of which one seed cannot tell whether it is chance"
    if verdict == APART:
        return f"{name} and {baseline} cannot be told apart by {metric.name}: {apart}, p {p}"
    return f"{name} is {verdict} than {baseline}: {metric.name} {apart}, p {p}"


def in_words(p: float, confidence: float = statistics.CONFIDENCE) -> str:
    """A p-value, to what is known of it, and to so many digits that it is not taken for the level beside which it lies.

    Args:
        p: It.
        confidence: Of intervals; the level is what lies above it.
    """
    level = round(1 - confidence, 12)
    if p < (least := min(0.001, level)):
        return f"< {least:g}"
    digits = 3 if p < 0.1 else 2
    while digits < _MOST_DIGITS and p != level == round(p, digits):
        digits += 1
    return f"{p:.{digits}f}"
