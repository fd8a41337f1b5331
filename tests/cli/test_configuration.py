"""How a configuration comes together: files that include files, options over them, and classes of the user's own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftlab.cli.compose import config_files, expand, read_config
from ftlab.errors import UserError
from ftlab.networks import Network


def parts(*arguments: str) -> list[Any]:
    """The content of each file in the order in which it is applied."""
    return [yaml.safe_load(word) for word in expand(arguments) if word != "--config"]


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def test_included_files_come_first_in_their_order_and_from_beside_the_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "sets/top.yaml": "include: [../base.yaml, data/words.yaml]\nseed_everything: 1\n",
            "base.yaml": "seed_everything: 2\n",
            "sets/data/words.yaml": "include: [more.yaml]\nseed_everything: 3\n",
            "sets/data/more.yaml": "seed_everything: 4\n",
        },
    )
    assert [part["seed_everything"] for part in parts("-c", str(tmp_path / "sets/top.yaml"))] == [2, 4, 3, 1]


def test_a_file_may_only_include(tmp_path: Path) -> None:
    write(tmp_path, {"top.yaml": "include: [a.yaml]\n", "a.yaml": "trainer: {max_steps: 1}\n"})
    assert parts(f"--config={tmp_path}/top.yaml") == [{"trainer": {"max_steps": 1}}]


def test_one_file_may_be_included_by_two(tmp_path: Path) -> None:
    write(tmp_path, {"top.yaml": "include: [a.yaml, b.yaml]\n", "c.yaml": "x: 1\n"})
    write(tmp_path, dict.fromkeys(("a.yaml", "b.yaml"), "include: [c.yaml]\n"))
    assert parts("-c", str(tmp_path / "top.yaml")) == [{"x": 1}, {"x": 1}]


def test_what_is_no_file_stays_in_its_place(tmp_path: Path) -> None:
    write(tmp_path, {"a.yaml": "x: 1\n", "b.yaml": "x: 2\n"})
    a, b = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    assert expand(["--u", "1", "-c", a, "--v=2", "--config", b]) == [
        "--u", "1", "--config", "x: 1\n", "--v=2", "--config", "x: 2\n",
    ]  # fmt: skip
    assert config_files(["-c", a, "--v=2", f"--config={b}"]) == [Path(a), Path(b)]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"top.yaml": "include: [top.yaml]"}, "top.yaml includes"),
        ({"top.yaml": "include: [a.yaml]", "a.yaml": "include: [b/../top.yaml]", "b/x": ""}, "which includes it"),
        ({"top.yaml": "include: [gone.yaml]"}, "gone.yaml, which is not there"),
        ({"top.yaml": "include: gone.yaml"}, "include is a list of files"),
        ({"top.yaml": "include: [{a: 1}]"}, "include is a list of files"),
        ({"top.yaml": "a: {b: 1"}, "top.yaml is not YAML"),
        ({"top.yaml": "- a"}, "top.yaml holds no keys"),
        ({"top.yaml": "a: {b: 1, c: 2}\nd: 1\na: {b: 2}\n"}, "top.yaml, line 3: a is there already, in line 1: take"),
        ({"top.yaml": "a: 2026-13-45"}, "top.yaml is not YAML (month must be in 1..12)"),
        ({"top.yaml": "a: !!bool maybe"}, "top.yaml is not YAML"),
        ({"top.yaml": "a: !!timestamp abc"}, "top.yaml is not YAML"),
        ({"top.yaml": "a: " + "9" * 5000}, "top.yaml is not YAML"),
        ({"top.yaml": "a: {b: 1, b: 1}"}, "top.yaml, line 1: b is there already, in line 1: take"),
        ({}, "there is no configuration file"),
    ],
)
def test_files_that_do_not_compose(files: dict[str, str], said: str, tmp_path: Path) -> None:
    write(tmp_path, files)
    with pytest.raises(UserError) as error:
        expand(["-c", str(tmp_path / "top.yaml")])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_mapping_takes_over_may_be_said_anew(tmp_path: Path) -> None:
    write(tmp_path, {"top.yaml": "a: &some {b: 1, c: 2}\nb: &more {e: 5}\nd: {<<: *some, <<: *more, b: 3}\n"})
    expected = {"a": {"b": 1, "c": 2}, "b": {"e": 5}, "d": {"b": 3, "c": 2, "e": 5}}
    assert read_config(tmp_path / "top.yaml") == expected


def test_a_file_must_follow() -> None:
    with pytest.raises(UserError, match="-c needs a configuration file"):
        expand(["--x", "1", "-c"])


def printed(answer: Any) -> dict[str, Any]:
    assert answer.code == 0
    assert answer.err == ""
    return yaml.safe_load(answer.out)


def test_a_later_file_changes_what_it_names_alone(workplace: Path, ftlab: Callable[..., Any]) -> None:
    write(workplace, {"over.yaml": "include: [tiny.yaml]\nmodel: {method: {init_args: {r: 3}}}\n"})
    config = printed(ftlab("fit", "-c", "over.yaml", "--print_config"))
    assert config["model"]["method"]["class_path"] == "ftlab.methods.LoRA"
    assert config["model"]["method"]["init_args"]["r"] == 3
    assert config["model"]["optimizer"]["init_args"]["lr"] == 1e-2


@pytest.mark.parametrize(("given", "kept"), [("1", 1), ("1.0", 1.0), ("0.5", 0.5)])
def test_one_batch_is_not_all_of_them(given: str, kept: float, workplace: Path) -> None:
    """Whoever has written Optional[Union[float, int]] before: typing hands that out for the other order, too."""
    keys = ["limit_val_batches", "val_check_interval"]  # the second takes a text, too
    words = ["fit", "-c", "tiny.yaml", *(f"--trainer.{key}={given}" for key in keys), "--print_config"]
    code = f"""
