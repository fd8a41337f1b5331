"""A score from sums over records, so that records can be drawn anew without scoring their texts again.

BLEU and chrF are scores of a corpus: what each record adds (matches, lengths) is summed first, and sacrebleu makes a
score of the sums. A loss is nats over tokens: a record adds both, so that long answers weigh more. Others are means: a
record adds its score, and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy

from ftlab.evaluation.resampling import Array, Score
from ftlab.evaluation.score_names import LOSSES

Row = Mapping[str, Any]
"""A line of predictions: `references`, `prediction`, `scores`; or of losses: `loss`, in nats, and `tokens`."""


def sums(metric: str, rows: Sequence[Row]) -> Array:
    """What each record adds, (records, statistics).

    Raises:
        KeyError: A record has no such score.
    """
    if metric in LOSSES:
        return numpy.array([[row["loss"], float(row["tokens"])] for row in rows])
    corpus = _corpus(metric)
    if corpus is None:
        return numpy.array([[row["scores"][metric], 1.0] for row in rows])
    columns = list(zip_longest(*(row["references"] for row in rows)))
    return numpy.array(corpus._extract_corpus_statistics([row["prediction"] for row in rows], columns), dtype=float)


def score_of_sums(metric: str) -> Score:
    """What makes scores, (…), of sums, (…, statistics)."""
    corpus = _corpus(metric)
    if metric == "perplexity":
        return lambda summed: numpy.exp(summed[..., 0] / summed[..., 1])
    if corpus is None:
        return lambda summed: summed[..., 0] / summed[..., 1]

    def score(summed: Array) -> Array:
        flat = summed.reshape(-1, summed.shape[-1]).tolist()
        # BLEU is exp of a mean of logarithms: of answers that are all right it comes to 100.00000000000004
        scores = [min(corpus._compute_score_from_stats(one).score, 100.0) for one in flat]
        return numpy.array(scores).reshape(summed.shape[:-1])

    return score


def _corpus(metric: str) -> Any:
    """sacrebleu's metric; None of one that is a mean."""
    make = _CORPUS.get(metric)
    return make() if make else None


def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU()


def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


_CORPUS: dict[str, Callable[[], Any]] = {"bleu": _bleu, "chrf": _chrf}
