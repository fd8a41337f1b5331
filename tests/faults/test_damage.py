"""Files that are cut or in which a bit has flipped: refused or made anew with a sentence, never wrong numbers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab.cli import main
from ftlab.data import FinetuneData
from ftlab.networks import Network
from ftlab.runs import CheckpointFiles


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    """The lowest bit of a byte near the end: in the tensors, not in what describes them."""
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


DAMAGES = [cut, flip]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name", ["rows.arrow", "names.arrow", "index.npz", "records.jsonl", "report.json", "sealed.json"]
)
def test_prepared_data(name: str, damage: Callable[[Path], None], make_data: Any, tmp_path: Path, capfd: Any) -> None:
    def rows() -> tuple[FinetuneData, list[Any]]:
        data = make_data(cache=str(tmp_path / "cache"))
        return data, [(row.input_ids.tolist(), row.spans.tolist(), row.source) for row in data.rows("train")]

    data, expected = rows()
    file = data.prepared.directory / name
    contents = {path.name: path.read_bytes() for path in file.parent.iterdir()}
    capfd.readouterr()
    damage(file)
    assert rows()[1] == expected
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("ftlab")]
    assert len(said) == 1
    assert said[0].startswith("ftlab: data.cache: ")
    assert said[0].endswith(" is damaged, and the data is prepared anew")
    assert name in said[0] or name == "sealed.json"
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == contents


@pytest.fixture
def trained(workplace: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of a finished run over a copy of the network in base/."""
    monkeypatch.syspath_prepend(workplace)
    shutil.copytree(network.path, "base")
    command = ["-c", "tiny.yaml", "--run.name", "done", "--model.method", "LoRA", "--trainer.max_steps", "2"]
    command += ["--model.network.path", "base", "--trainer.val_check_interval", "1"]
    assert main(["fit", *command]) == 0
    return command


RUN = Path("runs/tiny/done")


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_base(damage: Callable[[Path], None], trained: list[str], capfd: Any) -> None:
    damage(Path("base/model.safetensors"))
    before = (RUN / "metrics.csv").read_bytes()
    longer = [*trained, "--trainer.max_steps", "4"]
    for command in (["test", *trained], ["fit", *longer]):
        capfd.readouterr()
        assert main(command) == 1
        *_, said = capfd.readouterr().err.splitlines()
        assert said.startswith("ftlab: ")
        cut_off = "base has no weights that transformers can open"
        assert (cut_off if damage is cut else "the frozen base is not the one that runs/tiny/done began with") in said
    assert (RUN / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_saved_model(damage: Callable[[Path], None], trained: list[str], capfd: Any) -> None:
    file = RUN / "model/adapter_model.safetensors"
    damage(file)
    for command in (["generate", str(RUN), "--prompt", "x"], ["export", str(RUN), "out"]):
        capfd.readouterr()
        assert main(command) == 1
        assert f"{file} is not as the run wrote it" in capfd.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_that_is_judged(damage: Callable[[Path], None], trained: list[str], capfd: Any) -> None:
    damage((RUN / "checkpoints/best.ckpt").resolve())
    capfd.readouterr()
    assert main(["test", *trained]) == 1
    assert "is not the one that its name tells" in capfd.readouterr().err


def test_a_clock_that_was_set_back_chooses_no_older_checkpoint(tmp_path: Path) -> None:
    """Steps count, and times do not, with the links and without them, as a copy may have lost them."""
    files = CheckpointFiles(tmp_path)
    for step in (9, 10, 11):
        path = files.write("last", step, lambda file, step=step: file.write(b"%d" % step))
        os.utime(path, (1e9 - step * 1e6,) * 2)  # each a fortnight before the one before it
    newest = path
    assert files.to_go_on_from() == (newest, [])
    files.last.unlink()
    assert files.to_go_on_from() == (newest, [])
    files.keep([])
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("last-*")) == [10, 11]
