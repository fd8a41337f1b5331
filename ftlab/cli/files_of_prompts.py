"""A file of prompts and the file of their answers: in batches, with progress, and again from where it was killed."""

from __future__ import annotations

import codecs
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftlab.cli.answers import Model, Question
from ftlab.errors import UserError
from ftlab.progress import Progress
from ftlab.runs.files import sync_directory

_BATCHES = 8
"""Answered between two writes: as many are put into order by their lengths, so that batches hold little padding."""


@dataclass(frozen=True)
class Row:
    """A prompt of a file, where it stands, and the adapter that it names."""

    line: int
    prompt: str
    adapter: str | None


def answer_file(model: Model, path: Path, to: Path | None, identity: Mapping[str, Any]) -> int:
    """Answers every prompt of a file, in order; lines that cannot be answered are said and left out.

    Args:
        model: Answers.
        path: The prompts.
        to: Where the answers go; None for standard output.
        identity: What decides the answers: a file that was begun by another is not gone on with.

    Returns:
        How many lines were left out.

    Raises:
        UserError: The file cannot be read, or `to` is not what this command has begun.
    """
    rows, unusable = read_rows(path, model.names)
    questions = []
    for row in rows:
        mine = model.questions(row.prompt, row.adapter)
        if why := next(filter(None, map(model.why_not, mine)), None):
            unusable.append((row.line, why))
        else:
            questions += mine
    for line, why in sorted(unusable):
        print(f"ftlab: {path}, line {line}, is left out: {why}", file=sys.stderr)
    if to is None:
        for text in _answered(model, questions, 0, shown=not sys.stdout.isatty()):
            print(text, end="", flush=True)
    else:
        _write(to, model, questions, identity)
    return len(unusable)


def read_rows(path: Path, adapters: Sequence[str]) -> tuple[list[Row], list[tuple[int, str]]]:
    """The prompts of a file, and the numbers of lines that hold none, each with the reason.

    Raises:
        UserError: It cannot be read or holds no prompts.
    """
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"--file: {path} cannot be read ({error})") from error
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"--file: {path} holds no prompts")
    rows, unusable = [], []
    for number, line in lines:
        try:
            text = line.decode()
            row = json.loads(text) if path.suffix == ".jsonl" else {"prompt": text.rstrip("\r")}
        except UnicodeDecodeError:
            unusable.append((number, "it is not UTF-8"))
            continue
        except (ValueError, RecursionError):  # no JSON, too many digits, too many brackets
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            unusable.append((number, "it is no JSON object with a `prompt`"))
            continue
        adapter = row.get("adapter")
        if adapter is not None and adapter not in adapters:
            there = f"there are {', '.join(adapters)}" if adapters else "none is given, see --adapter"
            unusable.append((number, f"there is no adapter {adapter!r}: {there}"))
            continue
        rows.append(Row(number, row["prompt"], adapter))
    return rows, unusable


def _answered(model: Model, questions: Sequence[Question], done: int, shown: bool = True) -> Generator[str, None, None]:
    """The lines of the answers from the one of number `done` on, some at a time.

    What is answered together does not depend on where it was begun, or sampled answers would.
    """
    together = model.batch_size * _BATCHES
    with Progress("answering", "prompts", len(questions), done, shown=shown) as bar:
        for start in range(done // together * together, len(questions), together):
            mine = questions[start : start + together]
            lines = [_line(model, *each) for each in zip(mine, model.answers(mine, start), strict=True)]
            yield "".join(lines[max(0, done - start) :])
            bar.advance(start + len(mine) - max(done, start))


def _line(model: Model, question: Question, answer: str) -> str:
    adapter = {"adapter": question.adapter} if model.adapters else {}
    return json.dumps({"prompt": question.prompt, **adapter, "prediction": answer}, ensure_ascii=False) + "\n"


def refuse_existing(to: Path) -> None:
    """Refuses to write answers over anything."""
    if to.exists():
        raise UserError(f"--to: {to} exists: give a new file, or delete it")


def _write(to: Path, model: Model, questions: Sequence[Question], identity: Mapping[str, Any]) -> None:
    """Writes beside `to`, which appears when all is answered; goes on with what a killed process has left there."""
    refuse_existing(to)
    asked = [[question.prompt, question.adapter] for question in questions]
    said = json.dumps([identity, asked, model.batch_size], sort_keys=True, default=str)
    part = to.with_name(f".{to.name}.{hashlib.blake2b(said.encode(), digest_size=8).hexdigest()}.part")
    to.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--to: another process is answering into {to}: wait for it to end") from None
        file.seek(0)
        whole = file.read().rpartition(b"\n")
        file.truncate(len(whole[0]) + len(whole[1]))  # a line that was cut off by a kill is answered again
        done = whole[0].count(b"\n") + bool(whole[1])
        if done:
            print(f"ftlab: going on after {done:,} answers of {len(questions):,}", file=sys.stderr)
        try:
            with closing(_answered(model, questions, done)) as answered:
                for text in answered:
                    file.write(text.encode())
                    file.flush()
                    os.fsync(file.fileno())
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "stopped by the user; the answers so far are kept, and the same command goes on"
            ) from None
        part.replace(to)  # while nobody else can take it for what is to be gone on with
    sync_directory(to.parent)
    print(f"ftlab: wrote {to}", file=sys.stderr)
