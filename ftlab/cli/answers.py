"""Questions in, answers out: what a saved model is asked, and with which of its adapters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ftlab.data import Encoder
from ftlab.data.records import pair
from ftlab.evaluation.generation import Decoding, generate_all
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
    """A prompt, and the adapter that answers it: empty where there are none."""

    prompt: str
    adapter: str


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
    voices: Mapping[str, Voice]
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

    def answers(self, questions: Sequence[Question]) -> list[str]:
        """The answers, in order."""
        places: dict[str, list[int]] = defaultdict(list)
        for place, question in enumerate(questions):
            places[question.adapter].append(place)
        ids: dict[int, list[int]] = {}
        together: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        mixes = bool(self.adapters and self.adapters.mixes)
        for name, mine in places.items():
            voice = self.voices[name]
            records = [pair(questions[place].prompt, (), "the prompt") for place in mine]
            prompts = voice.encoder.prompts_ids(records, voice.decoding.max_new_tokens)
            ids |= dict(zip(mine, prompts, strict=True))
            # a batch decodes in one way and stops at the same tokens
            alike = (voice.decoding, voice.encoder.stop_ids, voice.encoder.pad_id)
            together[alike if mixes else (*alike, name)] += mine
        tokens: dict[int, list[int]] = {}
        for (decoding, stop_ids, pad_id, *_), mine in together.items():
            prompts, rows = [ids[place] for place in mine], self._rows([questions[place].adapter for place in mine])
            batch = generate_all(self.network, prompts, decoding, stop_ids, pad_id, self.batch_size, rows)
            tokens |= dict(zip(mine, batch, strict=True))
        return [self.voices[question.adapter].encoder.decode(tokens[n]) for n, question in enumerate(questions)]

    def _rows(self, names: Sequence[str]) -> list[str] | None:
        """Switches to the adapter where there is one for all rows; else says which is for which."""
        if not self.adapters:
            return None
        if len(set(names)) > 1:
            return self.adapters.rows(names)
        self.adapters.use(names[0])
        return None
