"""`make study`: which runs it makes, and what it writes of them."""

import csv
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from written_runs import write_run

from ftlab.runs import Run

LOSSES = {
    "full": {-6: 0.5, -5: 0.2, -4: 0.4},
    "lora": {-5: 0.5, -4: 0.3, -3: 0.9},
    "qlora": {-5: 0.7, -4: 0.6, -3: 1.0},
}
BEST = {"full": "0.0032", "lora": "0.01", "qlora": "0.01"}


@pytest.fixture
def study(scripts: Path) -> Any:
    return importlib.import_module("study")


def test_each_seed_is_trained_at_the_best_rate_of_its_own_method(study: Any, capsys: Any) -> None:
    trained: list[tuple[Any, ...]] = []

    def call(function: Callable[..., Any], of: Any, *arguments: Any) -> Any:
        if function is study.losses_by_rate:
            return LOSSES[arguments[0]]
        assert function is study.train
        trained.append(arguments)
        return None

    found = study.work(study.Seeds("demo", Path("runs"), 240), 2, 2, call)
    assert found == LOSSES
    assert list(found) == ["full", "lora", "qlora"]
    rates = {"full": -5, "lora": -4, "qlora": -4}
    expected = [("zeroshot", None, 1), *((method, rate, seed) for method, rate in rates.items() for seed in (1, 2))]
    assert sorted(trained, key=str) == sorted(expected, key=str)
    assert len(capsys.readouterr().err.splitlines()) == 3 + len(expected)


def test_a_run_that_is_refused_ends_the_study(study: Any) -> None:
    def call(function: Callable[..., Any], of: Any, *arguments: Any) -> Any:
        if function is study.losses_by_rate:
            return LOSSES[arguments[0]]
        raise study.UserError("no room")

    with pytest.raises(study.UserError, match="no room"):
        study.work(study.Seeds("demo", Path("runs"), 240), 2, 1, call)


