"""Every command of the documentation is one that ftlab takes: its options parse, its configuration composes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml
from pages import PAGES, commands, filled_in, name, named_files

from ftlab.cli import VERBS, main
from ftlab.cli.experiment import Experiment
from ftlab.cli.importing import imported

WITH_COMMANDS = [page for page in PAGES if commands(page) and page.name != "tutorial.md"]


class Composed(BaseException):
    """A command has been understood."""


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has commands stop where they would begin to do something."""

    def composed(*args: Any, **options: Any) -> None:
        raise Composed

    monkeypatch.setattr(Experiment, "before_instantiate_classes", composed)
    monkeypatch.setattr(jsonargparse.ArgumentParser, "instantiate", composed)


def understood(command: str) -> bool:
    """Whether a command is taken; with a sentence on standard error otherwise."""
    if find_spec("lm_eval") is None:  # it is asked for before the configuration is
        command = re.sub(r" --harness \S+", "", command)
    words = [word for word in shlex.split(filled_in(command), comments=True) if word != ">"]
    if words[0] == "schema":
        words = words[:1]
    try:
        return main(words) == 0  # --help and the like come to their end
    except Composed:
        return True


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_commands_are_understood(
    page: Path, place: Callable[[Path], Path], configuration: str, stopping: None, capfd: pytest.CaptureFixture[str]
) -> None:
    here = place(page)
    found = list(dict.fromkeys(commands(page)))
    for word in re.findall(r"runs/\S+\.yaml", " ".join(map(filled_in, found))):
        (here / word).parent.mkdir(parents=True, exist_ok=True)
        (here / word).write_text(configuration)
    for file, out in re.findall(r"import-config (\S+) -o (\S+)", " ".join(found)):
        (here / out).write_text(imported(here / file)[0])
    wrong = {command: capfd.readouterr().err for command in found if not understood(command)}
    assert wrong == {}


def test_there_are_commands_of_all_that_is_done_daily() -> None:
    words = {command.split()[0] for page in PAGES for command in commands(page)}
    assert words <= set(VERBS)
    assert words >= {"fit", "test", "prepare", "plan", "compare", "export", "generate", "sweep", "diff", "check-method"}


@pytest.mark.parametrize("page", [page for page in PAGES if named_files(page)], ids=name)
def test_files_that_pages_show_are_yaml(page: Path) -> None:
    for file, text in named_files(page).items():
        if file.endswith(".py"):
            compile(text, file, "exec")
        else:
            assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("page", ["how-to/own-metric.md", "how-to/own-objective.md"])
def test_pages_that_stand_alone_run(page: str, place: Callable[[Path], Path]) -> None:
    path = next(found for found in PAGES if name(found) == f"docs/{page}")
    here = place(path)
    for command in commands(path):
        assert main([*shlex.split(command), "--trainer.accelerator", "cpu"]) == 0, command
    assert list((here / "runs").glob("*/first/model/*.safetensors"))
    if page == "how-to/own-metric.md":
        assert "test_length_ratio" in (here / "runs/measured/first/scores.json").read_text()