from typing import Optional, Union
Optional[Union[float, int]]
from ftlab.cli import main
main({words})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    trainer = yaml.safe_load(done.stdout)["trainer"]
    assert [(trainer[key], type(trainer[key])) for key in keys] == [(kept, type(kept))] * 2


def test_the_command_line_overrides(
    workplace: Path, network: Network, data_path: str, ftlab: Callable[..., Any]
) -> None:
    write(workplace, {"other.yaml": "include: [tiny.yaml]\ndata: {path: nowhere}\nmodel: {network: {path: nowhere}}\n"})
    command = ["-c", "other.yaml", "--model.method", "QLoRA", "--model.method.r", 8, "--data.path", data_path]
    command += ["--model.network.path", network.path, "--run.name", "over"]
    assert ftlab("fit", *command).code == 0
    assert ftlab("test", *command).code == 0
    adapter = json.loads(Path("runs/other/over/model/adapter_config.json").read_text())
    assert adapter["r"] == 8
    assert adapter["base_model_name_or_path"] == network.path
    config = yaml.safe_load(Path("runs/other/over/config.yaml").read_text())
    assert config["model"]["method"]["class_path"] == "ftlab.methods.QLoRA"
    assert config["model"]["method"]["init_args"]["kind"] == "nf4"


def test_a_printed_configuration_runs_as_the_same_run(workplace: Path, ftlab: Callable[..., Any]) -> None:
    command = ["fit", "-c", "tiny.yaml", "--model.method", "ZeroShot", "--run.experiment", "same"]
    text = ftlab(*command, "--print_config").out
    write(workplace, {"printed.yaml": text})
    assert ftlab(*command).code == 0
    again = ftlab("fit", "-c", "printed.yaml")
    assert again.code == 0
    assert again.err.endswith("has finished; another --run.name repeats it\n")


def test_a_metric_of_the_user(workplace: Path, ftlab: Callable[..., Any]) -> None:
    write(workplace, {"my_scores.py": "def words(prediction, references):\n    return len(references[0].split())\n"})
    command = ["-c", "tiny.yaml", "--run.name", "own", "--model.method", "ZeroShot"]
    command += ["--model.metrics", "[exact_match, my_scores.words]"]
    assert ftlab("fit", *command).code == 0
    assert ftlab("test", *command).code == 0
    rows = [json.loads(line) for line in Path("runs/tiny/own/predictions/test.jsonl").read_text().splitlines()]
    assert [row["scores"]["words"] for row in rows] == [len(row["references"][0].split()) for row in rows]
    scores = json.loads(Path("runs/tiny/own/scores.json").read_text())
    assert scores["test_words"] == sum(row["scores"]["words"] for row in rows) / len(rows)


