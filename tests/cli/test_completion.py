"""`ftlab completion`: what a shell offers, in a real bash and in what is left of a zsh without a keyboard."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from written_runs import write_run

from ftlab.cli import VERBS, completion
from ftlab.cli.completion import candidates, read_help

TOP = Path(completion.__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, and a command ftlab in PATH."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "other"):
        write_run(Path("runs/a") / name, [1.0])
    command = tmp_path / "bin/ftlab"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH={TOP} exec {sys.executable} -m ftlab "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ([], [*sorted([*VERBS, "--help", "--version"])]),
        (["sho"], ["show"]),
        (["show", ""], ["runs/a/one", "runs/a/other"]),
        (["show", "runs/a/on"], ["runs/a/one"]),
        (["rm", "runs/a/one", "runs/a/o"], ["runs/a/one", "runs/a/other"]),
        (["ls", "--so"], ["--sort"]),
        (["ls", "--sort", "s"], ["score", "size", "state"]),
        (["ls", "--sort", "=", "d"], ["date"]),
        (["ls", "--sort", "="], ["date", "method", "run", "score", "size", "state"]),
        (["generate", "--adapter", "a", "=", "runs/a/on"], ["runs/a/one"]),
        (["sweep", "st"], ["status", "stop"]),
        (["sweep", "run", "--max"], ["--max-trials", "--max_trials"]),
        (["fit", "--model.method", "Q"], ["QLoRA"]),
        (["fit", "--trainer.max_s"], ["--trainer.max_steps"]),
        (["fit", "--dry"], ["--dry-run"]),
        (["test", "--js"], ["--json"]),
        (["ls", "--verb"], ["--verbose"]),
        (["fit", "-c", ""], []),  # files, by the shell
        (["fly", ""], []),
    ],
)
def test_what_may_follow(words: list[str], offered: list[str], place: Path) -> None:
    assert candidates(words) == offered
    assert candidates(words) == offered  # from the cache


def test_a_home_that_cannot_be_written_does_no_harm(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("")
    monkeypatch.setenv("FTLAB_CACHE", "file/cache")
    assert candidates(["ls", "--js"]) == ["--json"]


def test_a_help_that_was_broken_off_is_not_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("ftlab.cli.main", lambda words: 130)
        assert candidates(["ls", "--js"]) == []
    assert candidates(["ls", "--js"]) == ["--json"]


def test_help_is_read() -> None:
    text = """usage: ftlab x [--a A]

options:
  -h, --help            Show this --not-an-option help.
  -y, --yes             do not ask --either
  --one_two {a,b}, --one-two {a,b}
                        which
  --model.method METHOD
                        How. (known subclasses: ftlab.methods.Full, peft.Other, ftlab.methods.LoRA, default: 1)
"""
    assert read_help(text) == {
        "--help": [],
        "--yes": [],
        "--one_two": ["a", "b"],
        "--one-two": ["a", "b"],
        "--model.method": ["Full", "LoRA"],
    }


def test_tab_in_a_real_bash(place: Path) -> None:
    """Typed at a prompt: a verb, the part of a run's path, an option, its value; run, it does what was completed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(PS1="$ ", TERM="dumb", HISTFILE="/dev/null", COLUMNS="300")
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    said = ""

    def until(text: str) -> None:
        nonlocal said
        end = time.monotonic() + 60
        while text not in said:
            assert select.select([terminal], [], [], max(0, end - time.monotonic()))[0], said
            said += os.read(terminal, 1 << 16).decode()

    try:
        until("$ ")
        os.write(terminal, b"source <(ftlab completion bash); echo rea''dy\n")
        until("ready")
        for typed, completed in (
            (b"ftlab sho\t", "ftlab show "),
            (b"runs/a/on\t", "runs/a/one "),
            (b"--js\t", "--json"),
        ):
            said = ""
            os.write(terminal, typed)
            until(completed.split()[-1])
        said = ""
        os.write(terminal, b"\n")
        until('"experiment": "a"')
    finally:
        os.write(terminal, b"\x03\nexit\n")
        os.close(terminal)
        os.waitpid(pid, 0)


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_the_function_of_zsh_offers_the_same(place: Path) -> None:
    script = """
        compdef() { :; }
        compadd() { print -l "${(@P)2}"; }
        _files() { print files; }
        source <(ftlab completion zsh)
        try() { words=("$@"); CURRENT=$#; _ftlab; }
        try ftlab show runs/a/o
        try ftlab fit -c ''
    """
    done = subprocess.run(["zsh", "-f", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["runs/a/one", "runs/a/other", "files"], done.stderr


def test_nothing_heavy_is_imported_to_complete(place: Path) -> None:
    script = (
        "import sys; from ftlab.cli import main\n"
        "for words in (['sh'], ['show', 'ru'], ['ls', '--s']): assert main(['completion', 'words', *words]) == 0\n"
        "sys.exit(', '.join({'torch', 'lightning', 'transformers', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["show", "runs/a/one", "runs/a/other", "--sort", "--state"]


def test_another_shell_is_refused(ftlab: Callable[..., Any]) -> None:
    assert "fish" in ftlab("completion", "fish").err
