"""Chat templates: which one is taken, how it renders a conversation, and where in its text each turn stands.

Turns are placed by the template's structure: a turn begins where the prompt that generation would start from ends, and
ends with its stop token. No role or marker is ever searched for in the contents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from ftlab.data.records import Malformed, Message
from ftlab.errors import UserError

Messages = Sequence[Message]
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a turn stands in the text, its stop token included: characters [start, end)."""

    start: int
    end: int
    learned: bool


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, up to the stop token of its last turn; of its other turns those that were asked for."""

    text: str
    turns: tuple[Turn, ...]


def find_template(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, str] | None:
    """The template's text, and the one for records with tools; None means plain.

    Args:
        tokenizer: Whose own template, or several by name, may be meant.
        template: auto, chat, plain, the name of one of several, or the path of a Jinja file.

    Raises:
        UserError: There is no such template.
    """
    own: Any = tokenizer.chat_template
    if template == "plain" or (template == "auto" and not own):
        return None
    if template in ("auto", "chat"):
        if isinstance(own, dict) and "default" in own:
            return str(own["default"]), str(own.get("tool_use", own["default"]))
        if own and not isinstance(own, dict):
            return own, own
        has = f"several chat templates; name one of {', '.join(own)}" if own else "no chat template; use plain or auto"
        raise UserError(f"data.template: {template}, but the tokenizer {name_of(tokenizer)} has {has}")
    if isinstance(own, dict) and template in own:
        return own[template], own[template]
    try:
        text = Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = [*own, "auto", "chat", "plain"] if isinstance(own, dict) else ["auto", "chat", "plain"]
        raise UserError(
            f"data.template: {template} is neither a Jinja file that can be read ({error}) nor one of "
            f"{', '.join(names)}; correct the path or the name"
        ) from error
    return text, text


class ChatTemplate:
    """Renders conversations and places their turns.

    A template that ignores `add_generation_prompt` but writes a header before the assistant's words has this header
    added to the prompt, so that it is given and not learned.

    Args:
        tokenizer: Gives the special tokens' spelling.
        texts: The template, and the one for records with tools.

    Attributes:
        stop: The token that ends the assistant's turn.
        trial: A short conversation as rendered, with its prompt's length.

    Raises:
        UserError: It cannot render a user's and an assistant's turn, or ends the latter with no special token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: tuple[str, str]) -> None:
        self.texts = texts
        self._name = name_of(tokenizer)
        self._variables: dict[str, Any] = dict(tokenizer.special_tokens_map)
        self._header = ""
        self._used: set[str] = set()
        self._shown: set[tuple[tuple[str, bool], ...]] = set()
        self._learn_structure(tokenizer)

    def prompt(self, context: Messages, tools: Tools, source: str) -> str:
        """The text that generation starts from.

        Raises:
            Malformed: The template fails on it, or leaves a turn out.
        """
        self._check_shown(context, tools, source)
        return self._render(context, tools, source, generation=True) + self._header

    def conversation(self, messages: Messages, marks: Mapping[int, bool], tools: Tools, source: str) -> Rendered | None:
        """Renders a whole conversation and places its last turn and those of `marks`; None where one has no place.

        Args:
            messages: All turns, the answer last.
            marks: Whether a turn is learned, by its index; holds at least the last.
            tools: Functions that may be called.
            source: Where the record stands.

        Raises:
            Malformed: The template fails on it, renders nothing of an answer, or the whole does not begin with its
                prompt.
        """
        last = len(messages) - 1
        start = self.prompt(messages[:last], tools, source)
        whole = self._render(messages, tools, source)
        if not whole.startswith(start):
            raise self._otherwise(source)
        text = whole[: self._turn_end(whole, len(start), source)]
        turns = []
        for index, learned in marks.items():
            if index == last:
                continue
            place = self._place(messages[: index + 1], text, tools, source)
            if place is None:
                return None
            turns.append(Turn(*place, learned))
        return Rendered(text, (*turns, Turn(len(start), len(text), marks[last])))

    def check_used(self, field: str, messages: Messages, tools: Tools, source: str) -> None:
        """Looks, once, whether the template shows the network `tools`, or the `tool_calls` of a message.

        Raises:
            UserError: It renders the same without.
        """
        if field in self._used:
            return
        bare, fewer = list(messages), tools
        if field == "tools":
            fewer = ()
        else:
            bare = [
                replace(message, fields={name: value for name, value in message.fields.items() if name != field})
                for message in messages
            ]
        whole = self._render(messages, tools, source)
        try:
            same = self._call(self.texts[1 if tools else 0], bare, fewer, False) == whole
        except Exception:  # the template is foreign code; one that fails without them uses them
            same = False
        if same:
            raise UserError(
                f"{source} has {field}, but the chat template of {self._name} leaves them out, so the network would "
                f"not see them; set data.template to one that renders {field}"
            )
        self._used.add(field)

    def _check_shown(self, context: Messages, tools: Tools, source: str) -> None:
        """Looks, once for each sequence of roles, whether the template shows what every turn says.

        Many templates know user and assistant alone and go over any other turn without a word.

        Raises:
            Malformed: A turn is not in the text.
        """
        calls = [bool(message.fields.get("tool_calls")) for message in context]
        roles = tuple((message.role, call) for message, call in zip(context, calls, strict=True))
        if roles in self._shown:
            return
        marked = [
            message if call else replace(message, content=f"Turn{place}Mark")
            for place, (message, call) in enumerate(zip(context, calls, strict=True))
        ]
        text = self._render(marked, tools, source, generation=True)
        for place, call in enumerate(calls):
            if not call and f"Turn{place}Mark" not in text:
                raise Malformed(
                    f"{source}: the chat template of {self._name} leaves out messages[{place}], of the role "
                    f"{context[place].role!r}, so the network would not see it; rename the role to one that the "
                    "template knows, or set data.template to one that knows it"
                )
        self._shown.add(roles)

    def _place(self, messages: Messages, text: str, tools: Tools, source: str) -> tuple[int, int] | None:
        """Where the last of these messages stands in `text`, which goes on after it; None where it stands otherwise."""
        upto = self._render(messages, tools, source)
        start = self._opening(messages, tools, source) if messages[-1].role == "assistant" else None
        if start is not None:
            end = self._turn_end(upto, len(start), source)
            found = upto.startswith(start) and text.startswith(upto[:end])
            return (len(start), end) if found else None
        # no prompt ends where it begins: what two other contents leave unchanged is not the content
        others = [self._render([*messages[:-1], replace(messages[-1], content=c)], tools, source) for c in ("A", "B")]
        before = _common(*others)
        after = _common(*(other[::-1] for other in others))[::-1]
        end = len(upto) - len(after)
        if messages[-1].role == "assistant":
            end = self._turn_end(upto, len(before), source)
        else:
            end += next((len(token) for token in self._written if after.startswith(token)), 0)
        return (len(before), end) if upto.startswith(before) and text.startswith(upto[:end]) else None

    def _opening(self, messages: Messages, tools: Tools, source: str) -> str | None:
        """The prompt of the last of these messages; None for a first turn, or where the template refuses one."""
        try:
            return self.prompt(messages[:-1], tools, source) if len(messages) > 1 else None
        except Malformed:
            return None

    def _turn_end(self, text: str, start: int, source: str) -> int:
        """Where the stop token of the turn ends that begins at `start` and is the last of `text`."""
        if text.endswith(self._after_content):
            content_end = len(text) - len(self._after_content)
            end = len(text) - len(self._after_stop)
        else:  # such as a call of a function, which may be closed otherwise
            content_end, end = max((text.rfind(stop), text.rfind(stop) + len(stop)) for stop in self._stops)
            if content_end < start or text[end:].strip():
                raise self._otherwise(source)
        if not text[start:content_end].strip():
            raise Malformed(
                f"{source}: the chat template of {self._name} renders nothing of this answer; mend the record or "
                "the template"
            )
        return end

    def _otherwise(self, source: str) -> Malformed:
        return Malformed(
            f"{source}: the chat template of {self._name} renders this conversation otherwise than its prompt or its "
            "end of turn; set data.template to plain or mend the template"
        )

    def _learn_structure(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Learns from a trial conversation what stands before and after an answer, and its stop token."""
        question, answer = Message("user", "Question"), Message("assistant", "Answer")
        try:
            bare, start = (self._call(self.texts[0], [question], (), generation) for generation in (False, True))
            whole = self._call(self.texts[0], [question, answer], (), False)
        except Exception as error:  # the template is foreign code
            raise UserError(
                f"the chat template of {self._name} fails on a user's and an assistant's turn ({error}); "
                "set data.template to plain or mend the template"
            ) from error
        turn = whole[len(start) :]
        if not whole.startswith(start) or answer.content not in turn:
            raise UserError(
                f"the chat template of {self._name} renders a conversation that does not begin with its own prompt, "
                "or not the assistant's turn; set data.template to plain or mend the template"
            )
        before, self._after_content = turn.rsplit(answer.content, 1)
        if start == bare and before.strip():
            self._header = before
        self.stop = self._find_stop(tokenizer)
        stop = str(tokenizer.convert_ids_to_tokens(self.stop))
        self._after_stop = self._after_content.split(stop, 1)[1]
        self._stops = tuple(dict.fromkeys([stop, tokenizer.eos_token or stop]))
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self._written = sorted((token for token in added if token in whole), key=len, reverse=True)
        self.trial = whole[: len(whole) - len(self._after_stop)], len(start) + len(self._header)

    def _find_stop(self, tokenizer: PreTrainedTokenizerBase) -> int:
        known = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        if self._after_content:
            for token in tokenizer(self._after_content, add_special_tokens=False)["input_ids"]:
                # an unknown token is not spelt out in the text
                if token in known and str(tokenizer.convert_ids_to_tokens(token)) in self._after_content:
                    return int(token)
        raise UserError(
            f"the chat template of {self._name} ends the assistant's turn with {self._after_content!r}, which has no "
            "special token, so no stop could be learned; set data.template to plain or mend the template"
        )

    def _render(self, messages: Messages, tools: Tools, source: str, generation: bool = False) -> str:
        try:
            return self._call(self.texts[1 if tools else 0], messages, tools, generation)
        except Exception as error:  # the template is foreign code: any error is one of the record under this template
            raise Malformed(
                f"{source}: the chat template of {self._name} fails on this conversation ({error}); mend the record "
                "or set data.template to one that knows such conversations"
            ) from error

    def _call(self, template: str, messages: Messages, tools: Tools, generation: bool) -> str:
        chat = [{**message.fields, "role": message.role, "content": message.content} for message in messages]
        # transformers keeps the compiled template; nothing compiled is held here, so that this can be pickled
        texts: Any = render_jinja_template(
            conversations=[[{name: value for name, value in m.items() if value is not None} for m in chat]],
            tools=[dict(tool) for tool in tools] or None,
            chat_template=template,
            add_generation_prompt=generation,
            **self._variables,
        )
        return str(texts[0][0])


def _common(one: str, other: str) -> str:
    """How both begin."""
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """How a tokenizer is called in sentences."""
    return tokenizer.name_or_path or type(tokenizer).__name__
