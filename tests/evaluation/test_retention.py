"""What has been forgotten, by hand and by scipy; and intervals that cover what they say they cover."""

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ftlab.evaluation.retention import Judged, Measured, changes, interval, lines

BEFORE = Measured((Judged("a", 2, 3.0), Judged("b", 6, 5.0)))
AFTER = Measured((Judged("a", 2, 7.0), Judged("b", 6, 5.0)))


def test_a_loss_is_a_mean_over_tokens_not_over_documents() -> None:
    found = changes(BEFORE, AFTER)
    assert found["loss_before"] == 1.0  # 8 / 8
    assert found["loss_after"] == 1.5  # 12 / 8, where the mean of documents would be 2.17
    assert found["loss_change"] == 0.5
    assert found["perplexity_before"] == pytest.approx(math.e)
    assert found["perplexity_after"] == pytest.approx(math.exp(1.5))


def test_the_interval_is_over_what_can_be_drawn_of_two_documents() -> None:
    """Both the first: 4 / 2; one of each: 4 / 8; both the second: 0. The first and the last a quarter of the draws."""
    found = changes(BEFORE, AFTER)
    assert (found["loss_change_low"], found["loss_change_high"]) == (0.0, 2.0)
    # t of one degree of freedom at 0.6 is 0.325; times the root of 2, a normal tail of 0.323: inside the middle half
    assert interval([4.0, 0.0], [2.0, 6.0], confidence=0.2) == (0.5, 0.5)


def test_scores_of_answers_change_likewise_and_bleu_has_no_interval() -> None:
    def measured(*scores: float) -> Measured:
        documents = [Judged(str(n), 1, 0.0, "it", {"rougeL": score, "bleu": 0.0}) for n, score in enumerate(scores)]
        return Measured(tuple(documents), {"rougeL": sum(scores) / len(scores), "bleu": 7.0})

    found = changes(measured(100.0, 50.0), measured(0.0, 50.0))
    assert (found["rougeL_before"], found["rougeL_after"], found["rougeL_change"]) == (75.0, 25.0, -50.0)
    assert (found["rougeL_change_low"], found["rougeL_change_high"]) == (-100.0, 0.0)
    assert found["bleu_change"] == 0.0
    assert "bleu_change_low" not in found


def test_the_interval_is_that_of_scipy() -> None:
    generator = numpy.random.default_rng(1)
    tokens = generator.integers(5, 50, 80).astype(float)
    sums = tokens * generator.normal(0.1, 0.3, 80)

    def ratio(a: numpy.ndarray, b: numpy.ndarray, axis: int) -> numpy.ndarray:
        return a.sum(axis) / b.sum(axis)

    expected = stats.bootstrap(
        (sums, tokens), ratio, paired=True, vectorized=True, method="percentile", n_resamples=10_000, rng=2
    ).confidence_interval
    width = expected.high - expected.low
    low, high = interval(sums.tolist(), tokens.tolist())
    assert low == pytest.approx(expected.low, abs=0.03 * width)  # of 10,000 draws an end has some 1.5 %
    assert high == pytest.approx(expected.high, abs=0.03 * width)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Of 100 documents as of a population whose ratio is known; 2.6 standard deviations of 250 studies are 3.6 %."""
    generator = numpy.random.default_rng(3)
    covered = 0
    for study in range(250):
        tokens = generator.integers(10, 100, 100).astype(float)
        sums = tokens * (0.2 + generator.standard_normal(100))
        low, high = interval(sums.tolist(), tokens.tolist(), resamples=400, seed=study)
        covered += low <= 0.2 <= high
    assert covered / 250 == pytest.approx(0.95, abs=0.05)


@given(st.lists(st.tuples(st.floats(-50, 50), st.integers(1, 200)), min_size=2, max_size=20), st.floats(-2, 2))
def test_a_shift_of_every_token_moves_the_interval_by_as_much(documents: list[tuple[float, int]], shift: float) -> None:
    sums, tokens = [s for s, _ in documents], [float(t) for _, t in documents]
    low, high = interval(sums, tokens, resamples=200)
    moved = interval([s + shift * t for s, t in documents], tokens, resamples=200)
    assert moved == pytest.approx((low + shift, high + shift), abs=1e-9)


def test_it_is_read_back_as_it_was_written() -> None:
    measured = Measured((Judged("a", 2, 3.0, "yes", {"rougeL": 1.0}),), {"rougeL": 1.0})
    assert Measured.from_plain(measured.plain()) == measured


def test_lines_hold_both_networks() -> None:
    assert next(lines(BEFORE, AFTER)) == {"source": "a", "tokens": 2, "nats_before": 3.0, "nats_after": 7.0}
