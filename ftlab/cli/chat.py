"""A chat on the terminal: a conversation by the network's chat template, answered as the tokens come."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ftlab.cli.adapters import named
from ftlab.cli.answers import Model, Question, Voice
from ftlab.data.records import Message
from ftlab.errors import UserError

HELP = """/reset             begin a new conversation
/adapter           list the adapters
/adapter NAME      have this one answer; the conversation goes on
/adapter NAME=DIR  open one more, of the same base, and have it answer
/set NAME VALUE    temperature, top_p, top_k, seed, max_new_tokens and so on; /set lists them
/exit              end (so do /quit and the end of input)"""


class Chat:
    """A conversation with a model; with several adapters, one with each.

    Args:
        model: Answers.
        open_adapter: Opens one more adapter, by name and directory, and says how it is asked; None where the model was
            not given as adapters.
    """

    def __init__(self, model: Model, open_adapter: Callable[[str, Path], Voice] | None) -> None:
        self._model = model
        self._open = open_adapter
        self._turns: dict[str, tuple[Message, ...]] = {}
        self._said: dict[str, Any] = {}
        """What /set has set, also for adapters that come later."""
        self._commands = {
            "/reset": lambda _: self._turns.clear(),
            "/adapter": self._adapter,
            "/set": self._set,
            "/help": lambda _: print(HELP, flush=True),
        }

    def run(self) -> None:
        """Answers what is typed until it ends. What cannot be done is said in a sentence, and the chat goes on."""
        for line in _lines_of_the_user():
            command, _, rest = line.strip().partition(" ")
            try:
                if command in self._commands:
                    self._commands[command](rest.strip())
                elif command.startswith("/") and command[1:].isalpha():
                    raise UserError(f"there is no {command}: /help lists what there is")
                else:
                    self._answer(line)
            except UserError as error:
                print(f"ftlab: {error}", file=sys.stderr, flush=True)

    def _answer(self, line: str) -> None:
        questions = [Question(line, name, self._before(name)) for name in self._model.chosen]
        for question in questions:
            if why := self._model.why_not(question):
                raise UserError(f"{why}; /reset begins a new conversation" if question.before else why)
        if len(questions) == 1:
            answers = self._model.answers(questions, said=_print_piece)
            print(flush=True)
        else:
            answers = self._model.answers(questions)
            for question, answer in zip(questions, answers, strict=True):
                print(f"{question.adapter}: {answer}", flush=True)
        for question, answer in zip(questions, answers, strict=True):
            if answer.strip():  # a template need not show a turn that says nothing
                self._turns[question.adapter] = (*question.turns, Message("assistant", answer))

    def _before(self, name: str) -> tuple[Message, ...]:
        """What was said: nothing without a chat template, which alone can join turns."""
        return self._turns.get(name, ()) if self._model.voices[name].encoder.chat else ()

    def _adapter(self, word: str) -> None:
        model = self._model
        if not self._open:
            raise UserError("this is a run by itself: ftlab generate --adapter NAME=RUN takes others beside it")
        if not word:
            print(", ".join(model.names), flush=True)
            return
        name = word
        if "=" in word:
            name, directory = named(word, "/adapter")
            voice = self._open(name, directory)
            model.voices[name] = dataclasses.replace(voice, decoding=dataclasses.replace(voice.decoding, **self._said))
        elif name not in model.names:
            raise UserError(f"there is no adapter {name!r}: there are {', '.join(model.names)}")
        if name not in model.chosen:
            self._turns[name] = self._turns.get(model.chosen[0], ())
        model.chosen = [name]

    def _set(self, words: str) -> None:
        voices = self._model.voices
        decoding = voices[self._model.chosen[0]].decoding
        fields = {field.name: field.default for field in dataclasses.fields(decoding)}
        if not words:
            print(", ".join(f"{name} {getattr(decoding, name)}" for name in fields), flush=True)
            return
        name, _, text = words.replace("=", " ").partition(" ")
        if name not in fields:
            raise UserError(f"there is no {name!r} to set: there are {', '.join(fields)}")
        try:
            value = type(fields[name])(text)  # type: ignore[misc]
        except ValueError:
            raise UserError(f"{name} is {text.strip()!r}: give a number") from None
        changed = {mine: dataclasses.replace(voice.decoding, **{name: value}) for mine, voice in voices.items()}
        self._said[name] = value
        for mine, decoded in changed.items():
            voices[mine] = dataclasses.replace(voices[mine], decoding=decoded)


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)


def _lines_of_the_user() -> Iterator[str]:
    """What is typed, until end of file, /exit or /quit."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # one bad byte is one line's, not the end of the chat
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # has input() edit its line
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.split()[:1] in (["/exit"], ["/quit"]):
            return
        if line.strip():
            yield line
