"""`ftlab ls`, `show` and `rm`: what runs there are, what one is, and deleting some."""

import json
import os
import pty
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from written_runs import write_run

from ftlab.cli import main, rm
from ftlab.runs import Run
from ftlab.runs.lock import locked


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs of two experiments, and one that has begun and is gone."""
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/a/one"), [10.0, 30.0])
    write_run(Path("runs/a/two"), [50.0], state="preempted", method="my.own.Thing", judged=False)
    nested = {"model.method.init_args.config": {"class_path": "peft.IA3Config"}}
    write_run(Path("runs/b/three"), [40.0], state="interrupted", config=nested)
    write_run(Path("runs/b/four"), [], state="failed", judged=False)
    Run(Path("runs/b/four")).begin({}, {})
    return tmp_path


def listed(ftlab: Callable[..., Any], *options: object) -> list[dict[str, Any]]:
    answer = ftlab("ls", *options, "--json")
    assert (answer.code, answer.err) == (0, "")
    return json.loads(answer.out)


def test_runs_are_listed_with_what_they_are(runs: Path, ftlab: Callable[..., Any]) -> None:
    lines = {line["name"]: line for line in listed(ftlab)}
    told = {name: (line["state"], line["method"], line["metric"], line["score"]) for name, line in lines.items()}
    assert told == {
        "one": ("finished", "LoRA", "test_rougeL", 20.0),
        "two": ("stopped", "Thing", "val_loss", 1.0),
        "three": ("interrupted", "LoRA(IA3Config)", "test_rougeL", 40.0),
        "four": ("killed", "LoRA", "val_loss", 1.0),
    }
    assert lines["three"]["experiment"] == "b"
    for line in lines.values():
        files = [path for path in Path(line["run"]).rglob("*") if path.is_file()]
        assert line["bytes"] == sum(path.stat().st_size for path in files)
    table = ftlab("ls").out
    assert all(word in table for word in ("runs/a/one", "finished", "LoRA(IA3Config)", "test_rougeL", "40"))
    assert "\x1b" not in table


def test_the_score_is_the_one_that_compare_takes_by_default(runs: Path, ftlab: Callable[..., Any]) -> None:
    for name in ("five", "six"):
        run = Run(write_run(Path(f"runs/c/{name}"), [1.0], rate=0.1 if name == "five" else 0.2, judged=False))
        run.add_scores({"retention_k_loss_after": 2.0})
    assert [line["metric"] for line in listed(ftlab, "runs/c")] == ["val_loss"] * 2
    for scores, first in (
        ({"test_perplexity": 3.0}, "test_perplexity"),
        ({"test_words": 5.0}, "test_words"),
        ({"test_accuracy": 6.0}, "test_words"),
    ):
        for name in ("five", "six"):
            run = Run(Path(f"runs/c/{name}"))
            run.add_scores(scores)
            rows = [{"prompt": "p", "references": ["r"], "prediction": "r", "scores": {"words": 5.0}}]
            run.write_predictions("test", rows)
        assert [line["metric"] for line in listed(ftlab, "runs/c")] == [first] * 2
        assert json.loads(ftlab("compare", "runs/c", "--format", "json").out)["metric"] == first


def test_a_file_of_two_names_counts_once_and_links_do_not(runs: Path, ftlab: Callable[..., Any]) -> None:
    before = listed(ftlab, "runs/a/one")[0]["bytes"]
    (Path("runs/a/one") / "large").write_bytes(bytes(5000))
    os.link("runs/a/one/large", "runs/a/one/again")
    Path("runs/a/one/link").symlink_to("large")
    assert listed(ftlab, "runs/a/one")[0]["bytes"] == before + 5000


def names(lines: list[dict[str, Any]]) -> list[str]:
    return [line["name"] for line in lines]


def test_they_can_be_chosen_and_sorted(runs: Path, ftlab: Callable[..., Any]) -> None:
    by_score = ("--sort", "score", "--metric", "test_rougeL")  # which two do not have: they come last
    assert names(listed(ftlab, *by_score)) == ["one", "three", "two", "four"]
    assert names(listed(ftlab, *by_score, "--reverse")) == ["three", "one", "two", "four"]
    assert names(listed(ftlab, "--sort", "run")) == ["one", "two", "four", "three"]
    assert names(listed(ftlab, "runs/b", "--sort", "run")) == ["four", "three"]
    assert names(listed(ftlab, "runs/*/t*", "runs/a/two", "--sort", "run")) == ["two", "three"]
    assert names(listed(ftlab, "--state", "finished", "killed", "--sort", "run")) == ["one", "four"]


def test_dates_are_those_of_the_ends(runs: Path, ftlab: Callable[..., Any]) -> None:
    for name, date in {"one": "2026-02-01T00:00:00+00:00", "two": "2025-01-01T00:00:00+00:00"}.items():
        Run(Path("runs/a") / name).note(ended=date)
    lines = listed(ftlab, "runs/a")
    assert [line["date"] for line in lines] == ["2025-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"]


def test_a_damaged_run_is_listed_as_such(runs: Path, ftlab: Callable[..., Any]) -> None:
    Path("runs/a/one/provenance.json").write_text("{")
    Path("runs/a/two/config.yaml").write_text("a: [")
    assert {line["name"]: line["state"] for line in listed(ftlab, "runs/a")} == {"one": "damaged", "two": "damaged"}
    assert ftlab("show", "runs/a/one").code == 1


def test_one_that_is_at_work_is_running_and_cannot_be_deleted(
    runs: Path, ftlab: Callable[..., Any], refused: Callable[..., str]
) -> None:
    with locked(Path("runs/b/four")):
        assert listed(ftlab, "runs/b/four")[0]["state"] == "running"
        said = refused("rm", "runs/a/one", "runs/b/four", "--yes")
        assert f"runs/b/four is being worked in by process {os.getpid()} on {socket.gethostname()}" in said
    Path("runs/b/four/.owner").write_text("process 7 on elsewhere")
    assert listed(ftlab, "runs/b/four")[0]["state"] == "running"
    assert "by process 7 on elsewhere" in refused("rm", "runs/b/four", "--yes")


def test_where_there_are_none(runs: Path, ftlab: Callable[..., Any], refused: Callable[..., str]) -> None:
    assert refused("ls", "nowhere").startswith("no run matches nowhere")
    shutil.rmtree("runs")
    answer = ftlab("ls")
    assert (answer.code, answer.out, answer.err) == (0, "", "ftlab: there are no runs\n")


def test_nothing_heavy_is_imported_to_list_show_and_delete(runs: Path) -> None:
    script = (
        "import sys; from ftlab.cli import main\n"
        "for words in (['ls'], ['show', 'runs/a/one'], ['rm', 'runs/a/one', '--yes']): assert main(words) == 0\n"
        "sys.exit(', '.join({'torch', 'lightning', 'transformers', 'peft', 'numpy', 'optuna'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not Path("runs/a/one").exists()


# ---------------------------------------------------------------- show


def test_what_a_run_is_is_shown(runs: Path, ftlab: Callable[..., Any]) -> None:
    answer = ftlab("show", "runs/a/one", "--json")
    assert (answer.code, answer.err) == (0, "")
    said = json.loads(answer.out)
    assert (said["state"], said["method"], said["settings"]["method.r"]) == ("finished", "LoRA", 8)
    assert said["seeds"] == {"seed_everything": 1}
    assert said["scores"]["test_rougeL"] == 20.0
    assert said["cost"]["trainable_parameters"] == 250
    assert said["data"]["path"] == "data"
    assert said["steps"] == {"done": 100, "of": 100}
    table = ftlab("show", "runs/a/one").out
    assert all(word in table for word in ("runs/a/one: finished", "test_rougeL", "20", "3.0 GB", "method.r"))


def test_each_command_that_is_shown_is_one(
    finished: Callable[[str], Path], ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished("lora")
    said = json.loads(ftlab("show", run, "--json").out)
    assert said["state"] == "finished"
    assert said["checkpoints"]["last"]["step"] == 4
    assert "adapter_model.safetensors" in said["model"]
    assert set(said["commands"]) == {"score it on the test records", "talk to it", "export it", "delete it"}
    test = shlex.split(said["commands"]["score it on the test records"])
    assert test == ["ftlab", "test", "-c", str(run / "config.yaml")]
    assert ftlab(*test[1:]).code == 0
    Run(run).end("preempted")
    said = json.loads(ftlab("show", run, "--json").out)
    assert said["commands"]["go on"] == f"ftlab fit -c {run}/config.yaml"
    assert ftlab(*shlex.split(said["commands"]["go on"])[1:]).code == 0
    assert Run(run).finished


def test_what_is_no_run_is_not_shown(runs: Path, refused: Callable[..., str]) -> None:
    assert refused("show", "runs/a").startswith("there is no run at runs/a: it has no config.yaml")


# ---------------------------------------------------------------- rm


def test_runs_are_deleted_wholly(runs: Path, ftlab: Callable[..., Any]) -> None:
    answer = ftlab("rm", "runs/a/one", "runs/a/two", "runs/a/one", "--yes")
    assert (answer.code, answer.out) == (0, "")
    assert answer.err.count("is deleted") == 2
    assert not Path("runs/a").exists()
    assert Path("runs/b/three/config.yaml").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/a/one"], "there is no terminal to ask on"),
        (["runs/a", "--yes"], "runs/a is no run but holds 2, the first runs/a/one"),
        (["runs/a/one", "nowhere", "--yes"], "there is no run at nowhere"),
        (["runs/a/one", "other", "--yes"], "there is no run at other"),
        (["runs/a/one", "link", "--yes"], "link is a link to"),
    ],
)
def test_what_is_not_deleted(words: list[str], said: str, runs: Path, refused: Callable[..., str]) -> None:
    Path("other").mkdir()
    Path("link").symlink_to("runs/a/two")
    assert said in refused("rm", *words)
    assert len(list(Path("runs").glob("*/*/config.yaml"))) == 4


def test_a_trial_that_a_worker_is_at_is_refused(runs: Path, refused: Callable[..., str]) -> None:
    Path("runs/a/leases").mkdir()
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": 0}
    Path("runs/a/leases/one").write_text(json.dumps(owner))
    assert "a worker of its sweep is at" in refused("rm", "runs/a/one", "--yes")


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("\n", 1), ("no\n", 1), ("", 1)])
def test_on_a_terminal_it_asks(
    typed: str, code: int, runs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, terminal = pty.openpty()
    os.write(ours, typed.encode() or b"\x04")
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["rm", "runs/a/one"]) == code
    os.close(ours)
    said = capfd.readouterr()
    assert said.out == ""
    assert "runs/a/one: finished, LoRA" in said.err
    assert Path("runs/a/one").exists() == bool(code)


def test_a_deletion_that_was_killed_leaves_no_half_of_a_run_and_the_next_ends_it(
    runs: Path, ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rm.shutil, "rmtree", killed)
        assert ftlab("rm", "runs/a/one", "--yes").code == 130
    assert names(listed(ftlab, "runs/a")) == ["two"]
    assert [path.name for path in Path("runs/a").iterdir() if path.name != "two"] == [".one.removed"]
    assert ftlab("rm", "runs/a/two", "--yes").code == 0
    assert not Path("runs/a").exists()