BIASES = '''
from ftlab.methods import Full

class LastNorm(Full):
    """Trains the last norm times a scale."""

    def __init__(self, layer: str = "model.norm") -> None:
        super().__init__([f"{layer}.*"])
'''


def test_a_method_of_the_user(workplace: Path, ftlab: Callable[..., Any]) -> None:
    write(workplace, {"my_methods.py": BIASES})
    command = ["-c", "tiny.yaml", "--run.name", "mine", "--model.method", "my_methods.LastNorm"]
    assert ftlab("fit", *command, "--model.method.layer", "model.norm").code == 0
    assert ftlab("test", "-c", "runs/tiny/mine/config.yaml").code == 0
    provenance = json.loads(Path("runs/tiny/mine/provenance.json").read_text())
    assert provenance["cost"]["trainable_parameters"] == 64


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--trainer.max_stps 3", "there is no key trainer.max_stps: did you mean trainer.max_steps?"),
        ("--trainr.max_steps 3", "there is no key trainr: did you mean trainer?"),
        ("--model.network.pth x", "there is no key model.network.pth: did you mean model.network.path?"),
        ("--model.methd.r 3", "there is no key model.methd: did you mean model.method?"),
        ("--model.method.dropot 0", "there is no key model.method.dropot: did you mean model.method.dropout?"),
        ("--model.decoding.max_tokens 3", "there is no key model.decoding.max_tokens: did you mean model.decoding.max_new_tokens?"),  # noqa: E501
        ("--model.optimizer.weigth_decay 0", "there is no key model.optimizer.weigth_decay: did you mean model.optimizer.weight_decay?"),  # noqa: E501
        ("--data.colour red", "there is no key data.colour: under data there are network, path, sources"),
        ("--trainer.max_step 3", "there is no key trainer.max_step: did you mean trainer.max_steps?"),
        ("--run.nme a", "there is no key run.nme: did you mean run.name?"),
    ],
)  # fmt: skip
def test_a_misspelt_key_is_refused_with_the_nearest(
    options: str, sentence: str, workplace: Path, refused: Callable[..., str]
) -> None:
    assert refused("fit", "-c", "tiny.yaml", *options.split()).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("trainer: {max_stps: 3}", "there is no key trainer.max_stps: did you mean trainer.max_steps?"),
        ("trainr: {max_steps: 3}", "there is no key trainr: did you mean trainer?"),
        ("model: {method: {init_args: {rnk: 3}}}", "there is no key model.method.rnk: under model.method there are r,"),
        ("model: {network: {dtyp: x}}", "there is no key model.network.dtyp: did you mean model.network.dtype?"),
        (
            "model: {schedule: {class_path: ftlab.modules.Cosine, init_args: {warmpu: 1}}}",
            "there is no key model.schedule.warmpu: did you mean model.schedule.warmup?",
        ),
        (
            "model: {method: {class_path: ftlab.methods.Peft, init_args: "
            "{config: {class_path: peft.IA3Config, init_args: {target_module: [q_proj]}}}}}",
            "there is no key model.method.config.target_module: did you mean model.method.config.target_modules?",
        ),
    ],
)
def test_a_misspelt_key_in_a_file(text: str, sentence: str, workplace: Path, refused: Callable[..., str]) -> None:
    write(workplace, {"over.yaml": f"include: [tiny.yaml]\n{text}\n"})
    assert refused("fit", "-c", "over.yaml").startswith(sentence)


@pytest.mark.parametrize("name", ["815e48999382", "1234e567", "12345678"])
def test_a_hash_that_looks_like_a_number_is_a_name(name: str, workplace: Path, ftlab: Callable[..., Any]) -> None:
    """As one hash in seventy does, of eight digits."""
    Path("named.yaml").write_text(
        f"include: [tiny.yaml]\nrun: {{name: '{name}'}}\nmodel: {{optimizer: {{lr: 1e-4}}}}\n"
    )
    answer = ftlab("fit", "-c", "named.yaml", "--print_config")
    assert answer.code == 0
    config = yaml.safe_load(answer.out)
    assert config["run"]["name"] == name
    assert config["model"]["optimizer"]["init_args"]["lr"] == 1e-4
