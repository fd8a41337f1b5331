"""The study of many methods: the search for a rate, runs that are told apart by the method alone, and the table."""

import csv
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from ftlab.networks import Network
from ftlab.runs import Run, identity

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module("methods")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def tables(script):
    return sys.modules["methods_table"]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


# ---------------------------------------------------------------- the search for a rate


def search(script, loss):
    """Searches the rate of a method whose validation loss is known for every rate."""
    losses = {}
    while rates := script.untried(losses):
        losses |= {rate: loss(rate) for rate in rates}
    return losses


@pytest.mark.parametrize("optimum", range(-9, 2))
def test_the_search_ends_between_two_worse_rates(script, optimum: int) -> None:
    losses = search(script, lambda rate: (rate - optimum) ** 2)
    assert script.best_rate(losses) == optimum
    assert script.is_bracketed(losses)
    assert len(losses) <= script.MOST_RATES


@pytest.mark.parametrize("optimum", [-7, -6, -5, -4, -3])
def test_a_rate_near_the_middle_takes_five_trainings(script, optimum: int) -> None:
    losses = search(script, lambda rate: (rate - optimum - 0.1) ** 2)
    assert len(losses) == 5 + (optimum == -7)


def test_rates_that_diverge_are_worse_than_any_other(script) -> None:
    losses = search(script, lambda rate: math.inf if rate > -6 else -rate)
    assert script.best_rate(losses) == -6
    assert losses[-5] == losses[-4] == math.inf
    assert script.is_bracketed(losses)


def test_training_that_does_harm_at_every_rate_ends_the_search_and_is_said(script) -> None:
    losses = search(script, lambda rate: rate)
    assert len(losses) == script.MOST_RATES
    assert not script.is_bracketed(losses)


