"""Every file under experiments/ composes, and every named experiment trains and is scored on local files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ftlab.cli import main
from ftlab.cli.compose import read_config
from ftlab.networks import Network

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
NAMED = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml") if path.stem != "base")
CHOICES = sorted(str(path.relative_to(EXPERIMENTS)) for path in EXPERIMENTS.glob("*/*.yaml"))
COLUMNS = {
    "alpaca": ("instruction", "output"),
    "demo": ("dialogue", "summary"),
    "dialogsum": ("dialogue", "summary"),
    "e2e": ("mr", "ref"),
    "gsm8k": ("question", "answer"),
}


@pytest.fixture(scope="module")
def wide_network(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network with a context as long as the experiments take theirs to be: it has no weights for positions."""
    directory = tmp_path_factory.mktemp("wide") / "network"
    shutil.copytree(network.path, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return directory


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A directory with the columns of one of COLUMNS: 64 records to train on, 4 to validate, 3 to test."""
    place = tmp_path_factory.mktemp("sets")

    def write(name: str) -> Path:
        prompt, response = COLUMNS[name]
        for split, size in {"train": 64, "dev": 4, "test": 3}.items():
            rows = [{prompt: f"{split} {n}", response: f"It is {n}."} for n in range(size)]
            (place / name).mkdir(exist_ok=True)
            (place / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return place / name

    return write


def data_of(experiment: str) -> str:
    """The data that an experiment includes."""
    files = read_config(EXPERIMENTS / f"{experiment}.yaml")["include"]
    return next(Path(file).stem for file in files if file.startswith("data/"))


def test_the_experiments_that_ship_are_there() -> None:
    methods = ("zeroshot", "full", "lora", "qlora")
    assert set(NAMED) >= {f"{name}_{method}" for name in ("demo", "dialogsum") for method in methods}
    assert set(NAMED) >= {"e2e_full", "e2e_lora", "e2e_qlora", "gsm8k_lora", "alpaca_full"}


@pytest.mark.parametrize("choice", CHOICES)
def test_each_choice_composes_with_the_others(choice: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["base.yaml", "network/demo.yaml", "data/demo.yaml", "method/lora.yaml", choice]
    options = [word for file in files for word in ("-c", str(EXPERIMENTS / file))]
    assert main(["fit", *options, "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    for part, values in read_config(EXPERIMENTS / choice).items():
        assert set(values) <= set(config[part])


@pytest.mark.parametrize("experiment", NAMED)
def test_an_experiment_trains_and_is_scored(
    experiment: str,
    wide_network: Path,
    sets: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command = ["-c", f"{EXPERIMENTS / experiment}.yaml", "--run.root", f"{tmp_path}/runs", "--run.name", "short"]
    command += ["--model.network.path", f"{wide_network}", "--data.path", f"{sets(data_of(experiment))}"]
    command += ["--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]
    command += ["--model.decoding.max_new_tokens", "4"]
    assert main(["fit", *command]) == 0
    assert main(["test", *command]) == 0
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if not line.startswith("ftlab: ")] == []
    run = tmp_path / "runs" / experiment / "short"
    scores = json.loads((run / "scores.json").read_text())
    assert {"test_loss", "test_rouge1", "test_rougeL", "test_bleu"} <= set(scores)
    assert len((run / "predictions/test.jsonl").read_text().splitlines()) == 3
    if not experiment.endswith("zeroshot"):
        assert (run / "metrics.csv").read_text().splitlines()[-1].split(",")[0] == "2"
        assert list((run / "model").glob("*.safetensors"))
