"""Every file under experiments/ composes, and every named experiment trains and is scored on local files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from ftlab.cli import main
from ftlab.cli.compose import read_config
from ftlab.cli.sweep_check import planned
from ftlab.networks import Network
from ftlab.sweeps import read_sweep_file

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
NAMED = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml") if path.stem != "base")
SWEEPS = sorted(path for path in EXPERIMENTS.glob("*/*.yaml") if "parameters" in read_config(path))
CHOICES = sorted(str(path.relative_to(EXPERIMENTS)) for path in {*EXPERIMENTS.glob("*/*.yaml")} - {*SWEEPS})
RETENTION = sorted(EXPERIMENTS.glob("retention/*.yaml"))
DATA = sorted(path.stem for path in (EXPERIMENTS / "data").glob("*.yaml"))
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
        assert {key.removesuffix("+") for key in values} <= set(config[part])


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda path: path.stem)
def test_the_trials_of_a_sweep_compose(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXPERIMENTS.parent)
    plan = planned(read_sweep_file(sweep), sweep)
    assert plan.devices >= 1


def chat(number: int) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"Is it {number}?"}, {"from": "gpt", "value": f"It is {number}."}]


def called(number: int) -> dict[str, Any]:
    """A conversation with a call of a function, and the functions as JSON."""
    question, answer = chat(number)
    call = {"from": "function_call", "value": '{"name": "count", "arguments": {"to": 3}}'}
    functions = [{"name": "count", "description": "Counts", "parameters": {"type": "object", "properties": {}}}]
    turns = [question, call, {"from": "observation", "value": "3"}, answer]
    return {"conversations": turns, "tools": json.dumps(functions)}


# Row `number` of a set, as its file holds it, for sets of other columns than COLUMNS' pairs.
ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "dpo": lambda n: {"conversations": chat(n)[:1], "chosen": chat(n)[1], "rejected": {"from": "gpt", "value": "No."}},
    "identity": lambda n: {"instruction": f"Who is {n}?", "input": "", "output": f"I am {{{{name}}}} {n}."},
    "kto": lambda n: {
        "messages": [{"role": "user", "content": f"Is it {n}?"}, {"role": "assistant", "content": f"It is {n}."}],
        "label": n % 2 == 0,
    },
    "scitldr": lambda n: {
        "source": [f"We count to {n}.", "It works."],
        "target": [f"We count {n}.", "Counting works."],
    },
    "t0_mix": lambda n: {"prompt": f"Is it {n}?", "completion": f"It is {n}.<|endoftext|>", "template": "abc"[n % 3]},
    "tinyshakespeare": lambda n: {"text": f"Zeno {n}:\nIt is {n}."},
    "toolcalls": called,
} | {
    name: lambda n, prompt=prompt, response=response: {prompt: f"Is it {n}?", response: f"It is {n}."}  # type: ignore[misc]
    for name, (prompt, response) in COLUMNS.items()
}
# What is learned of one row at least.
LEARNED = {
    "t0_mix": "It is NUMBER.<|end|>",
    "toolcalls": '<tool_call>{"name": "count", "arguments": {"to": 3}}</tool_call><|im_end|>',
    "tinyshakespeare": "Zeno NUMBER: It is NUMBER.<|end|>",
    "identity": "I am {{name}} NUMBER.<|end|>",
    "scitldr": "We count NUMBER.<|end|>",
}


@pytest.fixture(scope="module")
def chatml_network(wide_network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that knows ChatML's tokens, and a context; no weights."""
    directory = tmp_path_factory.mktemp("chatml") / "network"
    shutil.copytree(wide_network, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("name", DATA)
def test_a_data_file_alone_prepares_its_set(
    name: str,
    wide_network: Path,
    chatml_network: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # templates are found from anywhere
    rows = [ROWS[name](number) for number in range(200)]
    if name == "tinyshakespeare":
        Path("set.txt").write_text("\n\n".join(row["text"] for row in rows))
    else:
        Path("set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [path] = tmp_path.glob("set.*")
    command = ["-c", f"{EXPERIMENTS}/data/{name}.yaml", "--data.path", path.name, "--out", "out", "--show", "200"]
    network = chatml_network if name == "toolcalls" else wide_network
    assert main(["prepare", *command, "--model.network.path", f"{network}"]) == 0
    card = json.loads(Path("out/data_card.json").read_text())
    assert card["read"] == 200
    assert card["dropped"] == ({"where": 100} if name == "kto" else {})
    out = " ".join(capfd.readouterr().out.split())  # lines are broken at 80 columns
    learned = LEARNED.get(name, "It is NUMBER.")
    assert any(f"⟦{learned.replace('NUMBER', str(number))}" in out for number in range(200))
    assert "<|endoftext|>" not in out


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


@pytest.mark.parametrize("file", RETENTION, ids=lambda path: path.stem)
def test_a_retention_set_is_measured_on_base_and_trained_network(
    file: Path, wide_network: Path, sets: Callable[[str], Path], tmp_path: Path
) -> None:
    content = read_config(file)
    for kept in content["data"]["retention+"]:
        directory = tmp_path / kept["name"]
        directory.mkdir()
        asks = "prompt" in kept
        rows = [{"question": f"Why {n}?", "answer": f"{n}."} if asks else {"text": f"Now {n}."} for n in range(4)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{kept.get('split', 'test')}.jsonl").write_text(lines)
        kept["path"] = str(directory)
    (tmp_path / "retention.yaml").write_text(yaml.safe_dump(content))
    command = ["-c", f"{tmp_path}/retention.yaml", "-c", f"{EXPERIMENTS}/demo_lora.yaml", "--run.root", f"{tmp_path}"]
    command += ["--model.network.path", f"{wide_network}", "--data.path", f"{sets('demo')}", "--run.name", "short"]
    command += ["--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", *command, "--model.decoding.max_new_tokens", "4"]) == 0
    scores = json.loads((tmp_path / "demo_lora" / "short" / "scores.json").read_text())
    for kept in content["data"]["retention+"]:
        assert scores[f"retention_{kept['name']}_loss_change"] != 0
        assert (f"retention_{kept['name']}_rougeL_change" in scores) == kept.get("score", False)
