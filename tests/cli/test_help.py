"""What ftlab says of itself, and how fast: before a verb is known, nothing heavy is imported."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ftlab import __version__
from ftlab.cli import VERBS, main
from ftlab.errors import UserError


def test_help_lists_every_verb(ftlab: Callable[..., Any]) -> None:
    answer = ftlab("--help")
    assert answer.code == 0
    assert set(VERBS) >= {"fit", "validate", "test", "predict", "generate", "export"}
    assert [line.split()[0] for line in answer.out.splitlines() if line.startswith("  ")] == list(VERBS)


def test_help_of_a_fresh_process_imports_neither_torch_nor_lightning() -> None:
    code = (
        "import runpy, sys; sys.argv = ['ftlab', '--help']\n"
        "try: runpy.run_module('ftlab', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print('heavy:', sorted({'torch', 'lightning', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert "predict" in done.stdout


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "ftlab", "fly"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown verb 'fly'" in done.stderr


def test_an_unknown_verb_is_refused_with_those_there_are(refused: Callable[..., str]) -> None:
    sentence = refused("fti")
    assert all(verb in sentence for verb in ("fti", *VERBS))


def test_no_verb_is_an_error(ftlab: Callable[..., Any]) -> None:
    answer = ftlab()
    assert answer.code == 2
    assert "usage: ftlab" in answer.out


@pytest.mark.parametrize(
    "words", [("-v", "show", "nowhere"), ("show", "-v", "nowhere"), ("show", "nowhere", "--verbose")], ids=" ".join
)
def test_the_whole_trace_is_shown_where_it_is_asked_for(words: Sequence[str]) -> None:
    with pytest.raises(UserError, match="nowhere"):
        main(words)


def test_it_is_a_sentence_where_it_is_not(refused: Callable[..., str]) -> None:
    assert "nowhere" in refused("show", "nowhere")


def test_completion_is_given_words_as_they_are(ftlab: Callable[..., Any]) -> None:
    assert ftlab("completion", "words", "-v") == ftlab("completion", "words", "-nothing-begins-so")


def test_version(ftlab: Callable[..., Any]) -> None:
    assert ftlab("--version").out == f"ftlab {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(verb: str, ftlab: Callable[..., Any]) -> None:
    answer = ftlab(verb, "--help")
    assert answer.code == 0
    assert answer.out.split()[:3] == ["usage:", "ftlab", verb]
    assert answer.err == ""
