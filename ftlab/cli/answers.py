"""Questions in, answers out: what a saved model is asked, and with which of its adapters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers.generation.streamers import BaseStreamer

from ftlab.data import Encoder
from ftlab.data.records import Message, Record
from ftlab.errors import UserError
from ftlab.evaluation.generation import Decoding, context_of, generate_all, no_room
from ftlab.methods.adapters import Adapters


@dataclass(frozen=True)
class Voice:
    """How a model is asked.

    Args:
        encoder: Renders prompts, and reads answers.
        decoding: How the next token is chosen.
    """

    encoder: Encoder
    decoding: Decoding


@dataclass(frozen=True)
class Question:
    """A prompt, and the adapter that answers it: empty where there are none.

    Args:
        prompt: What is asked.
        adapter: Its name.
        before: The turns of the conversation before it.
    """

    prompt: str
    adapter: str
    before: tuple[Message, ...] = ()

    @property
    def turns(self) -> tuple[Message, ...]:
        """The conversation up to here."""
        return (*self.before, Message("user", self.prompt))


@dataclass
class Model:
    """What answers.

    Args:
        network: Has all adapters.
        voices: How each adapter is asked, by its name; without adapters, one of the name "".
        chosen: The adapters that answer where none is named.
        adapters: Switches them.
        batch_size: Prompts answered at once.
    """

    network: nn.Module
    voices: dict[str, Voice]
    chosen: list[str]
    adapters: Adapters | None
    batch_size: int

    @property
    def names(self) -> list[str]:
        """All adapters."""
        return self.adapters.names if self.adapters else []

    def questions(self, prompt: str, adapter: str | None = None) -> list[Question]:
        """One for each adapter that is to answer."""
        return [Question(prompt, name) for name in ([adapter] if adapter else self.chosen)]

    def say(self, prompt: str) -> None:
        """Prints the answer; of several adapters, each behind its name."""
        questions = self.questions(prompt)
        for question, answer in zip(questions, self.answers(questions), strict=True):
            print(f"{question.adapter}: {answer}" if len(questions) > 1 else answer, flush=True)

    def prompts_ids(self, questions: Sequence[Question]) -> list[list[int]]:
        """What generation starts from, (length,) for each question.

        Raises:
            UserError: A prompt is no text, or leaves no room for an answer.
        """
        for question in questions:
            if not _is_text(question.prompt):
                raise UserError("the prompt is no text: it holds bytes or halves of characters that UTF-8 has not")
        ids: dict[int, list[int]] = {}
        for name, mine in _places(questions).items():
            voice = self.voices[name]
            records = [Record(questions[place].turns, (), "the prompt") for place in mine]
            prompts = voice.encoder.prompts_ids(records, voice.decoding.max_new_tokens)
            ids |= dict(zip(mine, prompts, strict=True))
        return [ids[place] for place in range(len(questions))]

    def why_not(self, question: Question) -> str | None:
        """Why a question cannot be answered, in a sentence; None where it can be."""
        try:
            (ids,) = self.prompts_ids([question])
        except UserError as error:
            return str(error)
        context = context_of(self.network)
        return no_room(len(ids), context) if len(ids) >= context else None

    def answers(
        self, questions: Sequence[Question], place: int = 0, said: Callable[[str], None] | None = None
    ) -> list[str]:
        """The answers, in order.

        Args:
            questions: What is asked.
            place: Of the first among all that will be asked: sampling draws otherwise for each.
            said: Is given the text of the answer to a single question as it comes.
        """
        ids = self.prompts_ids(questions)
        together: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        mixes = bool(self.adapters and self.adapters.mixes)
        for name, mine in _places(questions).items():
            voice = self.voices[name]
            # a batch decodes in one way and stops at the same tokens
            alike = (voice.decoding, voice.encoder.stop_ids, voice.encoder.pad_id)
            together[alike if mixes else (*alike, name)] += mine
        first, streamer = self.voices[questions[0].adapter], None
        if said and first.decoding.num_beams == 1:  # of several, the best is known at the end
            streamer = _Pieces(first.encoder, said)
        tokens: dict[int, list[int]] = {}
        for (decoding, stop_ids, pad_id, *_), mine in together.items():
            prompts, rows = [ids[number] for number in mine], self._rows([questions[n].adapter for n in mine])
            drawn = replace(decoding, seed=decoding.seed + place)
            batch = generate_all(
                self.network, prompts, drawn, stop_ids, pad_id, self.batch_size, rows, streamer=streamer
            )
            tokens |= dict(zip(mine, batch, strict=True))
        answers = [self.voices[question.adapter].encoder.decode(tokens[n]) for n, question in enumerate(questions)]
        if said and not streamer:
            said(answers[0])
        return answers

    def _rows(self, names: Sequence[str]) -> list[str] | None:
        """Switches to the adapter where there is one for all rows; else says which is for which."""
        if not self.adapters:
            return None
        if len(set(names)) > 1:
            return self.adapters.rows(names)
        self.adapters.use(names[0])
        return None


def _is_text(string: str) -> bool:
    """Whether UTF-8 can write it: no lone half of a surrogate pair, which JSON can name and bytes are read as."""
    try:
        string.encode()
    except UnicodeEncodeError:
        return False
    return True


def _places(questions: Sequence[Question]) -> Mapping[str, list[int]]:
    """The numbers of each adapter's questions."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        places[question.adapter].append(place)
    return places


class _Pieces(BaseStreamer):
    """Text as its tokens come, a character that wants more tokens held back.

    Args:
        encoder: Reads them.
        said: Is given each piece.
    """

    def __init__(self, encoder: Encoder, said: Callable[[str], None]) -> None:
        self._encoder, self._said = encoder, said
        self._tokens: list[int] | None = None
        self._length = 0

    def put(self, value: Tensor) -> None:
        if self._tokens is None:  # the prompt
            self._tokens = []
            return
        self._tokens += value.flatten().tolist()
        self._pass_on(self._encoder.decode(self._tokens), whole=False)

    def end(self) -> None:
        self._pass_on(self._encoder.decode(self._tokens or []), whole=True)

    def _pass_on(self, text: str, whole: bool) -> None:
        if whole or not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._said(text[self._length :])
            self._length = len(text)
