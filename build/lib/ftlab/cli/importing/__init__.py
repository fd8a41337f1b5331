"""`ftlab import-config FILE`: a configuration of TRL, LLaMA-Factory or Axolotl as one of ftlab's."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from ftlab.cli import VERBS
from ftlab.cli.compose import as_text
from ftlab.cli.importing import axolotl, llama_factory, trl
from ftlab.cli.importing.foreign import NAMES, NO_COUNTERPART, Foreign, Kind, Note, read
from ftlab.cli.sentences import own_parser, parse
from ftlab.errors import UserError
from ftlab.runs import write_atomically

_TRANSLATE: dict[str, Callable[[Foreign], None]] = {
    "trl": trl.translate,
    "llama-factory": llama_factory.translate,
    "axolotl": axolotl.translate,
}
_HEADS: dict[Kind, tuple[str, str]] = {
    "differs": ("maps, and is not the same", "map, and are not the same"),
    "hand": ("must be done by hand",) * 2,
    "none": ("has no counterpart in ftlab", "have no counterpart in ftlab"),
    "ours": ("is ftlab's own way, or is so in any case", "are ftlab's own way, or are so in any case"),
}
"""Of one key, and of several."""
_DESCRIPTION = f"""{VERBS["import-config"]}.

Prints what `ftlab fit -c` trains, or writes it into --out, with the defaults of the tool where they are not ftlab's.
Every key that does not map, or not wholly, is named with the reason, on standard error and as a comment. A key that the
tool does not know is refused. docs/how-to/migrate.md lists what becomes of each key."""


def run(verb: str, arguments: Sequence[str]) -> int:
    """Translates, and prints or writes the result."""
    options = parse(_parser(verb), arguments)
    if options.out and options.out.exists():
        raise UserError(f"{options.out} is there already: give another name, or take it away")
    text, notes = imported(options.file, options.tool)
    for line in notes:
        print(f"ftlab: {line}", file=sys.stderr)
    if options.out is None:
        print(text, end="")
        return 0
    try:
        write_atomically(options.out, text)
    except OSError as error:
        raise UserError(f"{options.out} cannot be written ({error.strerror}): give another place") from error
    print(options.out)
    return 0


def imported(file: Path, name: str | None = None) -> tuple[str, list[str]]:
    """The YAML of a configuration, with its comments, and what must be known of it, a line each.

    Args:
        file: The configuration.
        name: Whose it is; None to tell by its keys.

    Raises:
        UserError: It cannot be read, has a key that is none, or an objective that ftlab has not.
    """
    foreign = read(file, name)
    _TRANSLATE[foreign.tool.name](foreign)
    lines = list(_lines(foreign))
    head = [
        f"From {file.name}, a configuration of {foreign.tool.title} ({', '.join(foreign.tool.packages)}).",
        *lines,
    ]
    return f"{_comments(head)}{as_text(_ordered(foreign.result))}", lines


def _lines(foreign: Foreign) -> Iterator[str]:
    """What must be known, the weightiest first."""
    notes = [*foreign.notes, *foreign.left()]
    for kind in _HEADS:
        for note in notes:
            if note.kind == kind:
                yield _told(foreign, note)
    if idle := foreign.without_effect():
        yield f"{', '.join(idle)} {'says' if len(idle) == 1 else 'say'} nothing, or {foreign.tool.title}'s default"


def _told(foreign: Foreign, note: Note) -> str:
    said = [f"{key}: {foreign.given[key]}" if _short(foreign.given.get(key)) else key for key in note.keys]
    head = f"{', '.join(said)} {_HEADS[note.kind][len(said) > 1]}"
    return head if note.text == NO_COUNTERPART else f"{head}: {note.text}"


def _short(value: object) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) < 40)


def _comments(lines: Sequence[str]) -> str:
    wrapped = [textwrap.wrap(line, 116, subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    return "".join(f"# {line}\n" for lines in wrapped for line in lines)


def _ordered(result: dict[str, object]) -> dict[str, object]:
    parts = ("seed_everything", "seeds", "trainer", "model", "data", "run", "wandb")
    return {part: result[part] for part in parts if part in result}


def _parser(verb: str) -> ArgumentParser:
    parser = own_parser(verb, _DESCRIPTION)
    parser.add_argument("file", type=Path, help="YAML or JSON that the tool trains by")
    parser.add_argument("--from", dest="tool", choices=NAMES, help="whose it is (default: told by its keys)")
    parser.add_argument("--out", "-o", type=Path | None, help="file to write (default: print it)")
    return parser
