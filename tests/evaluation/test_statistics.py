"""Intervals and tests: against hand-computed cases, scipy and sacrebleu, and by simulated studies of known truth."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest, _compute_p_value
from scipy import stats

from ftlab.evaluation.resampling import Array, randomisation, resampled
from ftlab.evaluation.statistics import (
    Interval,
    Sample,
    bootstrap,
    difference,
    estimate,
    holm,
    percentiles,
    sample,
    significance,
)
from ftlab.evaluation.sums import score_of_sums, sums

STUDIES = 1000


def mean(summed: Array) -> Array:
    return summed[..., 0] / summed[..., 1]


def counted(scores: Array) -> Array:
    """Scores, (…), as statistics of a mean, (…, 2)."""
    return numpy.stack([scores, numpy.ones_like(scores)], axis=-1)


def of_scores(scores: Sequence[Sequence[float]], **options: object) -> Sample:
    """A method of the scores of runs on records."""
    table = counted(numpy.array(scores, dtype=float))
    seeds = [str(number) for number in range(len(scores))]
    return sample(table, mean, **({"seeds": seeds} | options))  # type: ignore[arg-type]


# ---------------------------------------------------------------- over records


def test_drawn_records_come_as_often_as_chance_has_them() -> None:
    scores = [1.0, 2.0, 6.0]
    exact = [sum(draw) / 3 for draw in itertools.product(scores, repeat=3)]
    found = resampled(counted(numpy.array([scores])), mean, 100_000)[0]
    for value in sorted(set(exact)):
        share = sum(math.isclose(value, other) for other in exact) / len(exact)
        assert numpy.isclose(found, value).mean() == pytest.approx(share, abs=0.005)


def test_all_runs_are_judged_on_the_same_draws() -> None:
    scores = numpy.random.default_rng(0).normal(size=(2, 40))
    scores[1] = scores[0] + 3
    one, other = resampled(counted(scores), mean, 500)
    assert other - one == pytest.approx(numpy.full(500, 3.0))
    assert resampled(counted(scores[:1]), mean, 500)[0] == pytest.approx(one)


def test_draws_in_portions_are_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftlab.evaluation.resampling._AT_ONCE", 70)
    scores = numpy.random.default_rng(0).normal(size=(1, 20))
    found = resampled(counted(scores), mean, 1001)
    assert found.shape == (1, 1001)
    assert found.std() == pytest.approx(scores.std() / math.sqrt(20), rel=0.1)
    assert 0 < randomisation(counted(scores[0]), counted(scores[0] + 0.1), mean, 1001) <= 1


def test_approximate_randomisation_is_the_exact_test() -> None:
    one, other = numpy.array([3.0, 5.0, 1.0, 8.0, 4.0]), numpy.array([2.0, 1.0, 2.0, 5.0, 4.5])
    apart = one - other
    observed = abs(apart.sum())
    swapped = [abs(numpy.dot(signs, apart)) for signs in itertools.product([1, -1], repeat=5)]
    exact = sum(value >= observed - 1e-9 for value in swapped) / len(swapped)
    assert exact == 12 / 32  # by hand: 9.5 less twice one of 0, 1, 1, 0.5, 1.5 and 1.5, and the negatives of these
    assert randomisation(counted(one), counted(other), mean, 50_000) == pytest.approx(exact, abs=0.005)


def test_differences_that_are_equal_count_as_such() -> None:
    """Of three records on which one method alone is right, all must change sides or none: a quarter of the time."""
    one = numpy.array([100.0, 100, 100] + [100.0, 0] * 48)
    other = numpy.array([0.0, 0, 0] + [100.0, 0] * 48)
    assert randomisation(counted(one), counted(other), mean, 20_000) == pytest.approx(0.25, abs=0.01)


def test_the_paired_bootstrap_is_counted_by_hand() -> None:
    apart = [2.0, -1.0, 3.0]
    draws = [sum(draw) / 3 for draw in itertools.product(apart, repeat=3)]
    observed = sum(apart) / 3
    exact = sum(abs(value - observed) >= observed - 1e-9 for value in draws) / len(draws)
    one, other = of_scores([[5.0, 1.0, 4.0]], resamples=50_000), of_scores([[3.0, 2.0, 1.0]], resamples=50_000)
    assert bootstrap(one, other) == pytest.approx(exact, abs=0.006)


def test_the_interval_over_records_is_the_exact_bootstraps_expanded() -> None:
    scores = [1.0, 4.0, 4.0, 9.0]
    draws = sorted(sum(draw) / 4 for draw in itertools.product(scores, repeat=4))
    found = estimate(of_scores([scores], resamples=100_000), confidence=0.8).over_records
    assert found is not None
    tail = 0.0293  # by hand: t of 3 degrees of freedom at 0.9 is 1.638, times the root of 4/3, of which the normal tail
    assert (found.low, found.high) == (numpy.quantile(draws, tail), numpy.quantile(draws, 1 - tail)) == (1.75, 7.75)


def test_methods_that_answer_alike_do_not_differ() -> None:
    same = of_scores([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
    found = significance(same, same, mean)
    assert (found.bootstrap, found.randomisation, found.seeds, found.both) == (1, 1, 1, 1)


WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "by", "its", "old", "red", "house"]


def texts(seed: int, number: int, wrong: float) -> tuple[list[str], list[str]]:
    """References, and predictions of which a share of the words is wrong."""
    generator = numpy.random.default_rng(seed)
    references = [list(generator.choice(WORDS, 12)) for _ in range(number)]
    answers = [[str(generator.choice(WORDS)) if generator.random() < wrong else word for word in r] for r in references]
    return [" ".join(r) for r in references], [" ".join(a) for a in answers]


@pytest.mark.parametrize("metric", ["bleu", "chrf", "rougeL"])
def test_a_score_of_sums_is_the_score_of_those_records(metric: str) -> None:
    from ftlab.evaluation.text_metrics import resolve_metrics, score_texts

    references, answers = texts(0, 30, 0.3)
    alternatives = [[reference] if n % 3 else [reference, "a second one"] for n, reference in enumerate(references)]
    scorer = resolve_metrics([metric])
    scores = score_texts(answers, alternatives, scorer)
    rows = [
        {"references": its, "prediction": answer, "scores": own}
        for its, answer, own in zip(alternatives, answers, scores.records, strict=True)
    ]
    table = sums(metric, rows)
    chosen = numpy.random.default_rng(1).integers(30, size=30)
    again = score_texts([answers[n] for n in chosen], [alternatives[n] for n in chosen], scorer)
    score = score_of_sums(metric)
    assert float(score(table.sum(axis=0))) == pytest.approx(scores.corpus[metric])
    assert float(score(table[chosen].sum(axis=0))) == pytest.approx(again.corpus[metric])


def test_approximate_randomisation_of_bleu_is_sacrebleus() -> None:
    references, one = texts(0, 60, 0.30)
    other = texts(0, 60, 0.34)[1]
    test = PairedTest([("one", one), ("other", other)], {"BLEU": BLEU()}, [references], "ar", n_samples=2000)
    expected = test()[1]["BLEU"][1].p_value
    rows = [
        [{"references": [its], "prediction": answer} for its, answer in zip(references, answers, strict=True)]
        for answers in (one, other)
    ]
    found = randomisation(sums("bleu", rows[0]), sums("bleu", rows[1]), score_of_sums("bleu"), 2000)
    assert 0.02 < expected < 0.9
    assert found == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_of_several_seeds_randomisation_takes_the_score_of_all_in_one_corpus(metric: str) -> None:
    references, one = texts(0, 60, 0.30)
    other = texts(0, 60, 0.40)[1]
    tables = [
        sums(metric, [{"references": [its], "prediction": answer} for its, answer in zip(said, answers, strict=True)])
        for said, answers in ((references, one), (references, other), (references * 2, one + other))
    ]
    score = score_of_sums(metric)
    found = sample(numpy.stack(tables[:2]), score, ["1", "2"], resamples=100)
    assert found.sums is not None
    assert float(score(found.sums.sum(axis=0))) == pytest.approx(float(score(tables[2].sum(axis=0))))
    assert float(score(found.sums.sum(axis=0))) == pytest.approx(found.mean, rel=0.01)


# ---------------------------------------------------------------- over seeds


ONE, OTHER = [71.2, 70.1, 72.5, 71.9], [69.0, 70.3, 70.9, 70.0]


def of_runs(scores: Sequence[float], seeds: Sequence[str] | None = None, drawn: bool = True) -> Sample:
    return Sample(numpy.array(scores), tuple(seeds or map(str, range(len(scores)))), drawn)


def test_runs_of_the_same_seeds_are_paired() -> None:
    expected = stats.ttest_rel(ONE, OTHER)
    order = [2, 0, 3, 1]
    other = of_runs([OTHER[n] for n in order], [str(n) for n in order])
    assert significance(of_runs(ONE), other, mean).seeds == pytest.approx(expected.pvalue)
    found, interval = difference(of_runs(ONE), other), expected.confidence_interval(0.95)
    assert found.over_seeds is not None
    assert (found.over_seeds.low, found.over_seeds.high) == pytest.approx((interval.low, interval.high))


def test_runs_of_other_seeds_are_welchs() -> None:
    other = of_runs(OTHER[:3], "abc")
    expected = stats.ttest_ind(ONE, OTHER[:3], equal_var=False)
    found = significance(of_runs(ONE), other, mean)
    assert found.seeds == pytest.approx(expected.pvalue)
    assert not found.paired_seeds


def test_beside_a_method_without_chance_the_runs_of_the_other_count() -> None:
    found = significance(of_runs(ONE), of_runs([70.0], drawn=False), mean)
    assert found.seeds == pytest.approx(stats.ttest_1samp(ONE, 70.0).pvalue)


def test_the_mean_over_seeds_has_students_interval() -> None:
    expected = stats.ttest_1samp(ONE, 0).confidence_interval(0.95)
    found = estimate(of_runs(ONE))
    assert found.over_seeds is not None
    assert (found.over_seeds.low, found.over_seeds.high) == pytest.approx((expected.low, expected.high))
    # by hand: mean 71.425, standard deviation 1.0308, t 3.1824 with 3 degrees of freedom
    assert found.over_seeds.low == pytest.approx(71.425 - 3.1824 * 1.0308 / 2, abs=1e-3)
    assert found.over_records is None
    assert found.over_both is None


def test_one_seed_says_nothing_of_others() -> None:
    one, other = of_scores([[1.0, 2.0, 3.0, 5.0]]), of_scores([[1.0, 1.0, 2.0, 2.0]])
    found, tests = estimate(one), significance(one, other, mean)
    assert (found.over_seeds, found.over_both) == (None, None)
    assert found.over_records is not None
    assert (tests.seeds, tests.both) == (None, None)
    assert tests.deciding == tests.randomisation


# ---------------------------------------------------------------- over both


def test_two_records_on_which_methods_differ_tell_nothing() -> None:
    """Variances would have it a difference; that both fall to the same side is a matter of two throws of a coin."""
    rows = numpy.tile(numpy.linspace(0, 100, 40), (3, 1))
    other = rows.copy()
    other[:, 3:5] += [[40.0, 41], [41, 40], [40, 40]]
    found = significance(of_scores(other.tolist()), of_scores(rows.tolist()), mean)
    assert found.both is not None
    assert found.both < 0.25
    assert found.randomisation == pytest.approx(0.5, abs=0.02)
    assert found.deciding == found.randomisation


def test_over_both_is_the_quasi_f_of_an_analysis_of_variance() -> None:
    scores = crossed(numpy.random.default_rng(0), 4, 60, seed=2, record=5, single=6)[0]
    seeds, records = scores.shape
    of_seeds, of_records = scores.mean(axis=1), scores.mean(axis=0)
    rest = scores - of_seeds[:, None] - of_records[None] + scores.mean()
    squares = {
        "seeds": records * of_seeds.var(ddof=1),
        "records": seeds * of_records.var(ddof=1),
        "rest": (rest**2).sum() / ((seeds - 1) * (records - 1)),
    }
    of_both = [squares["seeds"], squares["records"] - squares["rest"]]
    sides = [
        stats.t.ppf(0.975, freedom) * math.sqrt(square / (seeds * records))
        for square, freedom in zip(of_both, (seeds - 1, records - 1), strict=True)
    ]
    found = estimate(of_scores(scores.tolist(), resamples=100_000)).over_both
    assert found is not None
    assert found.high - found.low == pytest.approx(2 * math.hypot(*sides), rel=0.02)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 5), st.booleans(), st.floats(-3, 3))
def test_a_p_value_is_below_the_level_where_the_interval_leaves_out_zero(
    seed: int, runs: int, paired: bool, apart: float
) -> None:
    generator = numpy.random.default_rng(seed)
    one, other = (counted(table) for table in crossed(generator, runs, 30, seed=1, record=3, single=3))
    seeds = [str(n) for n in range(runs)]
    mine = sample(one + numpy.array([apart, 0]), mean, seeds, resamples=200)
    theirs = sample(other, mean, seeds if paired else [f"other {n}" for n in seeds], resamples=200)
    found, p = difference(mine, theirs), significance(mine, theirs, mean, 200).both
    assert found.over_both is not None
    assert p is not None
    assert (p <= 0.05) == (not found.over_both.low < 0 < found.over_both.high)
    turned = difference(theirs, mine)
    assert turned.over_both is not None
    assert turned.over_both.low == pytest.approx(-found.over_both.high)
    assert significance(theirs, mine, mean, 200).both == pytest.approx(p)


def test_holms_correction() -> None:
    # by hand: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which may not be less than the one before
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


# ---------------------------------------------------------------- simulated studies


def crossed(
    generator: numpy.random.Generator,
    runs: int,
    records: int,
    seed: float,
    record: float,
    single: float,
    methods: int = 2,
    own: float = 2.0,
) -> Array:
    """Scores, (methods, runs, records), of methods that are equally good: 70.

    Args:
        generator: Of the draws.
        runs: Of each method.
        records: How many.
        seed: Standard deviation among seeds.
        record: Among records.
        single: Among answers of different seeds to one record.
        methods: How many.
        own: Standard deviation of how one method finds a record harder than another does.
    """
    hard = generator.normal(0, record, records) + generator.normal(0, own, (methods, 1, records))
    answers = generator.normal(0, single, (methods, runs, records))
    return 70 + hard + generator.normal(0, seed, (methods, runs, 1)) + answers


def studies(number: int, runs: int, records: int, resamples: int = 300, **spread: float) -> list[list[Sample]]:
    """Of each study a sample of each of its methods; the draws of records are the same in all."""
    generator = numpy.random.default_rng(number)
    methods = int(spread.pop("methods", 2))
    tables = numpy.stack([crossed(generator, runs, records, methods=methods, **spread) for _ in range(STUDIES)])
    drawn = resampled(counted(tables.reshape(-1, records)), mean, resamples).reshape(STUDIES, methods, runs, resamples)
    seeds = tuple(str(n) for n in range(runs))
    return [
        [
            Sample(table.mean(axis=1), seeds, True, again, records, counted(table).mean(axis=0))
            for table, again in zip(study, its, strict=True)
        ]
        for study, its in zip(tables, drawn, strict=True)
    ]


def holds(interval: Interval | None, truth: float) -> bool:
    assert interval is not None
    return interval.low <= truth <= interval.high


ONE_SEED = {"runs": 1, "records": 100, "seed": 0.0, "record": 10.0, "single": 6.0}
SPREADS = {
    "seeds differ little": {"runs": 5, "records": 100, "seed": 0.3, "record": 10.0, "single": 6.0},
    "seeds differ much": {"runs": 5, "records": 100, "seed": 2.0, "record": 10.0, "single": 6.0},
    "three seeds": {"runs": 3, "records": 100, "seed": 1.0, "record": 10.0, "single": 6.0},
    "two seeds": {"runs": 2, "records": 100, "seed": 1.0, "record": 10.0, "single": 6.0},
}


@pytest.mark.parametrize(
    ("spread", "paired"), [*((name, True) for name in SPREADS), ("two seeds", False), ("seeds differ much", False)]
)
def test_equal_methods_are_told_apart_as_seldom_as_is_said(spread: str, paired: bool) -> None:
    alarms = 0
    for one, other in studies(1, **SPREADS[spread]):  # type: ignore[arg-type]
        apart = other if paired else replace(other, seeds=tuple(f"other {seed}" for seed in other.seeds))
        alarms += not holds(difference(one, apart).over_both, 0)
    assert alarms <= 0.06 * STUDIES


def test_on_the_same_records_seeds_are_told_apart_as_seldom_as_is_said() -> None:
    found = [difference(*study).over_seeds for study in studies(7, 4, 50, seed=1.0, record=10.0, single=6.0, own=0.0)]
    assert sum(not holds(interval, 0) for interval in found) <= 0.06 * STUDIES


def test_tests_over_records_hold_their_level_for_networks_that_stay() -> None:
    alarms = {"bootstrap": 0, "randomisation": 0, "sacrebleu": 0}
    for one, other in studies(2, resamples=1000, **ONE_SEED):  # type: ignore[arg-type]
        assert one.sums is not None
        assert other.sums is not None
        p = bootstrap(one, other)
        assert p is not None
        alarms["bootstrap"] += p <= 0.05
        alarms["randomisation"] += randomisation(one.sums, other.sums, mean, 400) <= 0.05
        assert one.resampled is not None
        assert other.resampled is not None
        folded = abs(one.resampled[0] - other.resampled[0])
        alarms["sacrebleu"] += _compute_p_value(folded - folded.mean(), abs(one.mean - other.mean)) <= 0.05
    assert alarms["bootstrap"] <= 0.06 * STUDIES
    assert alarms["randomisation"] <= 0.06 * STUDIES
    assert alarms["sacrebleu"] > 0.09 * STUDIES  # why its way of counting is not taken


def test_records_alone_would_find_differences_that_are_the_seeds() -> None:
    """Why methods are told apart over both."""
    alarms = sum((bootstrap(*study) or 0) <= 0.05 for study in studies(3, **SPREADS["seeds differ much"]))  # type: ignore[arg-type]
    assert alarms > STUDIES / 3


def test_with_several_comparisons_one_false_alarm_in_any_is_as_seldom() -> None:
    alarms = 0
    for study in studies(4, methods=4, **SPREADS["seeds differ much"]):  # type: ignore[arg-type]
        # the least of three p-values is below a third of the level where this interval leaves out nothing
        found = [difference(one, study[0], 1 - 0.05 / 3).over_both for one in study[1:]]
        alarms += not all(holds(interval, 0) for interval in found)
    assert alarms <= 0.06 * STUDIES


@pytest.mark.parametrize("over", ["seeds", "records", "both"])
def test_intervals_hold_the_truth_as_often_as_they_say(over: str) -> None:
    """Other trainings on these records; these networks on other records; other trainings on other records."""
    spread = {
        "seeds": {"seed": 1.0, "record": 0.0, "single": 6.0, "own": 0.0},
        "records": {"seed": 0.0, "record": 10.0, "single": 6.0},
        "both": {"seed": 2.0, "record": 10.0, "single": 6.0},
    }[over]
    runs = 1 if over == "records" else 5
    held = 0
    for study in studies(5, runs=runs, records=100, **spread):
        for one in study:
            held += holds(getattr(estimate(one), f"over_{over}"), 70)
    assert held / (2 * STUDIES) == pytest.approx(0.95, abs=0.015)


def test_intervals_of_a_ratio_hold_the_truth() -> None:
    """A score of a corpus that is no mean of its records: right tokens over tokens, of records of all lengths."""
    generator = numpy.random.default_rng(6)
    tokens = generator.integers(5, 40, (STUDIES, 150)).astype(float)
    hard = generator.beta(4, 2, (STUDIES, 150))  # 2/3 on average, whatever the length
    table = numpy.stack([tokens * hard, tokens], axis=-1)
    intervals = [percentiles(drawn, 150) for drawn in resampled(table, mean, 400)]
    held = sum(holds(interval, 2 / 3) for interval in intervals)
    assert held / STUDIES == pytest.approx(0.95, abs=0.015)
