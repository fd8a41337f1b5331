"""`ftlab diff`: in what two runs differ; and a run repeated from its own record, which differs in nothing."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_experiment import curves

from ftlab.runs import Run


def test_a_run_repeated_from_its_own_record_in_another_process_is_the_same_to_the_byte(
    finished: Callable[[str], Path], ftlab: Callable[..., Any]
) -> None:
    run, again = finished("lora"), finished("lora").with_name("again")
    command = [sys.executable, "-m", "ftlab", "fit", "-c", str(run / "config.yaml"), "--run.name", "again"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "1"})
    files = {path.name for path in (run / "model").iterdir()}
    assert {path.name for path in (again / "model").iterdir()} == files
    for name in files:
        assert (again / "model" / name).read_bytes() == (run / "model" / name).read_bytes(), name
    assert curves(again) == curves(run)
    assert (again / "scores.json").read_bytes() == (run / "scores.json").read_bytes()
    answer = ftlab("diff", run, again)
    assert answer.code == 0
    assert answer.out.endswith("results: scores equal, files of the model equal\n")
    said = " ".join(answer.out.split())
    same = said.partition("the same: ")[2]  # ftlab's own changes aside, where somebody works on it meanwhile
    assert same.startswith("configuration; configuration without effect on results; code; ")
    assert "network, tokenizer and data; seeds; hardware; " in same
    assert "environment.PYTHONHASHSEED" in said


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, Path]]:
    """Two run directories that are the same, and then changed: by what is given, of the second."""
    monkeypatch.chdir(tmp_path)

    def make(config: dict[str, Any] | None = None, **changed: Any) -> tuple[Path, Path]:
        own: dict[str, Any] = {"seed_everything": 1, "wandb": {"project": "p"}, "run": {"name": "a"}}
        facts: dict[str, Any] = {
            "code": {"commit": "c1", "diff": "", "diff_digest": None, "untracked": []},
            "ftlab": {"version": "0.1.0"},
            "packages": {"torch": "2.12", "peft": "0.21"},
            "fingerprints": {"network": {"model.safetensors": "f1"}, "tokenizer": "t1", "data": {"train": "d1"}},
            "seeds": {"model": 1},
            "hardware": {"cpu": "x", "gpus": None},
            "environment": {"OMP_NUM_THREADS": "2"},
        }
        for name, said, more in (("a", own, {}), ("b", own | (config or {}), changed)):
            run = Run(Path("runs/e") / name)
            shutil.rmtree(run.directory, ignore_errors=True)
            run.directory.mkdir(parents=True)
            run.config.write_text(yaml.safe_dump(said | {"run": {"name": name}}))
            run.begin({key: value | more.get(key, {}) for key, value in facts.items()}, {"from_step": 0})
            run.end("finished", model={"model.safetensors": more.get("weights", "w1")})
            run.add_scores({"val_loss": more.get("loss", 1.5)})
        return Path("runs/e/a"), Path("runs/e/b")

    return make


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"config": {"seed_everything": 2}}, ["configuration", "seed_everything", "1", "2"]),
        ({"code": {"commit": "c2"}}, ["code.commit", "c1", "c2"]),
        ({"code": {"diff": "+rate = 2", "diff_digest": "9"}}, ["code.diff_digest", "9", "++rate = 2"]),
        ({"packages": {"torch": "2.13"}}, ["packages.torch", "2.12", "2.13"]),
        ({"fingerprints": {"data": {"train": "d2"}}}, ["fingerprints.data.train", "d1", "d2"]),
        ({"fingerprints": {"network": {"model.safetensors": "f2"}}}, ["network.model.safetensors", "f1", "f2"]),
        ({"hardware": {"cpu": "y"}}, ["hardware.cpu", "x", "y"]),
        ({"environment": {"OMP_NUM_THREADS": "4"}}, ["environment.OMP_NUM_THREADS", "2", "4"]),
        ({"seeds": {"model": 3}}, ["seeds.model", "3"]),
        ({"loss": 1.25}, ["val_loss", "1.5", "1.25", "results: scores differ, files of the model equal"]),
        ({"weights": "w2"}, ["w1", "w2", "results: scores equal, files of the model differ"]),
    ],
)
def test_what_differs_is_shown(
    changed: dict[str, Any], said: list[str], pair: Callable[..., tuple[Path, Path]], ftlab: Callable[..., Any]
) -> None:
    a, b = pair(**changed)
    answer = ftlab("diff", a, b)
    assert answer.code == 0
    assert answer.err == ""
    assert all(words in answer.out for words in said), answer.out
    assert ftlab("diff", a, b, "--exit-code").code == 1


def test_what_cannot_change_results_is_apart(pair: Callable[..., tuple[Path, Path]], ftlab: Callable[..., Any]) -> None:
    answer = ftlab("diff", *pair(config={"wandb": {"project": "q"}}), "--exit-code")
    assert answer.code == 0
    assert "configuration without effect on results" in answer.out
    assert "wandb.project" in answer.out
    assert "run.name" not in answer.out


def test_two_that_are_the_same(pair: Callable[..., tuple[Path, Path]], ftlab: Callable[..., Any]) -> None:
    answer = ftlab("diff", *pair(), "--exit-code")
    assert answer.code == 0
    assert "seeds; hardware; environment; scores; files of the model" in " ".join(answer.out.split())


def test_a_session_unlike_the_first_is_named(pair: Callable[..., tuple[Path, Path]], ftlab: Callable[..., Any]) -> None:
    a, b = pair()
    Run(b).begin({"packages": {"torch": "2.13"}}, {})
    Run(b).end("finished")
    assert "finished, 2 sessions; session 2 not as the first" in ftlab("diff", a, b).out


def test_a_run_of_an_older_record_and_one_without_results(
    pair: Callable[..., tuple[Path, Path]], ftlab: Callable[..., Any]
) -> None:
    a, b = pair()
    (b / "provenance.json").write_text(json.dumps({"state": "running"}))
    for run in (a, b):
        (run / "scores.json").unlink()
    answer = ftlab("diff", a, b)
    assert answer.code == 0
    assert f"packages: not known of {b}" in answer.out
    assert answer.out.endswith("results: there are none to compare\n")


@pytest.mark.parametrize("place", ["nowhere", "runs"])
def test_what_is_no_run_is_refused(
    place: str, pair: Callable[..., tuple[Path, Path]], refused: Callable[..., str]
) -> None:
    a, _ = pair()
    assert refused("diff", a, place) == (
        f"there is no run at {place}: it has no config.yaml; give the directory of a run"
    )
