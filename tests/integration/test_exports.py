"""What a run leaves is open to others: transformers and peft alone, in a fresh process, give the same logits."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from ftlab.cli import main
from ftlab.cli.experiment import Experiment
from ftlab.networks import Network

METHODS = {
    "full": ["Full"],
    "lora": ["LoRA"],
    "qlora": ["QLoRA", "--model.method.compute_dtype", "float32"],
}
IDS = torch.tensor([[1, 40, 50, 60, 70, 80, 90, 100, 110, 120]])

OPEN_WITHOUT_FTLAB = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                         bnb_4bit_compute_dtype=torch.float32)
base, ids, places = json.load(open("places.json"))
logits = {}
for name, place in places.items():
    if name in ("lora", "qlora"):
        options = {"quantization_config": nf4} if name == "qlora" else {}
        network = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **options), place)
    else:
        network = AutoModelForCausalLM.from_pretrained(place)
    network.train()  # in evaluation mode bitsandbytes rounds to bfloat16 on some CPUs; there is no dropout here
    assert AutoTokenizer.from_pretrained(place).chat_template
    with torch.no_grad():
        logits[name] = network(torch.tensor(ids)).logits.float()
torch.save(logits, "logits.pt")
assert not [name for name in sys.modules if name.startswith("ftlab")]
"""


@pytest.fixture(scope="module")
def logits(
    tmp_path_factory: pytest.TempPathFactory, network: Network, data_path: str
) -> Callable[[str, str], tuple[Tensor, Tensor]]:
    """The logits of a run's best checkpoint, and those of what it wrote (`model` or `merged`), opened by others."""
    place = tmp_path_factory.mktemp("exports")
    experiment = {
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False, "num_sanity_val_steps": 0},
        "model": {
            "network": {"path": network.path},
            "method": {"class_path": "ftlab.methods.LoRA"},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}},
        },
        "data": {"path": data_path},
    }
    expected, places = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        Path("tiny.yaml").write_text(yaml.safe_dump(experiment))
        for name, method in METHODS.items():
            run = Path(f"runs/tiny/{name}")
            assert main(["fit", "-c", "tiny.yaml", "--run.name", name, "--model.method", *method]) == 0
            assert main(["export", str(run), f"{name}-merged", "--merge", "true"]) == 0
            assert main(["export", str(run), f"{name}-adapter"]) == 0
            expected[name] = _of_the_checkpoint(run)
            places |= {name: f"{name}-adapter", f"{name}-merged": f"{name}-merged"}
        Path("places.json").write_text(json.dumps([network.path, IDS.tolist(), places]))
        subprocess.run([sys.executable, "-c", OPEN_WITHOUT_FTLAB], check=True)
        found = torch.load("logits.pt")
        for name in METHODS:
            saved, exported = _files(Path(f"runs/tiny/{name}/model")), _files(Path(f"{name}-adapter"))
            assert exported.pop("README.md")  # the model card, which is all that an export adds
            assert exported == saved
    return lambda method, form: (expected[method], found[method if form == "model" else f"{method}-merged"])


def _files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@torch.no_grad()
def _of_the_checkpoint(run: Path) -> Tensor:
    experiment = Experiment(["-c", str(run / "config.yaml")])
    best = experiment.trained_checkpoint()
    experiment.trainer.validate(experiment.model, experiment.datamodule, ckpt_path=best, verbose=False)
    network = experiment.model.network
    assert network is not None
    return network(IDS).logits.float()


@pytest.mark.parametrize("form", ["model", "merged"])
@pytest.mark.parametrize("method", METHODS)
def test_others_get_the_same_logits(
    method: str, form: str, logits: Callable[[str, str], tuple[Tensor, Tensor]]
) -> None:
    trained, opened = logits(method, form)
    assert trained.std() > 0.1
    torch.testing.assert_close(opened, trained, rtol=0, atol=1e-5)


def test_the_methods_differ(logits: Callable[[str, str], tuple[Tensor, Tensor]]) -> None:
    full, lora, qlora = (logits(method, "model")[0] for method in METHODS)
    assert min((full - lora).abs().max(), (lora - qlora).abs().max()) > 1e-2
