"""A package of somebody else's, installed by pip, adds a method by entry point; nothing in ftlab is edited."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from ftlab.cli import main
from ftlab.networks import Network

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "others-methods"
version = "1.0"

[project.entry-points."ftlab.methods"]
Gains = "others_methods.gains:TrainedGains"
Torn = "others_methods.torn:Torn"
LoRA = "others_methods.torn:Torn"

[tool.setuptools]
packages = ["others_methods"]
"""

GAINS = '''
"""Trains the gains of the norms, and counts its steps."""

from ftlab.methods import Full


class TrainedGains(Full):
    """Trains norms only, and shrinks them a little, the longer the more.

    Args:
        shrink: By how much at a step.
    """

    def __init__(self, shrink: float = 0.0) -> None:
        super().__init__(["*norm*"])
        self.shrink = shrink
        self.steps = 0

    def after_step(self, network, step):
        self.steps += 1
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data.mul_(1 - self.shrink * self.steps)

    def state(self, network):
        return {"steps": self.steps}

    def restore(self, network, state):
        self.steps = state["steps"]
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package, made and installed; into a directory of its own, as an environment belongs to all tests."""
    source, place = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "others_methods").mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "others_methods/__init__.py").touch()
    (source / "others_methods/gains.py").write_text(GAINS)
    (source / "others_methods/torn.py").write_text("import a_library_that_is_gone\n")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(place)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    sys.path.insert(0, str(place))
    importlib.invalidate_caches()
    yield place
    sys.path.remove(str(place))
    for name in [name for name in sys.modules if name.startswith("others_methods")]:
        del sys.modules[name]


@pytest.fixture
def experiment(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network, data_path: str
) -> Path:
    """An experiment that names the method as the package does."""
    monkeypatch.chdir(tmp_path)
    content = {
        "trainer": {"accelerator": "cpu", "max_steps": 6, "enable_progress_bar": False, "num_sanity_val_steps": 0},
        "model": {
            "network": {"path": network.path},
            "method": {"class_path": "Gains", "init_args": {"shrink": 0.01}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}},
            "decoding": {"max_new_tokens": 4},
        },
        "data": {"path": data_path, "batch_size": 4, "template": "plain"},
        "run": {"checkpoints": {"every_n_steps": 2}},
    }
    Path("gains.yaml").write_text(yaml.safe_dump(content))
    return Path("gains.yaml")


def test_it_trains_resumes_and_exports(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["fit", "-c", str(experiment), "--run.name", "whole"]) == 0
    whole = Path("runs/gains/whole")
    resolved = yaml.safe_load((whole / "config.yaml").read_text())["model"]["method"]
    assert resolved["class_path"] == "others_methods.gains.TrainedGains"
    assert resolved["init_args"] == {"shrink": 0.01}

    gains = importlib.import_module("others_methods.gains").TrainedGains
    hook = gains.after_step

    def fails(self: Any, network: Any, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt
        hook(self, network, step)

    with monkeypatch.context() as patch:
        patch.setattr(gains, "after_step", fails)
        assert main(["fit", "-c", str(experiment), "--run.name", "stopped"]) != 0
    stopped = Path("runs/gains/stopped")
    assert torch.load(stopped / "checkpoints/last.ckpt")["global_step"] == 2
    assert main(["fit", "-c", str(experiment), "--run.name", "stopped"]) == 0
    ends = [torch.load(run / "checkpoints/last.ckpt") for run in (whole, stopped)]
    assert [end["ftlab"]["method"] for end in ends] == [{"steps": 6}, {"steps": 6}]
    for name, weight in ends[0]["state_dict"].items():
        assert torch.equal(ends[1]["state_dict"][name], weight), name

    assert main(["export", str(stopped), "exported"]) == 0
    opened = AutoModelForCausalLM.from_pretrained("exported")
    best = torch.load(stopped / "checkpoints/best.ckpt")["state_dict"]
    assert torch.equal(opened.model.norm.weight.data, best["network.model.norm.weight"])


@pytest.mark.parametrize(
    "words",
    [
        ["--model.method", "Gains", "--model.method.shrink", "0.5"],
        ["--model.method=Gains", "--model.method.shrink=0.5"],
        ["--model.method.class_path", "Gains", "--model.method.init_args.shrink", "0.5"],
        ["-c", "other.yaml"],
    ],
    ids=["option", "equals", "class_path", "file"],
)
def test_the_name_is_known_wherever_a_method_is_named(
    words: list[str], experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other.yaml").write_text(
        json.dumps({"model": {"method": {"class_path": "Gains", "init_args": {"shrink": 0.5}}}})
    )
    assert main(["fit", "-c", str(experiment), *words, "--print_config"]) == 0
    method = yaml.safe_load(capsys.readouterr().out)["model"]["method"]
    assert method == {"class_path": "others_methods.gains.TrainedGains", "init_args": {"shrink": 0.5}}


def test_help_shows_its_docstring(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model.method.help", "Gains"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Trains norms only, and shrinks them a little, the longer the more" in out
    assert "By how much at a step." in out


def test_a_misspelt_option_is_refused(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", str(experiment), "--model.method", "Gains", "--model.method.shrnk", "0.5"]) == 1
    assert "did you mean" in capsys.readouterr().err


def test_a_method_that_cannot_be_imported_disturbs_nobody_else(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "-c", str(experiment), "--model.method", "ZeroShot", "--print_config"]) == 0
    capsys.readouterr()
    for verb in (["fit", "-c", str(experiment), "--model.method", "Torn"], ["check-method", "Torn"]):
        assert main(verb) == 1
        assert capsys.readouterr().err == (
            "ftlab: method Torn is others_methods.torn:Torn of the package others-methods, which cannot be imported "
            "(ModuleNotFoundError: No module named 'a_library_that_is_gone')\n"
        )


def test_no_package_takes_the_name_of_a_method_of_ours(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", str(experiment), "--model.method", "LoRA", "--print_config"]) == 0
    assert "class_path: ftlab.methods.LoRA" in capsys.readouterr().out


def test_a_name_that_two_packages_offer_is_refused(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "site/second_package-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: second-package\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[ftlab.methods]\nGains = somewhere.else:Gains\n")
    monkeypatch.syspath_prepend(str(other.parent))
    assert main(["fit", "-c", str(experiment)]) == 1
    said = "ftlab: method Gains is offered by others-methods and second-package: give the dotted path of the one that"
    assert capsys.readouterr().err.startswith(said)


def test_it_passes_the_suite_by_its_name(
    experiment: Path, network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    options: list[Any] = ["--method.shrink", "0.001", "--network.path", network.path]
    assert main(["check-method", "Gains", *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "TrainedGains: 13 passed"


@pytest.mark.slow
def test_and_so_it_is_in_fresh_processes(experiment: Path, installed: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), *sys.path])}
    for words in (
        ["fit", "-c", str(experiment), "--run.name", "fresh"],
        ["export", "runs/gains/fresh", "exported"],
        ["check-method", "Gains", "--processes", "true"],
    ):
        subprocess.run([sys.executable, "-m", "ftlab", *words], env=environment, check=True, capture_output=True)
    assert Path("exported/model.safetensors").is_file()
