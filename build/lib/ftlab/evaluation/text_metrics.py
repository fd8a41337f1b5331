"""How near predicted texts come to their references: ROUGE, BLEU, chrF, exact match, and the user's own.

Every number here is that of rouge-score or sacrebleu with their standard settings; nothing is scored anew. Scores
run from 0 to 100.

- rouge1, rouge2, rougeL, rougeLsum (Lin 2004): F-measure without stemming; for each record and metric the best of
  its references; the corpus score is the mean over records. rougeLsum takes every line of a text as a sentence
  (rouge-score's definition, which splits at newlines and nowhere else): it equals rougeL on texts of one line.
  rouge-score knows the letters a-z and digits alone: a text in another script has no words for it and scores 0.
- bleu (Papineni et al. 2002; Post 2018): sacrebleu's corpus BLEU, which is not the mean of its records; a record's
  own score is sacrebleu's sentence BLEU (smoothed, up to the n-gram order that the record has).
- chrf (Popović 2015): sacrebleu's corpus chrF; a record's own score is sacrebleu's sentence chrF.
- exact_match: 100 where the prediction is one of the references, white space at both ends aside.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from ftlab.errors import UserError

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU, CHRF

Texts = Sequence[str]
References = Sequence[Sequence[str]]
UserMetric = Callable[[str, list[str]], float]


@dataclass(frozen=True)
class MetricScore:
    """What one metric says: of the corpus, of each record, and the settings behind it where it names them."""

    corpus: float
    records: list[float]
    signature: str | None = None


@dataclass(frozen=True)
class Metric:
    """A name, and what scores predictions against the references of each."""

    name: str
    score: Callable[[Texts, References], MetricScore]


@dataclass(frozen=True)
class Scores:
    """Scores by metric name: of the corpus, of each record in order, and sacrebleu's signatures."""

    corpus: dict[str, float]
    records: list[dict[str, float]]
    signatures: dict[str, str]


def resolve_metrics(names: Sequence[str | UserMetric]) -> list[Metric]:
    """Finds the metrics that are named.

    Args:
        names: Names of `METRICS`, dotted paths of the user's own functions (`mypkg.scoring.length_ratio`), or such
            functions. A function takes a prediction and its references, and returns a number; the corpus score is
            the mean; the metric is called as the function is.

    Raises:
        UserError: No such metric or function, or two metrics of one name.
    """
    metrics: list[Metric] = []
    for name in names:
        if isinstance(name, str) and name in METRICS:
            metric = Metric(name, METRICS[name])
        else:
            function = _import(name) if isinstance(name, str) else name
            metric = Metric(getattr(function, "__name__", type(function).__name__), partial(_user_metric, function))
            if metric.name in METRICS:
                raise UserError(
                    f"metrics: {name} has the name of a metric that ftlab brings along: rename the function"
                )
        if metric.name in (known.name for known in metrics):
            raise UserError(f"metrics: {metric.name} is named twice: each metric needs a name of its own")
        metrics.append(metric)
    return metrics


def score_texts(predictions: Texts, references: References, metrics: Sequence[Metric]) -> Scores:
    """Scores predictions, each against one or more references.

    Raises:
        UserError: There is no record; predictions and references differ in number; a record has no reference; a
            user's metric returns no finite number.
    """
    if len(predictions) != len(references):
        raise UserError(
            f"{len(predictions)} predictions cannot be scored against the references of {len(references)} records"
        )
    if not predictions:
        raise UserError("there is no record to score: the set is empty")
    for number, alternatives in enumerate(references, start=1):
        if isinstance(alternatives, str):
            raise UserError(f"the references of record {number} are one string: give a list of strings")
        if not alternatives:
            raise UserError(f"record {number} has no reference: text metrics need at least one for each record")
    results = {metric.name: metric.score(predictions, references) for metric in metrics}
    return Scores(
        corpus={name: result.corpus for name, result in results.items()},
        records=[{name: result.records[i] for name, result in results.items()} for i in range(len(predictions))],
        signatures={name: result.signature for name, result in results.items() if result.signature},
    )


def _rouge(kind: str, predictions: Texts, references: References) -> MetricScore:
    from rouge_score.rouge_scorer import RougeScorer  # with nltk and scikit-learn: as much as a start can do without

    scorer = RougeScorer([kind])
    return _mean(
        [
            100 * scorer.score_multi(alternatives, prediction)[kind].fmeasure
            for prediction, alternatives in zip(predictions, references, strict=True)
        ]
    )


def _sacrebleu(corpus: BLEU | CHRF, sentence: BLEU | CHRF, predictions: Texts, references: References) -> MetricScore:
    # sacrebleu wants the first references of all records, then the second ones …, None where a record has no more.
    columns = list(zip_longest(*references))
    score = corpus.corpus_score(list(predictions), columns).score
    return MetricScore(
        corpus=_percent(score),
        records=[
            _percent(sentence.sentence_score(prediction, list(alternatives)).score)
            for prediction, alternatives in zip(predictions, references, strict=True)
        ],
        signature=str(corpus.get_signature()),
    )


def _bleu(predictions: Texts, references: References) -> MetricScore:
    from sacrebleu.metrics import BLEU

    return _sacrebleu(BLEU(), BLEU(effective_order=True), predictions, references)


def _chrf(predictions: Texts, references: References) -> MetricScore:
    from sacrebleu.metrics import CHRF

    return _sacrebleu(CHRF(), CHRF(), predictions, references)


def _exact_match(predictions: Texts, references: References) -> MetricScore:
    return _mean(
        [
            100.0 * (prediction.strip() in (reference.strip() for reference in alternatives))
            for prediction, alternatives in zip(predictions, references, strict=True)
        ]
    )


def _user_metric(function: UserMetric, predictions: Texts, references: References) -> MetricScore:
    scores = []
    for number, (prediction, alternatives) in enumerate(zip(predictions, references, strict=True), start=1):
        value: Any = function(prediction, list(alternatives))
        try:
            score = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError, RuntimeError):  # the last is torch's, for a tensor of several numbers
            score = math.nan
        if not math.isfinite(score):
            name = getattr(function, "__name__", type(function).__name__)
            raise UserError(f"metric {name} returned {value!r} for record {number}: it must return a finite number")
        scores.append(score)
    return _mean(scores)


METRICS: dict[str, Callable[[Texts, References], MetricScore]] = {
    "rouge1": partial(_rouge, "rouge1"),
    "rouge2": partial(_rouge, "rouge2"),
    "rougeL": partial(_rouge, "rougeL"),
    "rougeLsum": partial(_rouge, "rougeLsum"),
    "bleu": _bleu,
    "chrf": _chrf,
    "exact_match": _exact_match,
}
OF_A_CORPUS = frozenset({"bleu", "chrf"})
"""Those that are no mean over records."""


def _import(path: str) -> UserMetric:
    known = ", ".join(METRICS)
    if "." not in path:
        raise UserError(
            f"metrics: there is no {path}: take one of {known}, or the dotted path of a function of your own"
        )
    try:
        function = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"metrics: {path} cannot be imported ({error}): it must be the dotted path of a function"
        ) from error
    if not callable(function):
        raise UserError(f"metrics: {path} is not a function: it is a {type(function).__name__}")
    return function


def _mean(records: list[float]) -> MetricScore:
    return MetricScore(math.fsum(records) / len(records), records)


def _percent(score: float) -> float:
    # sacrebleu's exponentials end at 100.00000000000004 for a perfect text.
    return min(score, 100.0)
