"""What a pass over records adds up to: the loss per target token, and the answers with their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ftlab.data import Record
from ftlab.evaluation.text_metrics import Metric, Scores, score_texts
from ftlab.modules.devices import gathered


class Tally:
    """Sums and answers, never logits: memory does not grow with the vocabulary or the length."""

    def __init__(self) -> None:
        self._loss: Tensor | float = 0.0
        self._targets = 0
        self.answers: dict[int, str] = {}
        """The answer to each record, by the record's index."""
        self.documents: dict[tuple[int, str], tuple[float, int]] = {}
        """Loss in nats and targets of each document of a loader, by the loader's number and where it stands."""
        self.texts: Scores | None = None
        self.losses: list[dict[str, Any]] = []
        """A line a row of the loss: `record`, where it stands; `loss` in nats, summed over its `tokens`."""
        self.predictions: list[dict[str, Any]] = []
        """A line a record: `prompt`, `references`, `prediction`, `scores`."""

    def add_loss(self, loss_sum: Tensor, targets: int) -> None:
        """Adds a batch: its loss in nats summed over `targets` tokens."""
        self._loss = self._loss + loss_sum.detach().double()
        self._targets += targets

    def add_losses(self, losses: Tensor, rows: Tensor, records: Sequence[str]) -> None:
        """Adds a batch of rows, one record each.

        Args:
            losses: In nats, (targets,).
            rows: To which each target belongs, (targets,).
            records: Where each row's record stands.
        """
        sums, counts = _of_rows(losses, rows, len(records))
        for record, loss, tokens in zip(records, sums, counts, strict=True):
            self.losses.append({"record": record, "loss": loss, "tokens": tokens})
        self.add_loss(torch.tensor(sums, dtype=torch.float64).sum(), len(losses))

    def add_answers(self, indices: Sequence[int], answers: Sequence[str]) -> None:
        """Adds the answers to the records with these indices."""
        self.answers.update(zip(indices, answers, strict=True))

    def add_documents(self, loader: int, sources: Sequence[str], losses: Tensor, rows: Tensor) -> None:
        """Adds a batch of rows to the documents that they belong to.

        Args:
            loader: That gave them.
            sources: Where the document of each row stands.
            losses: In nats, (targets,).
            rows: To which each target belongs, (targets,).
        """
        for source, loss, tokens in zip(sources, *_of_rows(losses, rows, len(sources)), strict=True):
            self._add_document(loader, source, loss, tokens)

    def _add_document(self, loader: int, source: str, loss: float, tokens: int) -> None:
        before = self.documents.get((loader, source), (0.0, 0))
        self.documents[loader, source] = (before[0] + loss, before[1] + tokens)

    def gather(self) -> None:
        """Brings together what the processes of a distributed run have."""
        parts = gathered((float(self._loss), self._targets, self.answers, self.losses, self.documents))
        self._loss = sum(part[0] for part in parts)
        self._targets = sum(part[1] for part in parts)
        self.answers = {index: answer for part in parts for index, answer in part[2].items()}
        self.losses = sorted((line for part in parts for line in part[3]), key=lambda line: line["record"])
        self.documents = {}
        for part in parts:
            for (loader, source), (nats, tokens) in part[4].items():
                self._add_document(loader, source, nats, tokens)

    def score(self, records: Sequence[Record], metrics: Sequence[Metric]) -> None:
        """Scores the answers against the references of their records."""
        indices = sorted(self.answers)
        chosen = [records[i] for i in indices]
        answers = [self.answers[i] for i in indices]
        self.texts = score_texts(answers, [list(record.references) for record in chosen], metrics)
        self.predictions = [
            {"prompt": r.prompt, "references": list(r.references), "prediction": answer, "scores": scores}
            for r, answer, scores in zip(chosen, answers, self.texts.records, strict=True)
        ]

    def scores(self) -> dict[str, float]:
        """Bare names to numbers: `loss` in nats a target token, `perplexity`, and the corpus scores of the texts."""
        scores: dict[str, float] = {}
        if self._targets:
            loss = float(self._loss) / self._targets
            scores |= {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        return scores | (self.texts.corpus if self.texts else {})


def _of_rows(losses: Tensor, rows: Tensor, count: int) -> tuple[list[float], list[int]]:
    """Losses in nats summed over the targets of each row, and how many these are; on the CPU, in a fixed order."""
    rows = rows.cpu()
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, rows, losses.detach().cpu().double())
    return sums.tolist(), torch.bincount(rows, minlength=count).tolist()
