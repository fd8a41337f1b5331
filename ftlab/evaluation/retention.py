"""What a network has forgotten: what it comes to on texts and tasks that it knew, before training and after.

The change is over the same documents, and so is its interval (paired bootstrap: Koehn 2004): it says what other texts
of the same kind would have shown of this network. A loss is a mean over tokens: a drawn document brings its own along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import exp
from typing import Any

import numpy

from ftlab.evaluation.resampling import CONFIDENCE, RESAMPLES, Array, resampled
from ftlab.evaluation.text_metrics import OF_A_CORPUS


@dataclass(frozen=True)
class Judged:
    """What a network comes to on one document.

    Args:
        source: Where it stands.
        tokens: That are predicted.
        nats: Their loss, summed.
        prediction: The answer, where one was asked for.
        scores: Of the answer, by metric.
    """

    source: str
    tokens: int
    nats: float
    prediction: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What a network comes to on one set.

    Args:
        documents: In the order of the set.
        scores: Of all answers together, by metric.
    """

    documents: tuple[Judged, ...]
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """In nats a token."""
        return sum(each.nats for each in self.documents) / sum(each.tokens for each in self.documents)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Measured:
        """What `plain` gave."""
        return cls(tuple(Judged(**each) for each in content["documents"]), content["scores"])


def changes(before: Measured, after: Measured) -> dict[str, float]:
    """Names to numbers: `loss_before`, `loss_after`, `loss_change` with its 95 % interval from `loss_change_low` to
    `loss_change_high`, `perplexity_before` and `perplexity_after`, and the same of each text score. A score that is of
    the whole corpus alone, such as BLEU, has no interval.

    Args:
        before: Of the base.
        after: Of the trained network, on the same documents.
    """
    pairs = list(zip(before.documents, after.documents, strict=True))
    tokens = [float(one.tokens) for one, _ in pairs]
    found = _change("loss", before.loss, after.loss, [two.nats - one.nats for one, two in pairs], tokens)
    for when, loss in (("before", before.loss), ("after", after.loss)):
        found[f"perplexity_{when}"] = exp(min(loss, 700.0))
    for metric in before.scores:
        apart = None
        if metric not in OF_A_CORPUS:
            apart = [two.scores[metric] - one.scores[metric] for one, two in pairs if metric in one.scores]
        found |= _change(metric, before.scores[metric], after.scores[metric], apart)
    return found


def lines(before: Measured, after: Measured) -> Iterator[dict[str, Any]]:
    """A line a document, with what each network comes to on it."""
    for one, two in zip(before.documents, after.documents, strict=True):
        line: dict[str, Any] = {"source": one.source, "tokens": one.tokens}
        line |= {"nats_before": one.nats, "nats_after": two.nats}
        if one.prediction is not None:
            line |= {"prediction_before": one.prediction, "prediction_after": two.prediction}
            line |= {"scores_before": dict(one.scores), "scores_after": dict(two.scores)}
        yield line


def interval(
    sums: Sequence[float],
    weights: Sequence[float] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentiles of sum(sums) / sum(weights) over documents that are drawn with replacement, further out for few.

    Args:
        sums: Of each document, (documents,).
        weights: Likewise; by default 1 each, for a mean.
        confidence: Share of other such sets whose number lies between them.
        resamples: How often documents are drawn.
        seed: Of the draws.
    """
    from ftlab.evaluation.statistics import percentiles  # whose scipy takes a while, and most runs retain nothing

    pairs = numpy.stack([numpy.asarray(sums, float), numpy.ones(len(sums)) if weights is None else weights], axis=1)
    [drawn] = resampled(pairs[None], _ratio, resamples, seed)
    found = percentiles(drawn, len(pairs), confidence)
    return found.low, found.high


def _ratio(sums: Array) -> Array:
    return sums[..., 0] / sums[..., 1]


def _change(
    name: str, before: float, after: float, apart: Sequence[float] | None, weights: Sequence[float] | None = None
) -> dict[str, float]:
    found = {f"{name}_before": before, f"{name}_after": after, f"{name}_change": after - before}
    if apart is not None:
        found[f"{name}_change_low"], found[f"{name}_change_high"] = interval(apart, weights)
    return found
