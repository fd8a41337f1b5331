"""`ftlab export`: written, opened again and compared before it is in place; or refused, and nothing written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("merge", [False, True])
def test_an_export_is_whole(
    method: str, merge: bool, finished: Callable[[str], Path], ftlab: Callable[..., Any]
) -> None:
    answer = ftlab("export", finished(method), "out", "--merge", str(merge).lower())
    assert answer.code == 0, answer.err
    assert answer.err == ""
    assert answer.out.startswith("out: ")
    files = {path.name for path in Path("out").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja"} < files
    assert ("config.json" in files) == (merge or method == "full")
    assert ("adapter_config.json" in files) == (not merge and method != "full")
    assert not list(Path().glob(".*unfinished"))


@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
def test_a_base_in_bfloat16_is_merged_in_float32(method: str, workplace: Path, ftlab: Callable[..., Any]) -> None:
    options = ["--model.method", method, "--model.network.dtype", "bfloat16", "--run.name", "half"]
    assert ftlab("fit", "-c", "tiny.yaml", *options).code == 0
    answer = ftlab("export", "runs/tiny/half", "out", "--merge", "true")
    assert answer.code == 0, answer.err
    assert {tensor.dtype for tensor in load_file("out/model.safetensors").values()} == {torch.float32}


def test_zero_shot_merges_into_its_base(
    finished: Callable[[str], Path], network: Any, ftlab: Callable[..., Any]
) -> None:
    assert ftlab("export", finished("zeroshot"), "out", "--merge", "true").code == 0
    base, out = (load_file(Path(place) / "model.safetensors") for place in (network.path, "out"))
    assert base.keys() == out.keys()
    assert all(torch.equal(base[name], out[name]) for name in base)


def _cut(model: Path) -> None:
    weights = next(model.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])


def _flip(model: Path) -> None:
    path = next(model.glob("*.safetensors"))
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[0] += 0.5
    save_file(weights, path, {"format": "pt"})


def _rescale(model: Path) -> None:
    path = next(model.glob("*config.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 1, "rms_norm_eps": 1.0}))


def _lose(model: Path) -> None:
    next(model.glob("*.safetensors")).unlink()


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("damage", [_cut, _flip, _rescale, _lose])
def test_a_damaged_model_is_refused(
    method: str, damage: Callable[[Path], None], finished: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    run = finished(method)
    damage(run / "model")
    before = set(Path().iterdir())
    sentence = refused("export", run, "out")
    assert str(run / "model") in sentence
    assert "not as the run wrote it" in sentence
    assert set(Path().iterdir()) == before
    assert "not as the run wrote it" in refused("generate", run, "--prompt", "a")


def test_an_export_that_answers_otherwise_is_refused(
    finished: Callable[[str], Path], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftlab.methods import LoRA

    def wrongly(self: LoRA, network: Any) -> Any:
        merged = network.merge_and_unload()
        merged.lm_head.weight.data.add_(0.1)
        return merged

    monkeypatch.setattr(LoRA, "merge", wrongly)
    run = finished("lora")
    before = set(Path().iterdir())
    assert f"answers otherwise than {run}" in refused("export", run, "out", "--merge", "true")
    assert set(Path().iterdir()) == before


def test_nothing_is_written_over(finished: Callable[[str], Path], workplace: Path, refused: Callable[..., str]) -> None:
    (workplace / "out").mkdir()
    assert refused("export", finished("lora"), "out") == "out exists: give a new directory"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "out"], "there is no run at nowhere"),
        ([], "run is missing"),
        (["nowhere"], "to is missing"),
        (["nowhere", "out", "--merg", "true"], "there is no key merg: did you mean merge?"),
        (["nowhere", "out", "--tolerance", "low"], "tolerance is low: it must be a number"),
    ],
)
def test_refusals(words: list[str], said: str, workplace: Path, refused: Callable[..., str]) -> None:
    assert said in refused("export", *words)


def test_a_run_that_has_not_finished_has_nothing_to_export(
    finished: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    run = finished("lora")
    (run / "model").rename(run / "elsewhere")
    assert "has no model/" in refused("export", run, "out")
