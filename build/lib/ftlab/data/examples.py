"""One sample as the network reads it: token ids, which of them are learned, and how it is cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

IGNORED = -100  # what torch's cross entropy leaves out

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Example:
    """One sample as the network sees it.

    Args:
        input_ids: (length,).
        spans: Places [start, end) of the learned tokens, sorted and apart.
        rejected: The same prompt with the worse answer, of a preference pair.
    """

    input_ids: list[int]
    spans: tuple[Span, ...]
    rejected: Example | None = None

    @property
    def labels(self) -> list[int]:
        """The ids where they are learned, -100 elsewhere, (length,). Not shifted."""
        labels = [IGNORED] * len(self.input_ids)
        for start, end in self.spans:
            labels[start:end] = self.input_ids[start:end]
        return labels

    @property
    def targets(self) -> int:
        """How many tokens are learned; the first of a sample has nothing to be predicted from."""
        return sum(end - max(start, 1) for start, end in self.spans if end > 1)

    @property
    def length(self) -> int:
        """Tokens, of the longer one of a preference pair."""
        return max(len(self.input_ids), self.rejected.length if self.rejected else 0)

    @property
    def learns(self) -> bool:
        """Whether it has a target, and its worse side too where there is one."""
        return self.targets > 0 and (self.rejected is None or self.rejected.learns)

    def first(self, length: int) -> Example:
        """Without what comes after `length` tokens."""
        rejected = self.rejected.first(length) if self.rejected else None
        return Example(self.input_ids[:length], _inside(self.spans, 0, length), rejected)

    def without(self, start: int, end: int) -> Example:
        """Without the tokens [start, end)."""
        ids = self.input_ids[:start] + self.input_ids[end:]
        after = _inside(self.spans, end, len(self.input_ids))
        spans = join([*_inside(self.spans, 0, start), *((first + start, last + start) for first, last in after)])
        return Example(ids, spans, self.rejected.without(start, end) if self.rejected else None)

    def pieces(self, length: int) -> list[Example]:
        """Consecutive pieces of `length` tokens that together hold every token once.

        The last has more than one token where it can be: a lone one would have nothing to be predicted from.
        """
        total = len(self.input_ids)
        ends = [*range(length, total, length), total]
        if len(ends) > 1 and ends[-1] - ends[-2] == 1 and length > 2:
            ends[-2] -= 1
        starts = [0, *ends[:-1]]
        return [
            Example(self.input_ids[start:end], _inside(self.spans, start, end))
            for start, end in zip(starts, ends, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of one record.

    Args:
        examples: One for each answer; more where running text is split, or where earlier turns are learned that the
            chat template renders otherwise once the conversation has gone on.
        dropped: The rule by which an example was left out, too_long or no_target; None where all are here.
        truncated: How many examples were cut.
        answers_dropped: How many answers (or learned turns) were left out where others are here.
    """

    examples: tuple[Example, ...]
    dropped: str | None = None
    truncated: int = 0
    answers_dropped: int = 0


def join(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Sorted spans with those made one that touch, and empty ones left out."""
    joined: list[Span] = []
    for start, end in spans:
        if start >= end:
            continue
        if joined and start == joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(joined)


def _inside(spans: Sequence[Span], start: int, end: int) -> tuple[Span, ...]:
    """What of the spans lies in [start, end), counted from `start`."""
    return join((max(first, start) - start, min(last, end) - start) for first, last in spans)
