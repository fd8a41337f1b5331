"""A tokenizer as encoding needs it: ids of many texts at once, and of the parts of one text as if it were whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ftlab.data.chat import Rendered, name_of
from ftlab.data.examples import IGNORED, Example, Span, join
from ftlab.data.records import Malformed, Record
from ftlab.errors import UserError


@dataclass(frozen=True, slots=True)
class Part:
    """Text that is tokenised together, of which the ids of `lead` are another part's, and only read here."""

    text: str
    learned: bool
    lead: str = ""


class TextTokenizer:
    """Ids of texts, of texts in parts, and of texts between what the tokenizer sets before and after them.

    Args:
        tokenizer: Of transformers, fast or not.
        trial: What a chat template made of a short conversation, and where the prompt of its last turn ends.

    Attributes:
        prefix: What the tokenizer itself sets before a text: the beginning-of-text token, or nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, trial: tuple[str, int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._name = name_of(tokenizer)
        self.prefix = self._find_prefix()
        self._cuts = self._find_cuts(*trial) if trial else ()

    def end_of_text(self) -> int:
        """The token after a text.

        Raises:
            UserError: There is none.
        """
        end = self._tokenizer.eos_token_id
        if end is None:
            raise UserError(
                f"the tokenizer {self._name} has no end-of-text token, so no stop could be learned; "
                "set eos_token in its tokenizer_config.json"
            )
        return int(end)

    def ids_of(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Ids by text, each text tokenised once: rows often share a prompt."""
        unique = list(dict.fromkeys(texts))
        return dict(zip(unique, self._tokenize(unique), strict=True))

    def ids(self, text: str) -> list[int]:
        """Ids of one text and nothing else."""
        return self._tokenize([text])[0]

    def parts(self, rendered: Rendered, rest: bool) -> list[Part]:
        """Cuts a conversation where turns begin and end; `rest` says whether what is between them is learned.

        Each part is tokenised from the last special token before it on: there ids never depend on what stands before.
        """
        text = rendered.text
        parts, begin, lead = [], 0, 0
        for turn in rendered.turns:
            for end, learned in ((turn.start, rest), (turn.end, turn.learned)):
                if end > begin:
                    lead = max(lead, *(text.rfind(token, lead, begin) for token in self._cuts), 0)
                    parts.append(Part(text[lead:end], learned, text[lead:begin]))
                    begin = end
        return parts

    def joined(self, parts: list[Part], ids_of: Mapping[str, list[int]], source: str) -> tuple[list[int], list[Span]]:
        """Ids of the whole, and the spans of its learned parts.

        Raises:
            Malformed: A part's first characters merge with the last before, and it cannot be tokenised by itself.
        """
        ids: list[int] = []
        spans = []
        for part in parts:
            start, new = len(ids), ids_of[part.text]
            if part.lead:
                lead = ids_of[part.lead]
                new = new[len(lead) :] if starts(new, lead) else self._alone(part, lead, new, source)
            ids += new
            if part.learned:
                spans.append((start, len(ids)))
        return ids, spans

    def lead(self, ids: list[int]) -> int:
        """How many ids in front are what the tokenizer itself sets there."""
        return len(self.prefix) if starts(ids, self.prefix) else 0

    def opened(self, ids: list[int]) -> list[int]:
        """After what the tokenizer sets before a text; one that spells it out gets no second."""
        return self.prefix[self.lead(ids) :] + ids

    def closed(self, ids: list[int], spans: list[Span], head: int, learned: bool) -> Example:
        """Between the beginning and the end of a text, each once also where it is spelt out.

        Args:
            ids: Of the text alone.
            spans: What is learned of it.
            head: The beginning-of-text token is looked for in so many ids.
            learned: Whether the end is learned.
        """
        stop = self.end_of_text()
        if ids[-1:] != [stop]:
            spans = [*spans, (len(ids), len(ids) + learned)]
            ids = [*ids, stop]
        shift = len(self.prefix) - self.lead(ids[:head])
        return Example(self.prefix[:shift] + ids, join((start + shift, end + shift) for start, end in spans))

    def of_texts(self, records: Sequence[Record]) -> list[Example]:
        """Running text: all of it is learned, and that it ends.

        Raises:
            UserError: The tokenizer has no end-of-text token.
            Malformed: A text is empty.
        """
        for record in records:
            if not record.answers[0].content.strip():
                raise Malformed(f"{record.source}: the text is empty, so nothing would be learned; leave it out")
        ids = self.ids_of(record.answers[0].content for record in records)
        examples = []
        for record in records:
            text = record.answers[0]
            new, learned = ids[text.content], text.train is not False
            begin = self.lead(new)
            examples.append(self.closed(new, [(begin, len(new))] if learned else [], len(new), learned))
        return examples

    def of_tokens(self, record: Record) -> Example:
        """A row that came as ids.

        Raises:
            Malformed: They are not of the vocabulary, or its labels are not theirs.
        """
        ids = list(record.tokens or ())
        size = len(self._tokenizer)
        strange = next((token for token in ids if not 0 <= token < size), None)
        if strange is not None:
            raise Malformed(
                f"{record.source}: input_ids holds {strange}, which the tokenizer {self._name} does not know "
                f"(0 to {size - 1}); it was made with another tokenizer"
            )
        if record.labels is None:
            return Example(ids, join([(0, len(ids))]))
        if len(record.labels) != len(ids) or any(
            label not in (IGNORED, token) for label, token in zip(record.labels, ids, strict=False)
        ):
            raise Malformed(
                f"{record.source}: labels must be as many as input_ids, each the token itself or {IGNORED}; "
                "mend the row, or leave labels out to learn every token"
            )
        return Example(ids, join((place, place + 1) for place, label in enumerate(record.labels) if label != IGNORED))

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens too."""
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def vocabulary(self) -> Any:
        """All that ids follow from, to be hashed."""
        tokenizer: Any = self._tokenizer
        if not tokenizer.is_fast:
            return [type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.added_tokens_encoder]
        text = tokenizer.backend_tokenizer.to_str()
        # padding and truncation stand before, and are what the last call happened to set
        return text[text.index('"added_tokens"') :]

    def _alone(self, part: Part, lead: list[int], ids: list[int], source: str) -> list[int]:
        """The turn tokenised by itself, for a response whose first characters merge with the prompt's last.

        Generation starts from the prompt's ids, so these must stay as they are; the text must stay the same too.
        """
        text, whole = part.text[len(part.lead) :], self.decode(ids)
        for before in ("", "a"):  # some tokenizers write a space before a text, which then stands before the letter
            first, turn = self._tokenize([before, before + text])
            turn = turn[len(first) :] if starts(turn, first) else []
            if self.decode(lead + turn) == whole:
                return turn
        raise Malformed(
            f"{source}: the tokenizer {self._name} joins the end of the prompt with the start of the response, so "
            "the conversation does not begin with the prompt's ids; change how the response begins"
        )

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text and nothing else."""
        tokenizer: Any = self._tokenizer
        if not texts:
            return []
        if not tokenizer.is_fast:
            ids: list[list[int]] = tokenizer(texts, verbose=False, add_special_tokens=False)["input_ids"]
            return ids
        backend = tokenizer.backend_tokenizer  # straight to it: a seventh quicker, without masks and offsets
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = tokenizer.split_special_tokens
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _find_prefix(self) -> list[int]:
        """What the tokenizer itself sets before a text: the beginning-of-text token, or nothing.

        Found by comparing, since tokenizers with such a token need not use it, and some append an end that a prompt
        must not have.
        """
        probe = "a"
        bare = self.ids(probe)
        full: list[int] = self._tokenizer(probe, verbose=False)["input_ids"]
        start = next((start for start in range(len(full)) if starts(full[start:], bare)), 0)
        return full[:start]

    def _find_cuts(self, text: str, start: int) -> tuple[str, ...]:
        """Special tokens of a template before which a text may be cut without changing a single id.

        The tokenizer takes them out of a text first. Not so where one swallows the spaces before it, or where another
        token's spelling may reach into it.
        """
        added = self._tokenizer.added_tokens_decoder.values()
        names = [token.content for token in added]
        cuts = tuple(
            token.content
            for token in added
            if token.content in text
            and not (token.lstrip or token.single_word or token.normalized)
            and not any(_reaches_into(name, token.content) for name in names)
        )
        begin = max((text.rfind(token, 0, start) for token in cuts), default=-1)
        if begin < 0:
            return ()
        same = self.ids(text[:begin]) + self.ids(text[begin:]) == self.ids(text)
        return cuts if same else ()


def starts(ids: list[int], beginning: list[int]) -> bool:
    """Whether ids begin with others."""
    return ids[: len(beginning)] == beginning


def _reaches_into(name: str, token: str) -> bool:
    """Whether an occurrence of `name` may cover the beginning of `token` and more before it, or all of it."""
    return (token in name and name != token) or any(token.startswith(name[start:]) for start in range(1, len(name)))
