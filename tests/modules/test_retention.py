"""What is measured of a base and of what was trained from it, against transformers' own loss on the same windows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab.data.retention import RetentionSet
from ftlab.evaluation.retention import Measured
from ftlab.methods import Full, LoRA, Method, QLoRA, ZeroShot
from ftlab.modules.retention import measure, measure_base
from ftlab.networks import Network

Make = Callable[..., Any]
WORDS = [
    "Zeno",
    "asks",
    "Ralf",
    "to",
    "clean",
    "fifty",
    "tiny",
    "ropes",
    "at",
    "the",
    "bridge",
    "because",
    "it",
    "is",
    "late",
]
TEXTS = [" ".join(WORDS[n:] + WORDS[: n * n]) for n in range(7)]
WINDOW = 9


@pytest.fixture
def sets(tmp_path: Path) -> list[RetentionSet]:
    path = tmp_path / "known.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    task = tmp_path / "task.jsonl"
    rows = [{"prompt": f"{word} {n}", "completion": " ".join(WORDS[: n + 1])} for n, word in enumerate(WORDS[:3])]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [RetentionSet("known", str(path), window=WINDOW), RetentionSet("task", str(task), score=True)]


@torch.no_grad()
def by_transformers(model: Any, tokenizer: Any, text: str) -> tuple[float, int]:
    """Loss in nats and targets of one text: transformers shifts the labels of each window itself, and takes a mean."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    nats, tokens = 0.0, 0
    for start in range(0, ids.shape[1] - 1, WINDOW - 1):
        window = ids[:, start : start + WINDOW]
        nats += float(model(input_ids=window, labels=window).loss) * (window.shape[1] - 1)
        tokens += window.shape[1] - 1
    return nats, tokens


def assert_is(measured: Measured, model: Any, network: Network, rel: float = 1e-5) -> None:
    tokenizer = AutoTokenizer.from_pretrained(network.path)
    expected = [by_transformers(model.eval(), tokenizer, text) for text in TEXTS]
    assert [each.tokens for each in measured.documents] == [tokens for _, tokens in expected]
    assert [each.nats for each in measured.documents] == pytest.approx([nats for nats, _ in expected], rel=rel)
    assert measured.loss == pytest.approx(sum(n for n, _ in expected) / sum(t for _, t in expected), rel=rel)


METHODS: dict[str, Callable[[], Method]] = {
    "full": Full,
    "lora": lambda: LoRA(r=2),
    "pissa": lambda: LoRA(r=2, init="pissa"),  # whose base lacks what the adapter has taken out of it
    "zero-shot": ZeroShot,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 3])
def test_the_base_is_the_network_as_transformers_opens_it(
    method: str, size: int, sets: list[RetentionSet], make_module: Make, make_data: Make, make_trainer: Make,
    network: Network,
) -> None:  # fmt: skip
    module, data = make_module(METHODS[method]()), make_data(retention=sets, eval_batch_size=size)
    measured = measure_base(make_trainer(), module, data.retained)
    assert_is(measured["known"], AutoModelForCausalLM.from_pretrained(network.path, dtype=torch.float64), network)
    assert module.network is None  # and was not opened for it


@pytest.mark.parametrize("method", ["full", "pissa"])
def test_afterwards_it_is_the_trained_network_and_the_base_stays_what_it_was(
    method: str, sets: list[RetentionSet], make_module: Make, make_data: Make, make_trainer: Make, network: Network,
    tmp_path: Path,
) -> None:  # fmt: skip
    module, data, trainer = make_module(METHODS[method]()), make_data(retention=sets), make_trainer(max_steps=4)
    before = measure_base(trainer, module, data.retained)
    trainer.fit(module, data)
    after = measure(trainer, module, data.retained)
    merged = module.method.merge(module.network).double()
    assert_is(after["known"], merged, network)
    assert abs(after["known"].loss - before["known"].loss) > 1e-3
    assert measure_base(trainer, module, data.retained)["known"] == before["known"]


def test_training_is_the_same_to_the_bit_whether_or_not_something_is_measured_before(
    sets: list[RetentionSet], make_module: Make, make_data: Make, make_trainer: Make
) -> None:
    def train(measured: bool) -> dict[str, torch.Tensor]:
        module, data = make_module(LoRA(r=2, dropout=0.3)), make_data(retention=sets)
        trainer = make_trainer()
        if measured:
            measure_base(trainer, module, data.retained)
        trainer.fit(module, data)
        return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    plain, with_base = train(False), train(True)
    assert all(torch.equal(plain[name], with_base[name]) for name in plain)


def test_a_quantised_base_is_measured_as_it_is_held(
    sets: list[RetentionSet], make_module: Make, make_data: Make, make_trainer: Make, network: Network
) -> None:
    method = QLoRA(r=2, compute_dtype="float32")
    module, data = make_module(method), make_data(retention=sets)
    measured = measure_base(make_trainer(), module, data.retained)
    assert_is(measured["known"], network.model(method.quantization), network, rel=1e-4)
    full = measure_base(make_trainer(), make_module(LoRA(r=2)), data.retained)
    assert abs(full["known"].loss - measured["known"].loss) > 1e-4  # four bits are worth something


def test_answers_are_scored_and_belong_to_their_set(
    sets: list[RetentionSet], make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    again = RetentionSet("again", sets[1].path, score=True, limit=2)
    module, data = make_module(LoRA(r=2)), make_data(retention=[*sets, again])
    found = measure_base(make_trainer(), module, data.retained)
    assert found["known"].scores == {}
    assert set(found["task"].scores) == {"rougeL", "chrf", "exact_match"}
    answers = {each.source: each.prediction for each in found["task"].documents}
    assert all(answers.values())
    assert {each.source: each.prediction for each in found["again"].documents}.items() <= answers.items()
    mean = sum(each.scores["rougeL"] for each in found["task"].documents) / 3
    assert found["task"].scores["rougeL"] == pytest.approx(mean)
