"""A place to give commands in, what they answer, and runs that have come to their end."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_experiment import write_experiment

from ftlab.cli import main
from ftlab.networks import Network

METHODS = {"full": "Full", "lora": "LoRA", "qlora": "QLoRA", "zeroshot": "ZeroShot"}


@dataclass
class Answer:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def ftlab(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Gives a command in this process."""

    def command(*words: object) -> Answer:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Answer(code, *capfd.readouterr())

    return command


@pytest.fixture
def refused(ftlab: Callable[..., Answer]) -> Callable[..., str]:
    """Gives a command that must be refused: not 0, one sentence, no run. Returns the sentence."""

    def command(*words: object) -> str:
        before = runs()
        answer = ftlab(*words)
        assert answer.code not in (0, None)
        assert answer.out == ""
        assert answer.err.startswith("ftlab: ")
        assert answer.err.count("\n") == 1, answer.err
        assert runs() == before
        return answer.err.removeprefix("ftlab: ").rstrip("\n")

    def runs() -> list[Path]:
        return sorted(Path("runs").glob("*/*"))

    return command


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network, data_path: str) -> Path:
    """The working directory, with an experiment of four steps in tiny.yaml."""
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path, network, data_path)
    return tmp_path


@pytest.fixture
def write_lines() -> Callable[[Path, list[Any]], Path]:
    """Writes a JSONL file."""

    def write(path: Path, rows: list[Any]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory, network: Network, data_path: str) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(method: str) -> Path:
        if method not in made:
            place = tmp_path_factory.mktemp(method)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(place)
                write_experiment(place, network, data_path)
                assert main(["fit", "-c", "tiny.yaml", "--model.method", METHODS[method], "--run.name", method]) == 0
            made[method] = place / "runs" / "tiny" / method
        return made[method]

    return make


@pytest.fixture
def finished(_finished: Callable[[str], Path], workplace: Path) -> Callable[[str], Path]:
    """The directory of a finished run of one of METHODS, in the working directory: a copy, to do with as one likes."""

    def copy(method: str) -> Path:
        directory = Path("runs") / "tiny" / method
        if not directory.exists():
            shutil.copytree(_finished(method), directory, symlinks=True)
        return directory

    return copy


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Lightning leaves SIGINT ignored once it has been interrupted."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def nobody_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/dev/null")
