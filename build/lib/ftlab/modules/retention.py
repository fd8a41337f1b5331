"""Measuring a network on retention sets, apart from the training or test of which it is a part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import lightning.pytorch as pl

from ftlab.evaluation.retention import Judged, Measured
from ftlab.evaluation.text_metrics import score_texts

if TYPE_CHECKING:
    from ftlab.data.retained import RetentionData
    from ftlab.modules.finetune import FinetuneModule


def measure(
    trainer: pl.Trainer, module: FinetuneModule, data: RetentionData, checkpoint: str | None = None
) -> dict[str, Measured]:
    """What a network comes to on each set, by its name; whole in every process.

    Args:
        trainer: On its devices. It trains as if nothing had been measured before.
        module: Has the network, or opens it.
        data: The sets.
        checkpoint: Whose weights are judged; None takes those that the module has.
    """
    loggers, trainer.loggers = trainer.loggers, []
    try:
        trainer.predict(module, datamodule=data, return_predictions=False, ckpt_path=checkpoint)
    finally:
        trainer.loggers = loggers
    answers: dict[str, dict[str, str]] = {name: {} for name in data.names}
    for number, (name, document) in enumerate(data.asked):
        answers[name][document.source] = module.tally.answers[number]
    return {name: _measured(module, data, number, name, answers[name]) for number, name in enumerate(data.names)}


def measure_base(trainer: pl.Trainer, module: FinetuneModule, data: RetentionData) -> dict[str, Measured]:
    """What the network comes to as it is before the method sees it: opened for this, and let go of."""
    base = module.of_base()
    with _without_callbacks(trainer):
        found = measure(trainer, base, data)
    base.let_go()
    return found


def _measured(module: FinetuneModule, data: RetentionData, number: int, name: str, answers: dict[str, str]) -> Measured:
    documents = data.documents[name]
    corpus: dict[str, float] = {}
    scores: dict[str, dict[str, float]] = {}
    if answers:
        references = {each.source: list(each.record.references) for each in documents if each.record}
        texts = score_texts([answers[source] for source in references], list(references.values()), module.metrics)
        corpus, scores = texts.corpus, dict(zip(references, texts.records, strict=True))
    judged = []
    for each in documents:
        nats, tokens = module.tally.documents[number, each.source]
        judged.append(Judged(each.source, tokens, nats, answers.get(each.source), scores.get(each.source, {})))
    return Measured(tuple(judged), corpus)


@contextmanager
def _without_callbacks(trainer: pl.Trainer) -> Iterator[None]:
    """They would take the base for the run's network."""
    callbacks, trainer.callbacks = trainer.callbacks, []  # type: ignore[attr-defined]
    try:
        yield
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
