"""Secrets of the environment do not come into anything that a run leaves or prints, wherever they were planted."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_QhVbTnRzKpXwLmDs",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
    "MY_PASSWORD": "correct-horse-battery",
    "DATABASE": "postgres://me:staple-and-more@host/db",
}
TOLD = (*SECRETS.values(), "staple-and-more", "hunter2")


@pytest.fixture
def planted(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Secrets in the environment, in tracked and untracked files of the working tree, and in a path."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (workplace / "mine.py").touch()
    for arguments in (["init", "--quiet"], ["add", "mine.py"], ["commit", "--quiet", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    lines = [f"{name} = {value!r}" for name, value in SECRETS.items()]
    (workplace / "mine.py").write_text("\n".join([*lines, "url = 'https://me:hunter2@host/x'"]) + "\n")
    (workplace / f"{SECRETS['MY_PASSWORD']}.txt").touch()
    place = workplace / SECRETS["HF_TOKEN"]
    place.mkdir()
    (workplace / "tiny.yaml").rename(place / "tiny.yaml")
    return place / "tiny.yaml"


def found_in(content: bytes) -> list[str]:
    return [secret for secret in TOLD if secret.encode() in content]


def test_nothing_that_a_run_leaves_or_prints_holds_one(
    planted: Path, ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["fit", "-c", str(planted), "--run.name", "a", "--wandb.mode", "offline"]
    monkeypatch.setattr(sys, "argv", ["ftlab", *command])
    answer = ftlab(*command)
    assert answer.code == 0, answer.err
    wandb.teardown()  # it writes until the process ends
    run = Path("runs/tiny/a")
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"config.yaml", "provenance.json", "metrics.csv"} <= {path.name for path in files}
    assert [path for path in files if path.suffix == ".wandb"]
    assert {path: told for path in files if (told := found_in(path.read_bytes()))} == {}
    assert found_in((answer.out + answer.err).encode()) == []
    record = json.loads((run / "provenance.json").read_text())
    assert "+MY_PASSWORD = '***'" in record["code"]["diff"]
    assert "***.txt" in record["code"]["untracked"]
    assert record["command"][3].endswith("/***/tiny.yaml")
    assert not set(SECRETS) & set(record["environment"])


@pytest.mark.parametrize("verb", ["fit", "prepare"])
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--data.path", "https://me:hunter2@host/x.jsonl", "data.path holds a password in a URL"),
        ("--data.path", "https://host/x.jsonl?token=hunter2", "data.path holds a key in a URL"),
        ("--data.path", f"{SECRETS['MY_PASSWORD']}/x.jsonl", "data.path holds the value of $MY_PASSWORD"),
    ],
    ids=["password", "key", "variable"],  # pytest puts them into the environment
)
def test_one_in_the_configuration_is_refused(
    verb: str, option: str, value: str, said: str, planted: Path, refused: Callable[..., str]
) -> None:
    for words in ([option, value], [f"{option}={value}"]):
        sentence = refused(verb, "-c", planted, *words)
        assert sentence.startswith(f"{said}, and a run keeps its configuration")
        assert found_in(sentence.encode()) == []


def test_one_in_a_file_is_refused_by_its_key(planted: Path, refused: Callable[..., str]) -> None:
    Path("over.yaml").write_text(f"include: [{planted}]\nrun: {{name: {SECRETS['MY_PASSWORD']}}}\n")
    assert refused("fit", "-c", "over.yaml").startswith("run.name holds the value of $MY_PASSWORD")


def test_a_refusal_that_quotes_the_command_hides_it(planted: Path, refused: Callable[..., str]) -> None:
    assert refused("fit", "-c", f"{SECRETS['MY_PASSWORD']}.yaml") == "there is no configuration file ***.yaml"
