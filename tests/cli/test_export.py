"""`ftlab export`: written, opened again and compared before it is in place; or refused, and nothing written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ftlab.networks import Quantization


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
    assert {"tokenizer.json", "chat_template.jinja", "README.md"} < files
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


@pytest.mark.parametrize("method", ["LoRA", "ZeroShot"])
def test_a_checkpoint_in_few_bits_is_merged_in_full_precision(
    method: str, workplace: Path, network: Any, ftlab: Callable[..., Any]
) -> None:
    network.model(Quantization("nf4", compute_dtype="float32")).save_pretrained("few")
    network.tokenizer().save_pretrained("few")
    options = ["--model.method", method, "--model.network.path", "few", "--run.name", "few"]
    assert ftlab("fit", "-c", "tiny.yaml", *options).code == 0
    answer = ftlab("export", "runs/tiny/few", "out", "--merge")
    assert answer.code == 0, answer.err
    assert {tensor.dtype for tensor in load_file("out/model.safetensors").values()} == {torch.float32}
    assert "quantization_config" not in json.loads(Path("out/config.json").read_text())


def test_zero_shot_merges_into_its_base(
    finished: Callable[[str], Path], network: Any, ftlab: Callable[..., Any]
) -> None:
    assert ftlab("export", finished("zeroshot"), "out", "--merge", "true").code == 0
    base, out = (load_file(Path(place) / "model.safetensors") for place in (network.path, "out"))
    assert base.keys() == out.keys()
    assert all(torch.equal(base[name], out[name]) for name in base)


def test_a_run_whose_model_has_directories_is_exported_and_asked(
    finished: Callable[[str], Path], ftlab: Callable[..., Any]
) -> None:
    """X-LoRA keeps the adapters that it mixes beside its router."""
    adapters = [str(finished("lora") / "model")] * 2
    options = ["--model.method", "XLoRA", "--model.method.adapters", json.dumps(adapters), "--run.name", "mixed"]
    assert ftlab("fit", "-c", "tiny.yaml", *options).code == 0
    run = Path("runs/tiny/mixed")
    sizes = {str(file.relative_to(run / "model")): file.stat().st_size for file in (run / "model").rglob("*.*")}
    record = json.loads((run / "provenance.json").read_text())
    assert {"0/adapter_model.safetensors", "1/adapter_model.safetensors"} < set(sizes)
    assert record["model"].keys() == sizes.keys()
    assert record["cost"]["model_bytes"] == sum(sizes.values())
    answer = ftlab("export", run, "out")
    assert answer.code == 0, answer.err
    assert Path("out/1/adapter_model.safetensors").is_file()
    assert ftlab("generate", run, "--prompt", "Zeno").code == 0
    (run / "model/1/adapter_model.safetensors").write_bytes(b"")
    assert "1/adapter_model.safetensors is not as the run wrote it" in ftlab("generate", run, "--prompt", "Zeno").err


@pytest.mark.parametrize("merge", [(), ("--merge",)])
def test_run_and_export_are_scored_on_validation_records(
    merge: tuple[str, ...], finished: Callable[[str], Path], ftlab: Callable[..., Any]
) -> None:
    run = finished("lora")
    out = ftlab("export", run, "out", *merge).out
    (loss,) = (line.split() for line in out.splitlines() if line.startswith("loss"))
    recorded = json.loads((run / "scores.json").read_text())["val_loss"]  # of the same five records
    assert [float(value) for value in loss[1:]] == pytest.approx([recorded, recorded], abs=1e-3)
    (rouge,) = (line.split() for line in out.splitlines() if line.startswith("rougeL "))
    assert ftlab("validate", "-c", run / "config.yaml").code == 0
    recorded = json.loads((run / "scores.json").read_text())["val_rougeL"]
    assert [float(value) for value in rouge[1:]] == pytest.approx([recorded, recorded], abs=1e-3)


def changed(out: str) -> float:
    """By how much a logit differs, of the largest."""
    said = re.search(r"a logit differs by at most (\S+) of the largest", out)
    assert said
    return float(said[1])


def test_without_records_only_logits_are_compared(finished: Callable[[str], Path], ftlab: Callable[..., Any]) -> None:
    out = ftlab("export", finished("lora"), "out", "--records", "0").out
    assert "largest difference of one" in out
    assert "loss" not in out


def test_a_base_in_few_bits_shows_what_its_own_weights_would_answer(
    finished: Callable[[str], Path], network: Any, ftlab: Callable[..., Any]
) -> None:
    run = finished("qlora")
    out = ftlab("export", run, "out", "--merge").out
    (row,) = (line.split() for line in out.splitlines() if line.startswith("largest difference"))
    exported, full = map(float, row[-2:])
    plain = peft.PeftModel.from_pretrained(network.model(), str(run / "model"))
    ids = torch.randint(plain.config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(0))
    merged = AutoModelForCausalLM.from_pretrained("out")
    with torch.no_grad():
        rounding = (plain.eval()(ids).logits - merged(ids).logits).abs().max().item()
    assert exported < 1e-4
    assert full == pytest.approx(rounding, rel=0.05)
    assert full > 100 * exported


def test_weights_rounded_at_the_end(finished: Callable[[str], Path], ftlab: Callable[..., Any]) -> None:
    answer = ftlab("export", finished("lora"), "out", "--merge", "--dtype", "bfloat16")
    assert answer.code == 0, answer.err
    assert {tensor.dtype for tensor in load_file("out/model.safetensors").values()} == {torch.bfloat16}
    assert 1e-4 < changed(answer.out) < 1e-1
    assert AutoModelForCausalLM.from_pretrained("out").dtype == torch.bfloat16


def test_tied_embeddings_stay_tied(workplace: Path, tied_network: Any, ftlab: Callable[..., Any]) -> None:
    options = ["--model.network.path", tied_network.path, "--model.method.modules_to_save", "[lm_head]"]
    assert ftlab("fit", "-c", "tiny.yaml", *options, "--run.name", "tied").code == 0
    assert ftlab("export", "runs/tiny/tied", "out", "--merge").code == 0
    weights, base = load_file("out/model.safetensors"), load_file(Path(tied_network.path) / "model.safetensors")
    assert weights.keys() == base.keys()
    assert "lm_head.weight" not in weights
    assert not torch.equal(weights["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    opened = AutoModelForCausalLM.from_pretrained("out")
    assert opened.lm_head.weight is opened.model.embed_tokens.weight


# ---------------------------------------------------------------- few bits


@pytest.mark.parametrize(("bits", "share"), [(8, 3.5), (4, 6)])
def test_an_adapter_in_few_bits_opens_by_ftlab_and_widened_by_peft(
    bits: int, share: float, finished: Callable[[str], Path], network: Any, ftlab: Callable[..., Any]
) -> None:
    run = finished("lora")
    answer = ftlab("export", run, "few", "--adapter-bits", bits)
    assert answer.code == 0, answer.err
    assert f"in {bits} bits a value" in answer.out
    assert changed(answer.out) > 0
    before, after = (run / "model/adapter_model.safetensors", Path("few/adapter_quantized.safetensors"))
    assert before.stat().st_size / after.stat().st_size > share
    assert ftlab("export", "few", "wide").code == 0
    assert {path.name for path in Path("wide").iterdir()} > {"adapter_model.safetensors", "adapter_config.json"}
    prompt = ["--prompt", "Who cleans the rope?", "--decoding.max_new_tokens", 8]
    both = ftlab("generate", "--adapter", "few=few", "--adapter", "wide=wide", *prompt)
    assert both.code == 0, both.err
    few, wide = (line.partition(":")[2] for line in both.out.splitlines())
    assert few == wide
    wide_model = peft.PeftModel.from_pretrained(network.model(), "wide")
    trained = peft.PeftModel.from_pretrained(network.model(), str(run / "model"))
    ids = torch.randint(wide_model.config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = trained.eval()(ids).logits
        change = ((wide_model.eval()(ids).logits - expected).abs().max() / expected.abs().max()).item()
    assert changed(answer.out) == pytest.approx(change, rel=0.05)


def test_few_bits_under_a_tolerance(finished: Callable[[str], Path], refused: Callable[..., str]) -> None:
    sentence = refused("export", finished("lora"), "out", "--adapter-bits", "4", "--tolerance", "1e-9")
    assert "more than the tolerance of 1e-09; nothing was written" in sentence
    assert not list(Path().glob("*out*"))


def test_tokens_that_are_trained_are_exported(workplace: Path, ftlab: Callable[..., Any]) -> None:
    """Their layer stands in the place of the embeddings, and has no size of its own."""
    config = {"class_path": "peft.TrainableTokensConfig", "init_args": {"token_indices": [5, 6]}}
    Path("tokens.yaml").write_text(
        yaml.safe_dump({"model": {"method": {"class_path": "ftlab.methods.Peft", "init_args": {"config": config}}}})
    )
    assert ftlab("fit", "-c", "tiny.yaml", "-c", "tokens.yaml", "--run.experiment", "tiny", "--run.name", "t").code == 0
    answer = ftlab("export", "runs/tiny/t", "out", "--merge")
    assert answer.code == 0, answer.err


def test_what_has_no_adapter_has_none_in_few_bits(finished: Callable[[str], Path], refused: Callable[..., str]) -> None:
    assert "no adapter" in refused("export", finished("full"), "out", "--adapter-bits", "8")


# ---------------------------------------------------------------- the card


@pytest.mark.parametrize(("method", "merge"), [("full", False), ("lora", False), ("lora", True), ("qlora", True)])
def test_the_card_says_what_the_run_knows(
    method: str, merge: bool, finished: Callable[[str], Path], ftlab: Callable[..., Any]
) -> None:
    run = finished(method)
    assert ftlab("export", run, "out", "--merge", str(merge).lower(), "--license", "apache-2.0").code == 0
    card = ModelCard.load("out/README.md")
    adapter = method == "lora" and not merge
    assert card.data.library_name == ("peft" if adapter else "transformers")
    assert card.data.license == "apache-2.0"
    scores = json.loads((run / "scores.json").read_text())
    told = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert told == {("validation", "loss"): pytest.approx(scores["val_loss"], abs=1e-6)}
    record, config = (
        json.loads((run / "provenance.json").read_text()),
        yaml.safe_load((run / "config.yaml").read_text()),
    )
    for said in (
        config["model"]["network"]["path"],
        config["data"]["path"],
        f"{record['cost']['trainable_parameters']:,} of {record['cost']['parameters']:,} parameters",
        config["model"]["method"]["class_path"],
        record["started"],
        f"torch {record['versions']['torch']}",
        "15 rows",
        "apache-2.0",
        "nf4" if method == "qlora" else "float32",
    ):
        assert said in card.text, said


@pytest.mark.parametrize(("method", "merge"), [("lora", "false"), ("lora", "true"), ("zeroshot", "false")])
def test_the_code_of_the_card_runs(
    method: str, merge: str, finished: Callable[[str], Path], network: Any, ftlab: Callable[..., Any]
) -> None:
    run = finished(method)
    assert ftlab("export", run, "out", "--merge", merge).code == 0
    card = Path("out/README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    made: dict[str, Any] = {}
    exec(code.replace("DIR", "out"), made)
    ids = made["tokenizer"]("Who cleans the rope?", return_tensors="pt").input_ids
    trained = network.model()
    if method == "lora":
        trained = peft.PeftModel.from_pretrained(trained, str(run / "model"))
    with torch.no_grad():
        torch.testing.assert_close(made["model"].eval()(ids).logits, trained.eval()(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_licence_is_the_base_s_where_it_says(workplace: Path, network: Any, ftlab: Callable[..., Any]) -> None:
    shutil.copytree(network.path, "base")
    Path("base/README.md").write_text("---\nlicense: mit\n---\n# A base\n")
    assert ftlab("fit", "-c", "tiny.yaml", "--model.network.path", "base", "--run.name", "mit").code == 0
    assert ftlab("export", "runs/tiny/mit", "out").code == 0
    assert ModelCard.load("out/README.md").data.license == "mit"
    assert ftlab("export", "runs/tiny/mit", "own", "--license", "cc-by-4.0").code == 0
    assert ModelCard.load("own/README.md").data.license == "cc-by-4.0"


def test_no_licence_is_made_up(finished: Callable[[str], Path], ftlab: Callable[..., Any]) -> None:
    assert ftlab("export", finished("lora"), "out").code == 0
    card = ModelCard.load("out/README.md")
    assert card.data.license is None
    assert "Not stated: ask whose network and data these are." in card.text


# ---------------------------------------------------------------- refusals


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
        (["nowhere", "out", "--merg", "true"], "there is no option --merg: did you mean --merge?"),
        (["nowhere", "--to", "out"], "to is told by its place: leave out --to"),
        (["nowhere", "out", "--tolerance", "low"], "tolerance is low: it must be a number"),
        (["nowhere", "out", "--adapter-bits", "5"], "adapter_bits is 5: it must be one of 4, 8"),
        (["nowhere", "out", "--merge", "--adapter-bits", "4"], "a merged model has no adapter left"),
        (["nowhere", "out", "--dtype", "bfloat16"], "--dtype is of merged weights"),
        (["nowhere", "out", "--records", "-1"], "--records is -1"),
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
