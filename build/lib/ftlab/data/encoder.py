"""From records to token ids and the spans of them that are learned.

Every example of a record begins with exactly the ids that generation starts from, and what is learned of a turn ends
with its stop token, so training and generation see the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from ftlab.data.chat import ChatTemplate, find_template, name_of
from ftlab.data.examples import Encoded, Example, join
from ftlab.data.records import Malformed, Message, Record
from ftlab.data.tokenization import Part, TextTokenizer
from ftlab.data.truncation import Context, shorten
from ftlab.errors import UserError

_TEXT = "text"  # the role of running text


@dataclass(frozen=True)
class Encoding:
    """How records become tokens.

    Args:
        template: How turns are joined. auto takes the tokenizer's own chat template where there is one, and else
            prompt and answer as they are; chat and plain insist on one of these; or the name of one of a tokenizer's
            several templates, or the path of a Jinja file.
        learn: Turns whose tokens are learned: last (the answer), assistant (all of the assistant's), a list of roles,
            or all (every token, the template's text too). A message's own `train` comes before it. Running text and
            token rows are learned whole.
        max_length: Most tokens of an example, stop token included; null for no limit.
        overflow: What becomes of a longer one: refuse stops, drop leaves it out, truncate cuts it, split cuts running
            text and token rows into consecutive pieces and refuses others.
        truncate_from: left cuts the oldest turns, then the front of what the user says, and leaves the answer whole;
            right cuts the end, so that such an example has no stop token.
    """

    template: str = "auto"
    learn: Literal["last", "assistant", "all"] | list[str] = "last"
    max_length: int | None = None
    overflow: Literal["refuse", "drop", "truncate", "split"] = "refuse"
    truncate_from: Literal["left", "right"] = "left"

    def marks(self, messages: Sequence[Message]) -> dict[int, bool]:
        """Whether a turn is learned, by its index: the last, and those that are treated otherwise than the rest."""
        last = len(messages) - 1
        learned = [
            message.train if message.train is not None else self._learns(message.role, index == last)
            for index, message in enumerate(messages)
        ]
        return {index: mark for index, mark in enumerate(learned) if index == last or mark != (self.learn == "all")}

    def _learns(self, role: str, is_last: bool) -> bool:
        if isinstance(self.learn, list):
            return role in self.learn
        return self.learn == "all" or (is_last if self.learn == "last" else role == "assistant")


@dataclass(frozen=True, slots=True)
class _Dialogue:
    """A conversation to encode: one answer of a record, or its worse one beside it."""

    record: Record
    context: Context
    answer: Message
    rejected: Message | None = None

    alone: bool = False  # only the answer is learned


@dataclass(frozen=True, slots=True)
class _Rendering:
    """A conversation in the parts that make its text, and those with the worse answer."""

    dialogue: _Dialogue
    parts: list[Part]
    worse: list[Part] | None = None


@dataclass(frozen=True, slots=True)
class _Draft:
    """An example before its length is judged, and the conversation it came from."""

    example: Example
    dialogue: _Dialogue | None = None


class Encoder:
    """Encodes records for one tokenizer.

    Plain: prompt and answer are tokenised each by itself, the tokenizer's end-of-text token is the stop token. Chat:
    the chat template renders both, and the stop token is the special token that ends the assistant's turn. Whether
    there is a beginning-of-text token is the tokenizer's (plain, running text) or the template's (chat) choice, as in
    transformers; there is never more than one.

    Args:
        tokenizer: Of the network that will be trained.
        options: Template, learned turns, lengths.

    Attributes:
        chat: Whether a chat template is used.
        stop_ids: Tokens at which generation ends; the first is the trained one.
        pad_id: Fills batches up; masked by position, so it may be any token.
        max_length: Most tokens of an example.

    Raises:
        UserError: The tokenizer has no end-of-text token (plain), or no template or one that ends no turn (chat); or
            the options leave nothing to learn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: Encoding | None = None) -> None:
        self._tokenizer = tokenizer
        self._name = name_of(tokenizer)
        self._options = options = options or Encoding()
        if options.learn == []:
            raise UserError("data.learn names no role, so nothing would be learned; name one, or say last")
        if options.max_length is not None and options.max_length < 2:
            raise UserError(f"data.max_length: {options.max_length} leaves no token to learn; give 2 or more")
        self.max_length = options.max_length
        texts = find_template(tokenizer, options.template)
        self.chat = texts is not None
        self._template = ChatTemplate(tokenizer, texts) if texts else None
        self._texts = TextTokenizer(tokenizer, self._template.trial if self._template else None)
        stop = self._template.stop if self._template else self._texts.end_of_text()
        end = tokenizer.eos_token_id
        self.stop_ids: tuple[int, ...] = (stop,) if end is None or end == stop else (stop, end)
        choices = (tokenizer.pad_token_id, tokenizer.unk_token_id, end, stop)
        self.pad_id: int = next(token for token in choices if token is not None)

    def prompts_ids(self, records: Sequence[Record], room: int = 0) -> list[list[int]]:
        """Ids that generation starts from, one list (length,) a record.

        With `overflow` truncate the front is cut, so that `room` tokens more fit into `max_length`; else they are
        uncut.

        Raises:
            UserError: `room` leaves none for a prompt that has to be cut.
            Malformed: A record has no prompt, or none that can be rendered or cut.
        """
        whole = self._prompts([(record, record.context) for record in records])
        if self.max_length is None or self._options.overflow != "truncate":
            return whole
        limit = self.max_length - room
        if limit <= len(self._texts.prefix):
            raise UserError(
                f"to generate {room} tokens leaves no room for a prompt where data.max_length allows "
                f"{self.max_length}; generate fewer"
            )
        return [
            ids if len(ids) <= limit else self._cut_prompt(record, ids, limit)
            for record, ids in zip(records, whole, strict=True)
        ]

    def texts_ids(self, records: Sequence[Record]) -> Iterator[list[int]]:
        """Ids of running texts, one list (length,) a record: as the tokenizer begins them, and without an end."""
        texts = [record.answers[0].content for record in records]
        ids = self._texts.ids_of(texts)
        return (self._texts.opened(ids[text]) for text in texts)

    def encode_all(self, records: Sequence[Record]) -> list[Encoded]:
        """Encodes many records, in order.

        Raises:
            UserError: A record is too long and `overflow` is refuse, or split where it cannot be split (the first is
                named, and how many there are); or the template does not show what a record holds.
            Malformed: A record cannot be encoded: its answer is empty or not rendered, the template fails on it, its
                tokens are not of the vocabulary, no cut makes room.
        """
        found: list[list[_Draft]] = [[] for _ in records]
        dialogues: list[tuple[int, _Dialogue]] = []
        texts = []
        for place, record in enumerate(records):
            if record.tokens is not None:
                found[place].append(_Draft(self._texts.of_tokens(record)))
            elif _is_text(record):
                texts.append(place)
            else:
                dialogues += ((place, dialogue) for dialogue in self._dialogues(record))
        for place, example in zip(texts, self._texts.of_texts([records[place] for place in texts]), strict=True):
            found[place].append(_Draft(example))
        renderings = [(place, whole) for place, dialogue in dialogues for whole in self._render(dialogue)]
        examples = self._assemble([rendering for _, rendering in renderings])
        for (place, rendering), example in zip(renderings, examples, strict=True):
            found[place].append(_Draft(example, rendering.dialogue))
        self._refuse_too_long(records, found)
        return [self._fit(record, drafts) for record, drafts in zip(records, found, strict=True)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of generated ids up to the first stop token, special tokens left out."""
        kept: list[int] = []
        for token in map(int, ids):
            if token in self.stop_ids:
                break
            kept.append(token)
        return str(self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def fingerprint(self) -> str:
        """A hash of all that the ids and spans follow from; the same in every process."""
        options = self._options
        parts = [
            self._texts.vocabulary(),
            self._tokenizer.special_tokens_map,
            self._template.texts if self._template else None,
            [options.learn, options.max_length, options.overflow, options.truncate_from],
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def _dialogues(self, record: Record) -> list[_Dialogue]:
        """A conversation for each answer."""
        if not record.answers:
            raise Malformed(f"{record.source} has no answer, so nothing would be learned; mend it or leave it out")
        for answer in (*record.answers, *([record.rejected] if record.rejected else [])):
            if not answer.content.strip() and not (self.chat and answer.fields.get("tool_calls")):
                raise Malformed(
                    f"{record.source}: the response is empty, so nothing would be learned; mend it or leave it out"
                )
        if self._template is None:
            self._question(record, record.context)
        else:
            messages = [*record.context, record.answers[0]]
            calls = any(message.fields.get("tool_calls") for message in messages)
            for field in ["tools"] * bool(record.tools) + ["tool_calls"] * calls:
                self._template.check_used(field, messages, record.tools, record.source)
        return [_Dialogue(record, record.context, answer, record.rejected) for answer in record.answers]

    def _question(self, record: Record, context: Context) -> str:
        """The prompt's text without a template."""
        if len(context) > 1 or any(message.role != "user" for message in context) or record.tools:
            raise UserError(
                f"{record.source} is a conversation of several turns or with tools, which only a chat template can "
                f"join; set data.template to the path of one, for {self._name} is used without"
            )
        return context[0].content if context else ""

    def _render(self, dialogue: _Dialogue, split: bool = True) -> list[_Rendering]:
        """The conversation in parts; several times where an earlier turn has no place in the whole."""
        record, context = dialogue.record, dialogue.context
        messages = (*context, dialogue.answer)
        last = len(context)
        marks = {last: True} if dialogue.alone else self._options.marks(messages)
        ends = [answer for answer in (dialogue.answer, dialogue.rejected) if answer is not None]
        if self._template is None:
            prompt = self._question(record, context)
            first = marks.get(0, self._options.learn == "all") if context else False
            return [_Rendering(dialogue, *([Part(prompt, first), Part(end.content, marks[last])] for end in ends))]
        wholes = [self._template.conversation((*context, end), marks, record.tools, record.source) for end in ends]
        placed = [self._texts.parts(whole, self._options.learn == "all") for whole in wholes if whole is not None]
        if len(placed) == len(ends):
            return [_Rendering(dialogue, *placed)]
        learned = [index for index, mark in marks.items() if mark]
        can_split = split and not dialogue.rejected and self._options.learn != "all"
        if not can_split or any(messages[index].role != "assistant" for index in learned):
            raise Malformed(
                f"{record.source}: the chat template of {self._name} renders earlier turns otherwise once the "
                "conversation goes on, so they cannot be learned in it; set data.learn to last"
            )
        return [
            rendering
            for index in learned
            for rendering in self._render(_Dialogue(record, messages[:index], messages[index], alone=True), False)
        ]

    def _assemble(self, renderings: Sequence[_Rendering]) -> list[Example]:
        """Tokenises all parts together and joins them."""
        sides = [side for rendering in renderings for side in (rendering.parts, rendering.worse) if side]
        ids = self._texts.ids_of(text for side in sides for part in side for text in (part.text, part.lead))
        examples = []
        for rendering in renderings:
            source = rendering.dialogue.record.source
            worse = self._join(rendering.worse, ids, source) if rendering.worse else None
            example = self._join(rendering.parts, ids, source)
            examples.append(replace(example, rejected=worse) if worse else example)
        return examples

    def _join(self, parts: list[Part], ids_of: Mapping[str, list[int]], source: str) -> Example:
        ids, spans = self._texts.joined(parts, ids_of, source)
        if self._template is None:
            return self._texts.closed(ids, spans, len(ids_of[parts[0].text]), parts[-1].learned)
        if ids[-1] not in self.stop_ids:
            raise Malformed(
                f"{source}: the chat template of {self._name} ends this answer without a stop token; mend the record "
                "or the template"
            )
        return Example(ids, join(spans))

    def _refuse_too_long(self, records: Sequence[Record], found: list[list[_Draft]]) -> None:
        """Stops at what `overflow` neither drops nor cuts."""
        limit, overflow = self.max_length, self._options.overflow
        if limit is None or overflow in ("drop", "truncate"):
            return
        too_long = [
            (record.source, draft.example.length)
            for record, drafts in zip(records, found, strict=True)
            for draft in drafts
            if draft.example.length > limit and (overflow == "refuse" or draft.dialogue is not None)
        ]
        if too_long:
            source, length = too_long[0]
            others = "truncate or drop" if overflow == "split" else "truncate, drop or (running text) split"
            raise UserError(
                f"{source} takes {length} tokens where data.max_length allows {limit}, and {len(too_long)} of the "
                f"{sum(map(len, found))} rows read with it are too long; shorten them, raise data.max_length as far as "
                f"the network's context goes, or set data.overflow to {others}"
            )

    def _fit(self, record: Record, drafts: Sequence[_Draft]) -> Encoded:
        """Holds the examples of a record to `max_length`."""
        limit, overflow = self.max_length, self._options.overflow
        examples: list[Example] = []
        dropped, truncated, left_out = None, 0, 0
        for draft in drafts:
            example = draft.example
            if not example.learns:
                if example.spans:
                    raise Malformed(
                        f"{record.source}: no token of the response would be learned; mend it or leave it out"
                    )
                dropped, left_out = "no_target", left_out + 1
            elif limit is None or example.length <= limit:
                examples.append(example)
            elif overflow == "drop":
                dropped, left_out = "too_long", left_out + 1
            elif overflow == "split":
                examples += (piece for piece in example.pieces(limit) if piece.learns)
            else:
                examples.append(self._cut_example(record, draft, limit))
                truncated += 1
        return Encoded(tuple(examples), dropped, truncated, left_out if examples else 0)

    def _cut_example(self, record: Record, draft: _Draft, limit: int) -> Example:
        example, dialogue = draft.example, draft.dialogue
        excess = example.length - limit
        lead = self._texts.lead(example.input_ids)
        if self._options.truncate_from == "right":
            cut: Example | None = example.first(limit)
            side = "prompt"
        elif dialogue is None:
            cut, side = example.without(lead, lead + excess), "beginning"
        elif self._template is None:
            room = len(self._prompts([(record, dialogue.context)])[0]) - excess  # what is left of the prompt
            cut = example.without(lead, lead + excess) if room > len(self._texts.prefix) else None
            side = "response"
        else:
            cut, side = self._shorten(dialogue, excess, limit), "response"
        if cut is None or not cut.learns:
            start, end = example.spans[-1]
            alone = end - start if side == "response" else start
            raise Malformed(
                f"{record.source}: the {side} alone takes {alone} tokens where data.max_length allows {limit}, "
                f"so no cut makes room; shorten it or set data.overflow to drop"
            )
        return cut

    def _shorten(self, dialogue: _Dialogue, excess: int, limit: int) -> Example | None:
        """The conversation with less before the answer."""

        def encode(context: Context) -> Example:
            return self._assemble(self._render(replace(dialogue, context=context), split=False))[0]

        texts = self._texts
        return shorten(dialogue.context, excess, encode, lambda e: e.length - limit, texts.ids, texts.decode)

    def _cut_prompt(self, record: Record, ids: list[int], limit: int) -> list[int]:
        if self._template is None:
            lead = self._texts.lead(ids)
            return ids[:lead] + ids[len(ids) - limit + lead :]

        def encode(context: Context) -> list[int]:
            return self._prompts([(record, context)])[0]

        texts, excess = self._texts, len(ids) - limit
        cut = shorten(record.context, excess, encode, lambda c: len(c) - limit, texts.ids, texts.decode)
        if cut is None:
            raise Malformed(
                f"{record.source}: no cut of what the user says makes the prompt fit into {limit} tokens; shorten it"
            )
        return cut

    def _prompts(self, contexts: Sequence[tuple[Record, Context]]) -> list[list[int]]:
        texts = []
        for record, context in contexts:
            if record.tokens is not None or _is_text(record):
                raise UserError(f"{record.source} is running text, which asks nothing, so no answer can be generated")
            if self._template:
                texts.append(self._template.prompt(context, record.tools, record.source))
            else:
                texts.append(self._question(record, context))
        ids = self._texts.ids_of(texts)
        return [list(ids[text]) if self._template else self._texts.opened(ids[text]) for text in texts]


def _is_text(record: Record) -> bool:
    return bool(record.answers) and record.answers[0].role == _TEXT