def test_what_is_written_says_what_the_runs_do(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = study.Seeds("demo", Path("runs"), 240)
    told = {
        "hardware": {"cpu": "a processor", "cores": 2, "memory_bytes": 8e9, "gpus": None},
        "versions": {"python": "3.11", "torch": "2.0"},
        "ftlab": {"commit": "0123456789abcdef", "diff_digest": "d"},
    }
    rng = range(40)
    nothing = {"trainable_parameters": 0, "training_seconds": 0.0, "total_tokens": 0}
    write_run(
        made.seeded("zeroshot", None, 1).directory,
        [20.0 + n for n in rng],
        method="ZeroShot",
        cost=nothing,
        record=told,
    )
    for number, (method, rate) in enumerate({"full": -5, "lora": -4, "qlora": -4}.items()):
        for seed in (1, 2):
            run = made.seeded(method, rate, seed)
            scores = [60.0 + 5 * number + seed + n % 3 for n in rng]
            write_run(run.directory, scores, seed, method, config={"data.batch_size": 16}, record=told)
            Run(run.directory).note(data=Run(run.directory).record()["data"] | {"train_rows": 3000})
    write_run(made.trial("full", -5).directory, [1.0] * 40, seed=42)
    page = study.write(tmp_path / "out", made, LOSSES, 2, 2, "make study")
    assert page == tmp_path / "out/comparison.html"
    text = (tmp_path / "out/README.md").read_text()
    for said in (
        "# Zero-shot, full, LoRA and QLoRA: demo",
        "- made by: make study",
        "- each method: 240 steps of 16 rows out of 3,000, 2 seeds",
        "trainings of 60 steps with seed 42",
        "how many were tried: full 3, LoRA 3, QLoRA 3",
        "| full | 0.500 | 0.200 | 0.400 |  | 0.0032 |",
        "| LoRA |  | 0.500 | 0.300 | 0.900 | 0.01 |",
        "- by ftlab at commit 0123456789ab with changes that are not committed",
        "- on a processor, 2 cores, 8 GB of memory",
        "- with python 3.11, torch 2.0",
    ):
        assert said in text
    with (tmp_path / "out/comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["zero-shot", "full", "LoRA", "QLoRA"]
    assert [float(row["test_rougeL"]) for row in rows[1:]] == pytest.approx(
        [60 + 1.5 + 39 / 40 + 5 * n for n in range(3)]
    )
    assert json.loads((tmp_path / "out/comparison.json").read_text())["baseline"] == "full"
    html = page.read_text()
    assert "<h1>Zero-shot, full, LoRA and QLoRA: demo</h1>" in html
    assert "how many were tried: full 3" in html
    assert str(tmp_path) not in html + text + (tmp_path / "out/comparison.json").read_text()
    shown = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert sorted(shown) == sorted(path.name for path in (tmp_path / "out").glob("*.png"))


def told(study: Any, task: str, command: str, losses: Any = LOSSES, seed: int = 42, **of_full: Any) -> list[str]:
    """What the page says of a study whose full fine-tuning has such a configuration and cost."""
    steps, rows, seeds = {"demo": (240, 3000, 5), "e2e": (200, 37563, 3)}[task]
    made = study.Seeds(task, Path("runs"), steps)
    run = Run(write_run(made.seeded("full", study.best_rate(losses["full"]), 1).directory, [1.0], **of_full))
    run.note(data=run.record()["data"] | {"train_rows": rows})
    write_run(made.trial("full", study.best_rate(losses["full"])).directory, [1.0], seed=seed)
    return study.words(made, losses, seeds, 2, command)


FIVE = {method: {-6: 0.7, -5: 0.3, -4: 0.4, -3: 1.0, -2: 2.0} for method in LOSSES}


@pytest.mark.parametrize(
    ("task", "command", "network", "parameters"),
    [
        ("demo", "make study", "package://ftlab/assets/network", 1_035_264),
        ("e2e", "make study NETWORK=$NETWORK DATA=$DATA", "../models/stories260K", 260_032),
    ],
)
def test_of_the_studies_that_are_kept_it_says_what_their_pages_do(
    task: str,
    command: str,
    network: str,
    parameters: int,
    study: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"data.batch_size": 16, "model.network.path": network, "model.decoding.num_beams": 1}
    found = told(study, task, command, FIVE, config=config, cost={"parameters": parameters})
    kept = (study.TOP / "docs" / "results" / task / "README.md").read_text(encoding="utf-8")
    lines = kept.splitlines()[2:]
    assert [f"- {sentence}" for sentence in found] == lines[: lines.index("")]


def test_of_other_inputs_it_says_what_they_are(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "FIRST_RATES", (-6, -4))
    decoding = {"model.decoding.temperature": 0.7, "model.decoding.num_beams": 4}
    config = decoding | {"data.batch_size": 16, "model.network.path": "../models/other"}
    at_the_edge = {"full": {-6: 0.5, -5: 0.2, -4: 0.4}, "lora": {-5: 0.5, -4: 0.3}, "qlora": {-5: 0.7, -4: 0.6}}
    first, _, trained, rates, _ = told(study, "e2e", "", at_the_edge, config=config, cost={"parameters": 1234567})
    assert first.startswith("other, a network of 1,234,567 parameters, and E2E: ")
    assert trained.endswith("; beam search of width 4 with sampling at temperature 0.7")
    assert "0.001 and 0.01, then half a decade to both sides of the best until both are worse; " in rates
    assert "; of LoRA and QLoRA the search ended before; how many were tried: full 3, LoRA 2, QLoRA 2" in rates


@pytest.mark.parametrize(("options", "said"), [
    (["--task", "e2e"], "needs --network DIR and --data DIR"),
    (["--task", "demo", "--steps", "12"], "give a multiple of 8"),
])  # fmt: skip
def test_a_command_that_makes_no_sense_is_refused(
    options: list[str], said: str, study: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", *options])
    with pytest.raises(SystemExit, match="2"):
        study.main()
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_ends_with_the_page_and_again_with_the_same(scripts: Path, tmp_path: Path) -> None:
    words = ["--task", "demo", "--steps", "8", "--seeds", "2", "--root", tmp_path / "runs", "--out", tmp_path / "out"]
    pages = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, scripts / "study.py", *words], capture_output=True, text=True, check=True
        )
        assert done.stdout == f"{tmp_path}/out/comparison.html\n"
        pages.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert pages[0] == pages[1]
