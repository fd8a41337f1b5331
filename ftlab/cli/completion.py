"""`ftlab completion SHELL`: has a shell complete verbs, options, their values, and the directories of runs.

The script that it prints asks `ftlab completion words …` for what may follow. That is told without importing anything
heavy; what options a verb has is read off its help, once for each version of ftlab, and kept in the cache.
"""

from __future__ import annotations

import contextlib
import glob
import io
import itertools
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import ftlab.cli
from ftlab.cli import BESIDE, VERBOSE, VERBS

_DESCRIPTION = f"""{VERBS["completion"]}.

In bash: source <(ftlab completion bash), which ~/.bashrc may do. In zsh the same with zsh, after compinit."""

_BASH = """# completion of ftlab for bash: source <(ftlab completion bash)
_ftlab() {
    local IFS=$'\\n'
    COMPREPLY=($("${COMP_WORDS[0]}" completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o bashdefault -o default -F _ftlab ftlab
"""
_ZSH = """#compdef ftlab
# completion of ftlab for zsh: source <(ftlab completion zsh), after compinit
_ftlab() {
    local -a found
    found=("${(@f)$("${words[1]}" completion words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    if (( ${#found} )); then compadd -a found; else _files; fi
}
compdef _ftlab ftlab
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH}

_OF_RUNS = ("ls", "show", "rm", "generate", "export", "serve", "compare", "diff")
"""Verbs whose words are directories of runs."""
_CONFIGS = ("-c", "--config")
_WORDS_OF_A_VERB = re.compile(r"^usage: ftlab \w+ \[-h\] ([\w-]+(?:\|[\w-]+)+) \.\.\.", re.MULTILINE)
_OPTION = re.compile(r"^  (?:-\w(?: [^\s,]+)?, )?--\S.*$", re.MULTILINE)
_NAME = re.compile(r"(?:^|[ ,])(--[\w.-]+)")
_CHOICES = re.compile(r"\{([^{}]+)\}")
_CLASSES = re.compile(r"known subclasses: ([\w., ]+)")


def run(verb: str, arguments: Sequence[str]) -> int:
    """Prints the script of a shell, or what may follow the words of a command."""
    if arguments and arguments[0] == "words":
        print("".join(f"{word}\n" for word in candidates(arguments[1:])), end="")
        return 0
    from ftlab.cli.sentences import own_parser, parse

    parser = own_parser(verb, _DESCRIPTION)
    parser.add_argument("shell", choices=list(SCRIPTS), help="for which shell")
    print(SCRIPTS[parse(parser, arguments).shell], end="")
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of the words may become; nothing where the shell shall complete files.

    Args:
        words: Of the command, without `ftlab`, as bash divides them: = is a word of its own.
    """
    *before, begun = words or [""]
    if begun == "=":
        before, begun = [*before, "="], ""
    if not before:
        return sorted(verb for verb in [*VERBS, "--help", "--version"] if verb.startswith(begun))
    verb, option = before[0], before[-1]
    if verb not in VERBS or option in _CONFIGS:
        return []
    if option == "=" and len(before) > 2:
        option = before[-2]
    options = _options(tuple(before[:2]) if before[1:] and not before[1].startswith("-") else (verb,))
    if begun.startswith("-"):
        found: Collection[str] = {*options, *BESIDE.get(verb, ()), *VERBOSE}
    elif option.startswith("-") and options.get(option):
        found = options[option]
    elif len(before) == 1 and "" in options:
        found = options[""]
    else:
        return list(_runs(begun)) if verb in _OF_RUNS else []
    return sorted(word for word in found if word.startswith(begun))


def _runs(begun: str) -> Iterator[str]:
    """The directories of runs whose paths begin so."""
    place = glob.escape(begun or "runs/")
    for depth in ("", "*/", "*/*/"):
        yield from sorted(os.path.dirname(found) for found in glob.glob(f"{place}*/{depth}config.yaml"))


def _options(words: tuple[str, ...]) -> Mapping[str, Sequence[str]]:
    """The options of a verb, each with its values where these can be listed; under "" the words that it begins with."""
    place = Path(os.environ.get("FTLAB_CACHE") or Path.home() / ".cache" / "ftlab") / "completion"
    path = place / f"{words[0]}-{_version()}.json"
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text(encoding="utf-8"))
        return known.get(" ".join(words[1:]), known.get("", {}))
    try:
        known = {"": read_help(_help(words[:1]))}
        for word in known[""].get("", ()):
            known[word] = read_help(_help((words[0], word)))
    except _NoHelpError:  # if it were kept, nothing would ever be completed
        return {}
    from ftlab.runs import write_atomically

    with contextlib.suppress(OSError):  # of a home that cannot be written
        write_atomically(path, json.dumps(known))
    return known.get(" ".join(words[1:]), known[""])


def read_help(text: str) -> dict[str, list[str]]:
    """The options that a help lists, and the values of each where it lists them."""
    found: dict[str, list[str]] = {}
    if words := _WORDS_OF_A_VERB.search(text):
        found[""] = words[1].split("|")
    places = [match.start() for match in _OPTION.finditer(text)]
    for start, end in itertools.pairwise([*places, len(text)]):
        head = text[start:end].strip().partition("\n")[0].split("  ")[0]
        values, classes = _CHOICES.search(head), _CLASSES.search(text[start:end])
        listed = values[1].split(",") if values else _own(classes[1]) if classes else []
        found |= dict.fromkeys(_NAME.findall(head), listed)
    return found


def _own(classes: str) -> list[str]:
    """The short names of ftlab's classes."""
    return [path.rsplit(".", 1)[-1] for path in classes.split(", ") if path.startswith("ftlab.")]


class _NoHelpError(Exception):
    pass


def _help(words: tuple[str, ...]) -> str:
    """What `ftlab WORDS --help` prints, unfolded.

    Raises:
        _NoHelpError: It was broken off.
    """
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()):
            code = ftlab.cli.main([*words, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    if code:
        raise _NoHelpError
    return printed.getvalue()


def _version() -> str:
    """Of ftlab, where it is worked on also the time of the last change."""
    files = Path(ftlab.__file__).parent.rglob("*.py")
    return f"{ftlab.__version__}-{int(max(file.stat().st_mtime for file in files))}"
