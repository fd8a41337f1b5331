"""`ftlab check-method`: a user's file, its options, a table, and the exit code."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftlab.networks import Network

FILE = '''
"""Methods of somebody's own."""

from ftlab.methods import Full, ZeroShot


class Last(Full):
    """Trains the last norm.

    Args:
        factor: Multiplies it at the start.
    """

    bases = frozenset({"full"})

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__(["model.norm.weight"])
        self.factor = factor

    def adapt(self, network, batches=None):
        network.get_parameter("model.norm.weight").data.mul_(self.factor)
        return super().adapt(network)


class Half(ZeroShot):
    """The baseline, in a half."""
'''


@pytest.fixture
def mine(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """mine.py in the working directory."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("mine", None)  # of another test
    (workplace / "mine.py").write_text(FILE)
    yield workplace / "mine.py"
    sys.modules.pop("mine", None)


def rows(out: str) -> dict[str, str]:
    """Checks and how they ended."""
    words = [line.split() for line in out.splitlines()]
    return {line[0]: line[2] for line in words if len(line) > 2 and line[1] == "full"}


def test_a_sound_method_of_a_file_passes(mine: Path, network: Network, ftlab: Callable[..., Any]) -> None:
    answer = ftlab("check-method", "mine.py:Last", "--network.path", network.path, "--parameters", 64)
    assert (answer.code, answer.err) == (0, "")
    assert set(rows(answer.out).values()) == {"passed"}
    assert answer.out.splitlines()[-1] == "Last: 13 passed"


def test_a_broken_one_fails_and_says_why(mine: Path, network: Network, ftlab: Callable[..., Any]) -> None:
    options = ["--method.factor", "1.5", "--network.path", network.path]
    answer = ftlab("check-method", "mine.py:Last", *options)
    assert answer.code == 1
    assert rows(answer.out)["identity"] == "failed"
    assert "before the first step a logit differs" in " ".join(answer.out.split())


@pytest.mark.parametrize("name", ["mine.Half", "ZeroShot"])
def test_dotted_paths_and_short_names_do_too(
    name: str, mine: Path, network: Network, ftlab: Callable[..., Any]
) -> None:
    answer = ftlab("check-method", name, "--network.path", network.path)
    assert answer.code == 0
    assert rows(answer.out)["resume"] == "not"


def test_help_shows_the_docstring_and_the_options(mine: Path, ftlab: Callable[..., Any]) -> None:
    out = " ".join(ftlab("check-method", "mine.py:Last", "--help").out.split())
    assert "Trains the last norm." in out
    assert "--method.factor FACTOR Multiplies it at the start." in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which method? give it first, as in ftlab check-method my.py:MyMethod --method.r 4"),
        (["yours.py:Last"], "there is no file yours.py: give my.py:MyMethod, or the dotted path of a class"),
        (["mine.py:Lats"], "mine.py:Lats: there is no method Lats; there are Last, Half"),
        (["LoRAa"], "LoRAa: there is no method LoRAa; there are"),
        (["json.JSONDecoder"], "there is no method JSONDecoder"),
        (["mine.py:Last", "--method.fcator", "2"], "there is no key method.fcator: did you mean method.factor?"),
        (["mine.py:Last", "--method.factor", "much"], "method.factor is much: it must be a number"),
        (["mine.py:Last", "--bases", "[nf4]"], "Last declares the bases full, and nf4 is none of them"),
        (["mine.py:Last", "--step", "2"], "there is no option --step: did you mean --steps?"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], said: str, mine: Path, refused: Callable[..., str]) -> None:
    assert said in refused("check-method", *words)


def test_a_file_that_cannot_be_imported_is_refused(mine: Path, refused: Callable[..., str]) -> None:
    mine.write_text("import nothing_of_that_name\n")
    sentence = refused("check-method", "mine.py:Last")
    assert sentence == "mine.py cannot be imported (ModuleNotFoundError: No module named 'nothing_of_that_name')"


def test_a_file_with_the_name_of_a_module_is_refused(mine: Path, refused: Callable[..., str]) -> None:
    mine.rename("json.py")
    assert "json.py has the name of the module json, which is imported already" in refused("check-method", "json.py:A")
