"""What a configuration file may run, and where names may lead: no code that is not named, nowhere but below."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftlab.cli.compose import experiment_name
from ftlab.data.sources import open_source
from ftlab.errors import UserError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed_everything: !!python/object/apply:pathlib.Path.touch [ran]", "could not determine a constructor"),
        ("model: {method: !!python/name:os.system }", "could not determine a constructor"),
        ("data: {path: '$(touch ran)'}", "$(touch ran) is neither a file"),
        ("data: {path: '`touch ran`'}", "`touch ran` is neither a file"),
        ("data: {prompt: '{prompt.__class__}', response: '{completion}'}", "has no column prompt.__class__"),
        ("model: {optimizer: os.system}", "os.system can run whatever"),
        ("model: {optimizer: {class_path: os.system, init_args: {command: touch ran}}}", "os.system can run whatever"),
        ("model: {method: {class_path: pathlib.Path}}", "pathlib.Path can run whatever"),
        (
            "trainer: {callbacks: [{class_path: subprocess.Popen, init_args: {args: [touch, ran]}}]}",
            "subprocess.Popen can run whatever",
        ),
    ],
)
def test_a_file_runs_nothing_but_the_classes_that_it_names_where_they_belong(
    text: str, said: str, workplace: Path, refused: Callable[..., str]
) -> None:
    (workplace / "own.yaml").write_text(f"include: [tiny.yaml]\n{text}\n")
    assert said in refused("fit", "-c", "own.yaml")
    assert not (workplace / "ran").exists()


@pytest.mark.parametrize("option", ["--model.optimizer=os.system", "--model.method=subprocess.Popen"])
def test_a_class_that_runs_what_it_is_given_is_refused(
    option: str, workplace: Path, refused: Callable[..., str]
) -> None:
    key, path = option.removeprefix("--").split("=")
    assert refused("fit", "-c", "tiny.yaml", option).startswith(f"{key}: {path} can run whatever it is given")


@pytest.mark.parametrize("name", ["../out", "../../etc", "/etc", "a/b", "..", ".", ".hidden", "a/"])
@pytest.mark.parametrize("key", ["name", "experiment"])
def test_a_run_stays_in_its_directory(key: str, name: str, workplace: Path, refused: Callable[..., str]) -> None:
    before = sorted(workplace.parent.iterdir())
    assert refused("fit", "-c", "tiny.yaml", f"--run.{key}", name).startswith(f"run.{key} is {name!r}: give the name")
    assert sorted(workplace.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("file", "name"),
    [("tiny.yaml", "tiny"), ("...yaml", "run"), ("..yaml", "run"), (".a.yaml", "a"), ("../b.c.yaml", "b.c")],
)
def test_the_name_of_a_file_leads_nowhere_else(file: str, name: str) -> None:
    assert experiment_name([Path("x.yaml"), Path(file)], "run") == name


def test_the_file_of_an_experiment_may_have_any_name(workplace: Path, ftlab: Callable[..., Any]) -> None:
    shutil.move("tiny.yaml", "...yaml")
    assert ftlab("fit", "-c", "...yaml", "--model.method", "ZeroShot", "--run.name", "a").code == 0
    assert yaml.safe_load(Path("runs/run/a/config.yaml").read_text())["run"]["experiment"] == "run"


def test_a_set_of_data_runs_no_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path("owner/name")
    place.mkdir(parents=True)
    (place / "name.py").write_text("open('ran', 'w')\n")
    with pytest.raises(UserError, match="nor any other"):
        open_source("owner/name")
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["../../etc/nothing", "../nothing", "../../nothing"])
def test_no_set_of_the_hub_is_named_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data\.path: "):
        open_source(name)


def test_an_adapter_is_saved_where_it_is_told_whatever_its_name(
    finished: Callable[[str], Path], workplace: Path, ftlab: Callable[..., Any]
) -> None:
    run, before = finished("lora"), sorted(workplace.parent.iterdir())
    names = [f"--adapter=../../{name}={run}" for name in "ab"]
    answer = ftlab("generate", *names, "--combine", "../x=../../a:0.5,../../b:0.5", "--save", "new/mixed")
    assert answer.code == 0, answer.err
    assert {path.name for path in Path("new").iterdir()} == {"mixed"}
    assert sorted(workplace.parent.iterdir()) == before
