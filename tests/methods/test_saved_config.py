"""What is read of a saved adapter's configuration, what is refused, and that it is written in one order."""

import json
import pickle
import random
from pathlib import Path

import peft
import pytest

from ftlab.errors import UserError
from ftlab.methods.saved_config import order_config, read_config
from ftlab.methods.xlora import XLoRA

LAYERS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    peft.LoraConfig(target_modules=LAYERS).save_pretrained(str(tmp_path))
    return tmp_path


def change(directory: Path, **said: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))


def test_sets_are_written_in_one_order(saved: Path) -> None:
    config = peft.LoraConfig(target_modules=LAYERS, layers_to_transform=[3, 1])
    config.save_pretrained(str(saved))
    change(saved, target_modules=random.Random(0).sample(LAYERS, len(LAYERS)))
    order_config(saved, config)
    said = json.loads((saved / "adapter_config.json").read_text())
    assert said["target_modules"] == LAYERS
    assert said["layers_to_transform"] == [3, 1]
    again = read_config(saved)
    assert isinstance(again, peft.LoraConfig)
    assert again.target_modules == set(LAYERS)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(saved: Path) -> None:
    (saved / "adapter_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match=r"is pickled.*safetensors\.torch\.save_file\(torch\.load"):
        read_config(saved)
    (saved / "adapter_model.safetensors").touch()
    read_config(saved)


def test_a_module_to_import_is_refused(saved: Path) -> None:
    change(saved, megatron_config={"x": 1}, megatron_core="mine")
    with pytest.raises(UserError, match="megatron_config, which names a module to import"):
        read_config(saved)


@pytest.mark.parametrize("name", ["../../other", "a", "/etc"])
def test_a_mixture_does_not_lead_out_of_its_directory(name: str, saved: Path, tmp_path: Path) -> None:
    adapters = []
    for number in "01":
        (tmp_path / number).mkdir()
        peft.LoraConfig(target_modules=LAYERS).save_pretrained(str(tmp_path / number))
        adapters.append(str(tmp_path / number))
    mixture = tmp_path / "mixture"
    peft.XLoraConfig(hidden_size=8, adapters={name: adapters[0], "1": adapters[1]}).save_pretrained(str(mixture))
    with pytest.raises(UserError, match="is no adapter that ftlab has saved"):
        XLoRA(adapters).config_of(mixture)