def test_rates_are_half_decades_to_two_digits(script) -> None:
    assert [script.in_digits(rate) for rate in (-7, -6, -5, -4, -1, 0, 1)] == [
        "0.00032", "0.001", "0.0032", "0.01", "0.32", "1", "3.2",
    ]  # fmt: skip


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def study(script, network: Network, tmp_path_factory: pytest.TempPathFactory):
    """E2E in small: its columns, the tiny network."""
    place = tmp_path_factory.mktemp("study")
    sentence = "Zeno asks Ralf to clean fifty tiny ropes at the bridge because the guard is late"
    words = sentence.split()
    rows = [
        {"mr": f"{words[n % 16]} {words[n // 16 % 16]} {n}", "ref": f"{words[n * 7 % 16]} {words[n * 5 % 16]}"}
        for n in range(240)
    ]
    (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--model.network.path", network.path, "--data.path", f"{place}/train.jsonl")
    options += ("--data.test_limit", "4", "--model.decoding.max_new_tokens", "4")
    return script.Study("e2e", place / "runs", 8, options)


def here(function, *arguments):
    """Calls in this process, which saves the start of another."""
    return function(*arguments)


@pytest.fixture(scope="module")
def full(script, study):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return script.study_method(study, "full", here)


def test_a_method_trains_at_the_best_of_its_rates_and_is_scored(script, tables, study, full) -> None:
    assert isinstance(full, tables.Row), full
    trials = sorted((study.root / "methods_e2e_rates").iterdir())
    assert len(trials) == full.rates_tried >= 5
    losses = {trial.name: script.scores(Run(trial)) for trial in trials}
    assert all(set(scores) == {"val_loss"} for scores in losses.values())  # nothing of the test records
    assert min(losses, key=lambda name: losses[name]["val_loss"]) == f"full-lr{full.rate}"
    chosen, tried = (identity(script.read_config(run.config)) for run in (study.run("full"), Run(trials[0])))
    differing = {key for key in chosen if chosen[key] != tried[key]}
    assert differing - {"model.optimizer.init_args.lr"} == {"trainer.max_steps", "trainer.val_check_interval"}
    assert chosen["model.optimizer.init_args.lr"] == float(full.rate)
    scores = json.loads((study.root / "methods_e2e/full/scores.json").read_text())
    assert (full.test_loss, full.rouge_l) == (scores["test_loss"], scores["test_rougeL"])
    assert (full.share, full.rate_bracketed) == (1.0, True)
    model = study.root / "methods_e2e" / "full" / "model"
    assert full.model_bytes == sum(file.stat().st_size for file in model.iterdir())


def test_what_is_finished_is_not_repeated(script, study, full, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {file: file.stat().st_mtime_ns for file in study.root.rglob("*") if file.is_file()}
    assert script.study_method(study, "full", here) == full
    assert {file: file.stat().st_mtime_ns for file in study.root.rglob("*") if file.is_file()} == files


def test_a_method_that_trains_nothing_is_scored_without_a_rate(script, tables, study, full) -> None:
    row = script.study_method(study, "zeroshot", here)
    assert isinstance(row, tables.Row), row
    assert (row.trained, row.rate, row.rates_tried, row.seconds_a_step) == (0, "", 0, None)
    ours, theirs = (script.read_config(study.run(method).config) for method in ("zeroshot", "full"))
    assert ours["data"] == theirs["data"]
    assert ours["model"]["decoding"] == theirs["model"]["decoding"]
    assert ours["seed_everything"] == theirs["seed_everything"]


def test_a_rate_at_which_training_diverges_is_infinitely_bad(script, study) -> None:
    run = study.trial("full", 60)
    assert script.fit_loss(study.command("full", run, 4, 1, 60), run) == math.inf


def test_a_method_that_fails_says_why_and_is_not_the_end(script, tables, study) -> None:
    failure = script.study_method(study, "nosuch", here)
    assert failure == tables.Failure("nosuch", "there is no configuration file experiments/method/nosuch.yaml")


def test_an_error_of_a_library_is_a_failure_too(script, tables, study, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(function, *arguments):
        raise RuntimeError("no\nroom")

    assert script.study_method(study, "lora", broken) == tables.Failure("lora", "RuntimeError: no room")
    assert "Traceback" in capsys.readouterr().err


def test_every_method_of_the_study_has_its_file(script) -> None:
    assert len(set(script.METHODS)) == len(script.METHODS) >= 15
    assert [name for name in script.METHODS if not (ROOT / f"experiments/method/{name}.yaml").is_file()] == []


# ---------------------------------------------------------------- the table


@pytest.fixture
def results(tables):
    return [
        tables.Row("lora", 1234, 0.0125, 400_000, 1_500_000_000, 0.5, "0.01", 5, True, 0.5, 0.625, 50.04),
        tables.Failure("oft", "the network has no 'q'"),
        tables.Row("ia3", 10, 0.0001, 20_000, 900_000_000, None, "3.2", 8, False, 1.0, 2.0, 3.0),
    ]


def test_the_table_has_a_line_a_method_and_says_what_failed(tables, results) -> None:
    lines = tables.table(results).splitlines()
    assert lines[2] == "| lora | 1,234 | 1.25% | 0.40 MB | 1,500 MB | 0.500 | 0.01 | 5 | 0.500 | 0.625 | 50.0 |"
    assert lines[3].split(" | ")[6] == "3.2*"
    assert lines[5].startswith("\\* The outermost rate")
    assert lines[-1] == "- `oft`: the network has no 'q'"


def test_a_task_writes_its_own_section_and_leaves_the_others(tables, results, tmp_path: Path) -> None:
    tables.write(tmp_path, "demo", results[:1], [], "first")
    page = tables.write(tmp_path, "e2e", results, [], "second")
    page.write_text(page.read_text() + "\n## What it shows\n\nNothing.\n")
    tables.write(tmp_path, "demo", results[1:], [], "third")
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Methods side by side", "## Task demo", "## Task e2e", "## What it shows",
    ]  # fmt: skip
    assert "first" not in text
    assert text.endswith("\n## What it shows\n\nNothing.\n")
    with (tmp_path / "methods_e2e.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["lora", "oft", "ia3"]
    assert (rows[0]["test_loss"], rows[0]["failure"]) == ("0.625", "")
    assert (rows[1]["test_loss"], rows[1]["failure"]) == ("", "the network has no 'q'")


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("options", [["--task", "e2e"], ["--task", "demo", "--steps", "10"]])
def test_a_command_that_makes_no_sense_is_refused(script, options, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["methods.py", *options])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert {"e2e": "needs --network", "demo": "multiple of 4"}[options[1]] in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_studies_the_demo_and_goes_on_from_what_is_there(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/methods.py"), "--task", "demo", "--steps", "4", "--jobs", "2"]
    command += ["--root", "runs", "--out", "out", "--methods"]
    for methods in ("zeroshot,nosuch", "zeroshot,nosuch,lora"):
        done = subprocess.run([*command, methods], cwd=tmp_path, capture_output=True, text=True, check=True)
    with (tmp_path / "out/methods_demo.csv").open(newline="") as file:
        zeroshot, nosuch, lora = csv.DictReader(file)
    assert zeroshot["rates_tried"] == "0"
    assert nosuch["failure"].startswith("there is no configuration file")
    assert int(lora["peak_memory_bytes"]) > int(zeroshot["peak_memory_bytes"])
    assert float(lora["seconds_a_step"]) > 0
    assert f"--methods {methods}" in (tmp_path / "out/methods.md").read_text()
    assert len(done.stderr.splitlines()) == 3, done.stderr
