"""In which order the records of several sources come: one source after the other, or drawn by weight.

Draws are those of `datasets.interleave_datasets` with the same probabilities, seed and stopping strategy, so that a
mixture can be checked against it, and come out the same from rows at hand (`plan`) and from streams (`interleave`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal, TypeVar

import numpy

from ftlab.data.readers import SampleBy
from ftlab.errors import UserError

T = TypeVar("T")

_BLOCK = 1000  # draws at a time, as in `datasets`: other blocks would be other draws
_MOST_DRAWS = 1e8  # of which the indices take 0.8 GB


@dataclass(frozen=True)
class Source:
    """Where records come from, and how much of them.

    Args:
        path: A file, a glob, a directory, a set saved by `datasets`, a URL, or `owner/name[:subset]` on the hub.
        weight: How often it is drawn from, against the other sources' weights.
        limit: Only the first so many records of each split.
        epochs: How often its records come in one pass over the data.
        prompt: As data.prompt, for this source.
        response: As data.response, for this source.
        format: As data.format, for this source.
        function: As data.function, for this source.
        sample_by: As data.sample_by, for this source.
    """

    path: str
    weight: float = 1.0
    limit: int | None = None
    epochs: int = 1
    prompt: str | None = None
    response: str | None = None
    format: str | None = None
    function: str | None = None
    sample_by: SampleBy | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise UserError(
                f"data.sources: {self.path} has the weight {self.weight}; give one above 0, or leave the source out"
            )
        if self.limit is not None and self.limit < 1:
            raise UserError(f"data.sources: {self.path} has the limit {self.limit}; give 1 or more, or leave it out")
        if self.epochs < 1:
            raise UserError(
                f"data.sources: {self.path} has {self.epochs} epochs; give 1 or more, or leave the source out"
            )


@dataclass(frozen=True)
class Mixing:
    """How the records of several sources are mixed.

    Args:
        how: "concatenate" takes all records, one source after the other; "probability" draws from source i by its
            weight w_i; "temperature" by (w_i * n_i)^(1/T), where n_i is the number of its records (T5, Raffel et al.
            2020, arXiv 1910.10683, section 3.5.2; mT5, Xue et al. 2021, arXiv 2010.11934, whose alpha is 1/T).
        temperature: T. 1 draws in proportion to size, a large T from all alike.
        stop: When a drawn pass ends: "first_exhausted" as soon as one source has no record left, so that none comes
            twice; "all_exhausted" when every record of every source has come, with shorter sources begun again. Every
            pass draws the same records: with "first_exhausted" the tails of larger sources are never trained on.
    """

    how: Literal["concatenate", "probability", "temperature"] = "concatenate"
    temperature: float = 1.0
    stop: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"data.mixing: the temperature is {self.temperature}; give a number above 0")


def plan(sizes: Sequence[int], sources: Sequence[Source], mixing: Mixing, seed: int) -> numpy.ndarray:
    """Says which rows come in one pass, and in which order.

    Args:
        sizes: How many rows each source has.
        sources: The sources.
        mixing: How they are mixed.
        seed: Seed of the draws.

    Returns:
        Indices (rows,), int64, into the concatenation of the sources' rows.

    Raises:
        UserError: A source that is to be drawn from has no rows.
    """
    counts = numpy.asarray(sizes, dtype=numpy.int64)
    lengths = counts * [source.epochs for source in sources]
    offsets = numpy.cumsum(counts) - counts
    if mixing.how == "concatenate" or len(sources) == 1:
        parts = [numpy.tile(numpy.arange(count), source.epochs) for count, source in zip(counts, sources, strict=True)]
        return numpy.concatenate([part + offset for part, offset in zip(parts, offsets, strict=True)])
    for count, source in zip(counts, sources, strict=True):
        if not count:
            raise _nothing_to_draw(source)
    chances = probabilities(sizes, sources, mixing)
    draws = _draws(lengths, chances, mixing.stop, seed)
    indices = numpy.empty(len(draws), dtype=numpy.int64)
    for number, (count, offset) in enumerate(zip(counts, offsets, strict=True)):
        places = numpy.flatnonzero(draws == number)
        indices[places] = numpy.arange(len(places)) % count + offset
    return indices


def probabilities(sizes: Sequence[int], sources: Sequence[Source], mixing: Mixing) -> numpy.ndarray:
    """The chance of each source to be drawn from next: (sources,), sum 1."""
    chances = numpy.array([source.weight for source in sources])
    if mixing.how == "temperature":
        records = numpy.array(sizes) * [source.epochs for source in sources]
        powers = numpy.log(chances * records) / mixing.temperature
        chances = numpy.exp(powers - powers.max())  # a low temperature makes powers that no float can hold
    return chances / chances.sum()


def interleave(
    factories: Sequence[Callable[[], Iterable[T]]], sources: Sequence[Source], mixing: Mixing, seed: int
) -> Iterator[T]:
    """Mixes streams as `plan` does rows: same draws, same order; no more than one item a source is held.

    Args:
        factories: Begins each source's stream, again whenever its records come again.
        sources: The sources.
        mixing: How they are mixed.
        seed: Seed of the draws.

    Raises:
        UserError: The mixing needs the sources' sizes; or, on the way, a source that is drawn from has no items.
    """
    repeated = [partial(_repeat, factory, source.epochs) for factory, source in zip(factories, sources, strict=True)]
    if mixing.how == "concatenate" or len(sources) == 1:
        return chain.from_iterable(stream() for stream in repeated)
    if mixing.how == "temperature":
        raise UserError(
            "data.mixing: temperature needs to know how many records each source has, which streams do not; "
            "give weights and mix by probability"
        )
    return _interleave(repeated, sources, mixing, seed)


def _interleave(
    factories: Sequence[Callable[[], Iterator[T]]], sources: Sequence[Source], mixing: Mixing, seed: int
) -> Iterator[T]:
    chances = probabilities([1] * len(sources), sources, mixing)
    streams = [factory() for factory in factories]
    ahead: list[T] = []  # the next item of each, without which nobody knows whether the last one was the last
    for stream, source in zip(streams, sources, strict=True):
        try:
            ahead.append(next(stream))
        except StopIteration:
            raise _nothing_to_draw(source) from None
    exhausted = [False] * len(streams)
    enough = any if mixing.stop == "first_exhausted" else all
    for block in _blocks(chances, seed):
        for number in block.tolist():
            yield ahead[number]
            try:
                ahead[number] = next(streams[number])
            except StopIteration:
                exhausted[number] = True
                if enough(exhausted):
                    return
                streams[number] = factories[number]()
                ahead[number] = next(streams[number])


def _repeat(factory: Callable[[], Iterable[T]], times: int) -> Iterator[T]:
    return chain.from_iterable(factory() for _ in range(times))


def _blocks(chances: numpy.ndarray, seed: int) -> Iterator[numpy.ndarray]:
    """Draws without end: numbers of sources (_BLOCK,)."""
    generator = numpy.random.default_rng(seed)
    while True:
        yield generator.choice(len(chances), size=_BLOCK, p=chances)


def _draws(lengths: numpy.ndarray, chances: numpy.ndarray, stop: str, seed: int) -> numpy.ndarray:
    """Numbers of the sources in the order they are drawn from (rows,), up to the draw that exhausts one, or all."""
    enough = numpy.any if stop == "first_exhausted" else numpy.all
    pick = numpy.min if stop == "first_exhausted" else numpy.max
    with numpy.errstate(divide="ignore"):
        expected = pick(lengths / chances)
    if expected > _MOST_DRAWS:
        raise UserError(
            f"data.mixing: until all sources are exhausted it takes some {expected:.0e} draws, since one is drawn "
            "so seldom; give it more weight or stop at first_exhausted"
        )
    drawn, blocks = numpy.zeros_like(lengths), []
    for block in _blocks(chances, seed):
        blocks.append(block)
        drawn += numpy.bincount(block, minlength=len(lengths))
        if enough(drawn >= lengths):
            break
    draws = numpy.concatenate(blocks)
    last = [
        numpy.flatnonzero(draws == number)[length - 1]
        for number, length in enumerate(lengths)
        if drawn[number] >= length
    ]
    return draws[: pick(last) + 1]


def _nothing_to_draw(source: Source) -> UserError:
    return UserError(f"data.sources: {source.path} has no records to draw from; leave it out")
