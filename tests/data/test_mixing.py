"""Mixing: the draws of `datasets.interleave_datasets`, from rows and from streams alike."""

import time
from collections.abc import Iterator
from itertools import islice

import datasets
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftlab.data.mixing import Mixing, Source, interleave, plan, probabilities
from ftlab.errors import UserError

BY_WEIGHT = Mixing("probability")
TO_THE_END = Mixing("probability", stop="all_exhausted")

mixtures = st.lists(
    st.tuples(st.integers(1, 30), st.floats(0.1, 10), st.integers(1, 3)), min_size=2, max_size=4
)  # size, weight, epochs of each source


def _sources(mixture: list[tuple[int, float, int]]) -> tuple[list[int], list[Source]]:
    return [size for size, _, _ in mixture], [Source("p", weight=w, epochs=e) for _, w, e in mixture]


def test_concatenation_takes_every_row_as_often_as_its_source_has_epochs() -> None:
    indices = plan([2, 0, 3], [Source("a", epochs=2), Source("b"), Source("c")], Mixing(), seed=0)
    assert indices.tolist() == [0, 1, 0, 1, 2, 3, 4]
    assert indices.dtype == numpy.int64


@pytest.mark.parametrize("how", ["concatenate", "probability", "temperature"])
def test_one_source_is_taken_as_it_is(how: str) -> None:
    assert plan([3], [Source("a", weight=7, epochs=2)], Mixing(how), seed=0).tolist() == [0, 1, 2, 0, 1, 2]


@given(mixtures, st.integers(0, 2**32), st.sampled_from(["first_exhausted", "all_exhausted"]))
@settings(max_examples=25)
def test_draws_are_those_of_interleave_datasets(mixture: list, seed: int, stop: str) -> None:
    sizes, sources = _sources(mixture)
    starts = numpy.cumsum(sizes) - sizes
    sets = [
        datasets.Dataset.from_dict({"row": list(range(start, start + size)) * source.epochs})
        for start, size, source in zip(starts, sizes, sources, strict=True)
    ]
    weights = numpy.array([source.weight for source in sources])
    expected = datasets.interleave_datasets(
        sets, probabilities=(weights / weights.sum()).tolist(), seed=seed, stopping_strategy=stop
    )
    assert plan(sizes, sources, Mixing("probability", stop=stop), seed).tolist() == expected["row"][:]


@given(mixtures, st.integers(0, 2**32), st.sampled_from(["concatenate", "probability"]), st.booleans())
@settings(max_examples=100)
def test_streams_are_mixed_like_rows(mixture: list, seed: int, how: str, to_the_end: bool) -> None:
    sizes, sources = _sources(mixture)
    mixing = Mixing(how, stop="all_exhausted" if to_the_end else "first_exhausted")
    starts = numpy.cumsum(sizes) - sizes
    factories = [lambda a=a, n=n: iter(range(a, a + n)) for a, n in zip(starts.tolist(), sizes, strict=True)]
    assert list(interleave(factories, sources, mixing, seed)) == plan(sizes, sources, mixing, seed).tolist()


@given(mixtures, st.integers(0, 2**32), st.sampled_from(["probability", "temperature"]), st.floats(0.2, 50))
@settings(max_examples=100)
def test_no_row_is_lost_or_out_of_range_or_repeated_too_soon(
    mixture: list, seed: int, how: str, temperature: float
) -> None:
    sizes, sources = _sources(mixture)
    epochs = numpy.repeat([source.epochs for source in sources], sizes)
    short = plan(sizes, sources, Mixing(how, max(temperature, 1.0)), seed)
    assert 0 <= short.min() <= short.max() < sum(sizes)
    counts = numpy.bincount(short, minlength=sum(sizes))
    assert (counts <= epochs).all()
    assert short.tolist() == plan(sizes, sources, Mixing(how, max(temperature, 1.0)), seed).tolist()
    whole = plan(sizes, sources, Mixing(how, max(temperature, 1.0), "all_exhausted"), seed)
    assert (numpy.bincount(whole, minlength=sum(sizes)) >= epochs).all()


