"""What the names in scores.json tell: SPLIT_METRIC. Nothing heavy is imported for it."""

from __future__ import annotations

LOSSES = ("loss", "perplexity")
"""Of which the model's own probabilities tell, not its answers."""
_SPLITS = ("test", "val")


def rank(name: str) -> tuple[int, bool, bool]:
    """By which the score comes first that is looked at first: rougeL of the test records, or another score of their
    answers, or the loss on them, or the same of the validation records; then all else, such as forgetting. Of two of
    the same rank it is the one that scores.json has first."""
    split, _, bare = name.partition("_")
    place = _SPLITS.index(split) if split in _SPLITS else len(_SPLITS)
    return place, bare in LOSSES, bare != "rougeL"
