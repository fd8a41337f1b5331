"""docs/how-to/add-a-method.md as the text stands: its method, its commands, its files."""

import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from ftlab.cli import main
from ftlab.networks import Network
from ftlab.testing import check_method, suite

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/how-to/add-a-method.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
METHOD, USE = (text for kind, text in BLOCKS if kind == "python")
COMMANDS = [line for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the files of the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "lora_xs.py").write_text(METHOD)
    for kind, text in BLOCKS:
        if kind == "yaml":
            (tmp_path / text.split()[1]).write_text(text)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    (tmp_path / "ftlab").symlink_to(ROOT / "ftlab")  # the demo's files name what ships by its place in the repository
    yield tmp_path
    sys.modules.pop("lora_xs", None)


@pytest.fixture
def page(place: Path) -> ModuleType:
    return importlib.import_module("lora_xs")


def test_the_method_is_that_of_the_examples_and_no_longer_than_the_page_says() -> None:
    assert (ROOT / "docs/examples/lora_xs.py").read_text() == METHOD
    assert len(METHOD.splitlines()) <= 60


def test_it_passes_the_suite_on_four_bits(page: ModuleType) -> None:
    check_method(page.LoRAXS(r=4), bases=["nf4"], parameters=128)


@pytest.mark.slow
def test_it_passes_on_every_base_and_in_other_processes(place: Path, page: ModuleType) -> None:
    check_method(page.LoRAXS(r=4), processes=True)
    exec(USE, {})


def test_what_is_frozen_is_the_best_approximation_of_the_weight(page: ModuleType, network: Network) -> None:
    base = network.model()
    adapted = page.LoRAXS(r=5, targets=("k_proj",)).adapt(network.model())
    weight = base.get_submodule("model.layers.1.self_attn.k_proj").weight.detach().double().numpy()
    layer = adapted.get_submodule("model.layers.1.self_attn.k_proj")
    u, s, v = numpy.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(layer.a @ layer.b, torch.tensor((u[:, :5] * s[:5]) @ v[:5]).float())
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == {
        f"model.layers.{n}.self_attn.k_proj.r" for n in range(2)
    }


def test_peft_opens_what_it_saves_without_it(page: ModuleType, network: Network, tmp_path: Path) -> None:
    method = page.LoRAXS(r=4)
    adapted = method.adapt(network.model())
    for name, parameter in adapted.named_parameters():
        if name.endswith(".r"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    (tmp_path / "saved").mkdir()
    method.save(adapted, tmp_path / "saved")
    opened = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(network.path), tmp_path / "saved")
    ids = torch.tensor([[5, 60, 700, 8, 90]])
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(opened(ids).logits, network.model()(ids).logits, atol=0.1)


def test_the_commands_of_the_page(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check, *others = COMMANDS
    for command in [f"{check} --bases [full]", *others]:
        program, *words = shlex.split(command)
        assert program == "ftlab"
        assert main(words) == 0, command
    out = " ".join(capfd.readouterr().out.split())
    assert "LoRAXS: 13 passed" in out
    assert "Side of R." in out
    assert (place / "merged/model.safetensors").is_file()


def test_the_table_names_every_check() -> None:
    named = re.findall(r"^\| ([\w -]+) \| ", PAGE, flags=re.MULTILINE)
    assert named == ["check", "training", *suite.CHECKS, *suite.IN_PROCESSES]
