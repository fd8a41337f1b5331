"""From text to token ids and label masks: what the network reads, and which of it is learned.

Learned are the response and the stop token after it, nothing else. Every example begins with exactly the ids that
generation starts from, so training and generation see the same prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase

from ftlab.errors import UserError

IGNORED = -100  # what torch's cross entropy leaves out

TemplateKind = Literal["auto", "chat", "plain"]
Overflow = Literal["refuse", "drop", "truncate"]


class Pair(NamedTuple):
    """A prompt, the response to learn, and where they stand."""

    prompt: str
    response: str
    source: str


@dataclass(frozen=True)
class Example:
    """One sample as the network sees it.

    Args:
        input_ids: Prompt, response and stop token, (length,).
        labels: The same ids on response and stop token, -100 on the prompt, (length,). Not shifted.
    """

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Encoded:
    """The examples of many pairs.

    Args:
        examples: One for each pair, in order; None where the pair was too long and `overflow` is drop.
        truncated: How many prompts were cut to fit.
    """

    examples: list[Example | None]
    truncated: int

    @property
    def kept(self) -> list[Example]:
        """The examples without the gaps."""
        return [example for example in self.examples if example is not None]

    @property
    def dropped(self) -> int:
        """How many pairs were left out."""
        return len(self.examples) - len(self.kept)


class Encoder:
    """Encodes prompts and responses for one tokenizer.

    Plain: prompt and response are tokenised each by itself, the tokenizer's end-of-text token is the stop token. Chat:
    both are rendered by the tokenizer's chat template, and the stop token is the special token that ends the
    assistant's turn. Whether there is a beginning-of-text token is the tokenizer's (plain) or the template's (chat)
    choice, as in transformers; there is never more than one.

    Args:
        tokenizer: Of the network that will be trained.
        template: auto takes the chat template where the tokenizer has one.
        max_length: Most tokens of an example, stop token included; None for no limit.
        overflow: What becomes of a longer one: refuse raises, drop leaves it out, truncate cuts the front of the
            prompt (after the beginning-of-text token) and leaves the response whole.

    Attributes:
        stop_ids: Tokens at which generation ends; the first is the trained one.
        pad_id: Fills batches up; masked by position, so it may be any token.

    Raises:
        UserError: The tokenizer has no end-of-text token (plain), or no template or one that ends no turn (chat).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: TemplateKind = "auto",
        max_length: int | None = None,
        overflow: Overflow = "refuse",
    ) -> None:
        self._tokenizer = tokenizer
        self._name = tokenizer.name_or_path or type(tokenizer).__name__
        self._overflow = overflow
        self.max_length = max_length
        self.chat = template == "chat" or (template == "auto" and bool(tokenizer.chat_template))
        self._prefix = self._find_prefix()
        self._after_response = ""
        self._after_stop = ""
        stop = self._find_turn_end() if self.chat else self._end_of_text()
        end = tokenizer.eos_token_id
        self.stop_ids: tuple[int, ...] = (stop,) if end is None or end == stop else (stop, end)
        choices = (tokenizer.pad_token_id, tokenizer.unk_token_id, end, stop)
        self.pad_id: int = next(token for token in choices if token is not None)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids that generation starts from, (length,); uncut, whatever `max_length` says."""
        return self._whole_prompts([prompt])[0]

    def prompts_ids(self, prompts: Sequence[str], room: int = 0) -> list[list[int]]:
        """`prompt_ids` of many; with `overflow` truncate, cut so that `room` tokens more fit into `max_length`.

        Raises:
            UserError: `room` leaves none for a prompt that has to be cut.
        """
        whole = self._whole_prompts(prompts)
        if self.max_length is None or self._overflow != "truncate":
            return whole
        length = self.max_length - room
        if length <= len(self._prefix):
            raise UserError(
                f"to generate {room} tokens leaves no room for a prompt where data.max_length allows "
                f"{self.max_length}; generate fewer"
            )
        return [ids if len(ids) <= length else self._cut(ids, length) for ids in whole]

    def encode(self, prompt: str, response: str, source: str) -> Example | None:
        """Encodes one pair; None where it is too long and `overflow` is drop.

        Raises:
            UserError: As `encode_all`.
        """
        return self.encode_all([Pair(prompt, response, source)]).examples[0]

    def encode_all(self, pairs: Iterable[Pair]) -> Encoded:
        """Encodes many pairs.

        Raises:
            UserError: A response is empty, so that nothing would be learned; the chat template does not render it; or
                a pair is too long and `overflow` is refuse (the first is named, and how many there are), or truncate
                and the response alone fills `max_length`.
        """
        pairs = list(pairs)
        for pair in pairs:
            if not pair.response.strip():
                raise UserError(
                    f"{pair.source}: the response is empty, so nothing would be learned; mend it or leave it out"
                )
        unique = list(dict.fromkeys(pair.prompt for pair in pairs))  # rows often share a prompt
        prompts = dict(zip(unique, self._whole_prompts(unique), strict=True))
        heads = [prompts[pair.prompt] for pair in pairs]
        tails = self._turns(pairs, unique, heads) if self.chat else self._responses(pairs)
        return self._fit(pairs, heads, tails)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of generated ids up to the first stop token, special tokens left out."""
        kept: list[int] = []
        for token in map(int, ids):
            if token in self.stop_ids:
                break
            kept.append(token)
        return str(self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _fit(self, pairs: list[Pair], heads: list[list[int]], tails: list[list[int]]) -> Encoded:
        """Joins prompts and responses and holds them to `max_length`."""
        limit = self.max_length
        lengths = [len(head) + len(tail) for head, tail in zip(heads, tails, strict=True)]
        too_long = [place for place, length in enumerate(lengths) if limit is not None and length > limit]
        if too_long and self._overflow == "refuse":
            first = too_long[0]
            raise UserError(
                f"{pairs[first].source} takes {lengths[first]} tokens where data.max_length allows {limit}, and "
                f"{len(too_long)} of {len(pairs)} are too long; shorten them, raise data.max_length as far as the "
                "network's context goes, or set data.overflow to truncate or drop"
            )
        examples: list[Example | None] = [
            _example(head, tail, pair) for pair, head, tail in zip(pairs, heads, tails, strict=True)
        ]
        if limit is None or self._overflow == "drop":
            for place in too_long:
                examples[place] = None
            return Encoded(examples, truncated=0)
        for place in too_long:
            pair, head, tail = pairs[place], heads[place], tails[place]
            if limit - len(tail) <= len(self._prefix):
                raise UserError(
                    f"{pair.source}: the response alone takes {len(tail)} tokens where data.max_length allows {limit}, "
                    "so no cut of the prompt makes room; shorten it or set data.overflow to drop"
                )
            examples[place] = _example(self._cut(head, limit - len(tail)), tail, pair)
        return Encoded(examples, truncated=len(too_long))

    def _cut(self, prompt: list[int], length: int) -> list[int]:
        """The last `length` ids of the prompt, of which the first stay what must lead it."""
        lead = self._prefix if _starts(prompt, self._prefix) else []
        return lead + prompt[len(prompt) - length + len(lead) :]

    def _whole_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        if self.chat:
            return self._tokenize(self._openings(prompts))
        plain = self._tokenize(prompts)
        # a prompt that spells the beginning-of-text token out gets no second one
        return [ids if _starts(ids, self._prefix) else self._prefix + ids for ids in plain]

    def _responses(self, pairs: list[Pair]) -> list[list[int]]:
        """Plain responses, each with one stop token, also where the text already ends in it."""
        stop = self.stop_ids[0]
        responses = self._tokenize([pair.response for pair in pairs])
        return [ids if ids[-1:] == [stop] else [*ids, stop] for ids in responses]

    def _turns(self, pairs: list[Pair], unique: list[str], prompts: list[list[int]]) -> list[list[int]]:
        """Assistant turns up to and with the stop token: what follows the prompt's ids in the whole conversation."""
        openings = dict(zip(unique, self._openings(unique), strict=True))
        starts = [openings[pair.prompt] for pair in pairs]
        wholes = self._render([[_user(pair.prompt), _assistant(pair.response)] for pair in pairs], generation=False)
        texts = []
        for pair, start, whole in zip(pairs, starts, wholes, strict=True):
            if not whole.startswith(start) or not whole.endswith(self._after_response):
                raise UserError(
                    f"{pair.source}: the chat template of {self._name} renders this conversation otherwise than its "
                    "prompt or its end of turn; set data.template to plain or mend the template"
                )
            texts.append(whole[: len(whole) - len(self._after_stop)])
        turns = []
        for pair, start, text, prompt, ids in zip(pairs, starts, texts, prompts, self._tokenize(texts), strict=True):
            turn = ids[len(prompt) :] if _starts(ids, prompt) else self._turn_alone(text, start, prompt, ids, pair)
            turns.append(turn)
        return turns

    def _turn_alone(self, text: str, start: str, prompt: list[int], ids: list[int], pair: Pair) -> list[int]:
        """The turn tokenised by itself, for a response whose first characters merge with the prompt's last.

        Generation starts from the prompt's ids, so these must stay as they are; the text must stay the same too.
        """
        (turn,) = self._tokenize([text[len(start) :]])
        if self._tokenizer.decode(prompt + turn) != self._tokenizer.decode(ids):
            raise UserError(
                f"{pair.source}: the tokenizer {self._name} joins the end of the prompt with the start of the "
                "response, so the conversation does not begin with the prompt's ids; change how the response begins"
            )
        return turn

    def _find_prefix(self) -> list[int]:
        """What the tokenizer itself sets before a text: the beginning-of-text token, or nothing.

        Found by comparing, since tokenizers with such a token need not use it, and some append an end that a prompt
        must not have.
        """
        probe = "a"
        bare = self._tokenize([probe])[0]
        full: list[int] = self._tokenizer(probe, verbose=False)["input_ids"]
        start = next((start for start in range(len(full)) if _starts(full[start:], bare)), 0)
        return full[:start]

    def _end_of_text(self) -> int:
        end = self._tokenizer.eos_token_id
        if end is None:
            raise UserError(
                f"the tokenizer {self._name} has no end-of-text token, so no stop could be learned; "
                "set eos_token in its tokenizer_config.json"
            )
        return end

    def _find_turn_end(self) -> int:
        """Learns from a trial conversation what the template puts after a response, and its stop token."""
        if not self._tokenizer.chat_template:
            raise UserError(
                f"data.template: chat, but the tokenizer {self._name} has no chat template; use plain or auto"
            )
        question, answer = "Question", "Answer"
        (start,) = self._render([[_user(question)]], generation=True)
        (whole,) = self._render([[_user(question), _assistant(answer)]], generation=False)
        turn = whole[len(start) :]
        if not whole.startswith(start) or answer not in turn:
            raise UserError(
                f"the chat template of {self._name} renders a conversation that does not begin with its own prompt, "
                "or not the assistant's turn; set data.template to plain or mend the template"
            )
        self._after_response = turn[turn.rindex(answer) + len(answer) :]
        known = set(self._tokenizer.all_special_ids) | set(self._tokenizer.added_tokens_decoder)
        if self._after_response:
            for token in self._tokenize([self._after_response])[0]:
                text = str(self._tokenizer.convert_ids_to_tokens(token))
                if token in known and text in self._after_response:  # an unknown token is not spelt out in the text
                    self._after_stop = self._after_response.split(text, 1)[1]
                    return token
        raise UserError(
            f"the chat template of {self._name} ends the assistant's turn with {self._after_response!r}, which has no "
            "special token, so no stop could be learned; set data.template to plain or mend the template"
        )

    def _openings(self, prompts: Sequence[str]) -> list[str]:
        return self._render([[_user(prompt)] for prompt in prompts], generation=True)

    def _render(self, conversations: list[list[dict[str, str]]], generation: bool) -> list[str]:
        if not conversations:
            return []
        try:
            texts: Any = self._tokenizer.apply_chat_template(
                conversations, add_generation_prompt=generation, tokenize=False
            )
        except jinja2.TemplateError as error:
            raise UserError(
                f"the chat template of {self._name} fails on a user's and an assistant's turn ({error}); "
                "set data.template to plain or mend the template"
            ) from error
        return texts

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text and nothing else; the length is judged in `_fit`, not warned about here."""
        if not texts:
            return []
        options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        ids: Any = self._tokenizer(list(texts), verbose=False, **options)["input_ids"]
        return ids


def _example(prompt: list[int], response: list[int], pair: Pair) -> Example:
    example = Example(prompt + response, [IGNORED] * len(prompt) + response)
    if all(label == IGNORED for label in example.labels[1:]):  # the first label has nothing to be predicted from
        raise UserError(f"{pair.source}: no token of the response would be learned; mend it or leave it out")
    return example


def _starts(ids: list[int], beginning: list[int]) -> bool:
    return ids[: len(beginning)] == beginning


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
