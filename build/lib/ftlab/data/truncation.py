"""What is left of a record that is too long: whole old turns go first, then the front of what the user says."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from ftlab.data.records import Message

Context = tuple[Message, ...]
Whole = TypeVar("Whole")


def shorten(
    context: Context,
    excess: int,
    encode: Callable[[Context], Whole],
    over: Callable[[Whole], int],
    tokenize: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
) -> Whole | None:
    """The longest end of a conversation that fits, opening with its system turns, encoded; None where nothing does.

    Args:
        context: The turns before the answer.
        excess: By how many tokens it is too long.
        encode: What such a context becomes with all that follows it.
        over: By how many tokens that is too long, 0 or less where it fits.
        tokenize: Ids of a text and nothing else.
        decode: The text of ids.
    """
    shorter = later_starts(context)
    place = bisect_left(shorter, True, key=lambda candidate: over(encode(candidate)) <= 0)  # lengths fall
    if place < len(shorter):
        return encode(shorter[place])
    last, excess = (shorter[-1], over(encode(shorter[-1]))) if shorter else (context, excess)
    first = next((index for index, message in enumerate(last) if message.role == "user"), None)
    if first is None:
        return None
    ids = tokenize(last[first].content)
    cut = excess
    while cut < len(ids):
        content = _ending(last[first].content, decode(ids[cut:]))
        whole = encode((*last[:first], replace(last[first], content=content), *last[first + 1 :]))
        excess = over(whole)  # what is left may merge otherwise, and be a token longer than it was
        if excess <= 0:
            return whole
        cut += excess
    return None


def later_starts(context: Sequence[Message]) -> list[Context]:
    """The same conversation begun at each later user's turn, earliest first, its leading system turns kept."""
    system = next((index for index, message in enumerate(context) if message.role != "system"), len(context))
    starts = [index for index, message in enumerate(context) if index > system and message.role == "user"]
    return [(*context[:system], *context[start:]) for start in starts]


def _ending(text: str, decoded: str) -> str:
    """The end of the text that was decoded from its last ids, told by its length where decoding changes the text."""
    decoded = decoded.lstrip("\ufffd")  # half of a character
    return decoded if text.endswith(decoded) else text[len(text) - min(len(decoded), len(text)) :]