def test_temperature_evens_out_sizes() -> None:
    sources = [Source("a"), Source("b", weight=2)]
    # (1 * 100)^(1/T) : (2 * 200)^(1/T) is 1 : 4 for T = 1, 1 : 2 for T = 2, 1 : 16 for T = 1/2
    assert probabilities([100, 200], sources, Mixing("temperature", 1.0)) == pytest.approx([1 / 5, 4 / 5])
    assert probabilities([100, 200], sources, Mixing("temperature", 2.0)) == pytest.approx([1 / 3, 2 / 3])
    assert probabilities([100, 200], sources, Mixing("temperature", 0.5)) == pytest.approx([1 / 17, 16 / 17])
    assert probabilities([100, 200], sources, Mixing("temperature", 1e-3)) == pytest.approx([0, 1])
    assert probabilities([100, 200], sources, Mixing("probability", 2.0)) == pytest.approx([1 / 3, 2 / 3])


def test_another_seed_is_another_order() -> None:
    sources = [Source("a"), Source("b")]
    assert plan([50, 50], sources, BY_WEIGHT, 0).tolist() != plan([50, 50], sources, BY_WEIGHT, 1).tolist()


def test_a_stream_is_not_read_ahead() -> None:
    read = []

    def stream(name: str) -> Iterator[str]:
        for number in range(1_000_000):
            read.append((name, number))
            yield f"{name}{number}"

    sources = [Source("a"), Source("b")]
    mixed = interleave([lambda: stream("a"), lambda: stream("b")], sources, BY_WEIGHT, seed=0)
    assert len(list(islice(mixed, 10))) == 10
    assert len(read) <= 12


def test_a_million_rows_are_mixed_within_a_second() -> None:
    sources = [Source("a"), Source("b", weight=2), Source("c", weight=0.5)]
    start = time.process_time()
    assert len(plan([500_000, 900_000, 200_000], sources, TO_THE_END, 0)) >= 1_600_000
    assert time.process_time() - start < 1


def test_a_mixture_that_would_not_end_is_refused() -> None:
    with pytest.raises(UserError, match=r"some 1e\+14 draws.*more weight"):
        plan([10, 10], [Source("a"), Source("b", weight=1e-13)], TO_THE_END, 0)
    assert len(plan([10, 10], [Source("a"), Source("b", weight=1e-13)], BY_WEIGHT, 0)) == 10
    with pytest.raises(UserError, match="some inf draws"):
        plan([10, 20], [Source("a"), Source("b")], Mixing("temperature", 1e-4, "all_exhausted"), 0)


def test_bad_values_are_refused() -> None:
    for weight in [0, -1, float("nan"), float("inf")]:
        with pytest.raises(UserError, match=r"data/a has the weight .*above 0"):
            Source("data/a", weight=weight)
    with pytest.raises(UserError, match="data/a has the limit 0"):
        Source("data/a", limit=0)
    with pytest.raises(UserError, match="data/a has 0 epochs"):
        Source("data/a", epochs=0)
    for temperature in [0, -1, float("nan")]:
        with pytest.raises(UserError, match=r"temperature is .*above 0"):
            Mixing("temperature", temperature)


def test_a_source_without_records_is_not_drawn_from() -> None:
    sources = [Source("a"), Source("b")]
    with pytest.raises(UserError, match="b has no records to draw from"):
        plan([1, 0], sources, BY_WEIGHT, 0)
    with pytest.raises(UserError, match="b has no records to draw from"):
        next(interleave([lambda: [1], lambda: []], sources, BY_WEIGHT, 0))


def test_streams_are_not_mixed_by_temperature() -> None:
    with pytest.raises(UserError, match="temperature needs to know how many records"):
        interleave([lambda: [1], lambda: [2]], [Source("a"), Source("b")], Mixing("temperature"), 0)
