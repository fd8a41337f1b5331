"""Validation, test and predict: numbers that do not depend on the batches, and memory that does not grow."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab.data.records import Split
from ftlab.evaluation.text_metrics import resolve_metrics, score_texts
from ftlab.methods import LoRA, ZeroShot
from ftlab.modules.scoring import Tally
from ftlab.networks import Network

Make = Callable[..., Any]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_validation_loss_is_the_mean_over_all_targets(
    size: int, make_module: Make, make_data: Make, make_trainer: Make, rows_loss: Make
) -> None:
    module, data = make_module(LoRA(r=1)), make_data(eval_batch_size=size)
    (scores,) = make_trainer(limit_val_batches=1.0).validate(module, data, verbose=False)
    expected = rows_loss(data.rows("validation"))
    assert scores["val_loss"] == pytest.approx(expected, rel=1e-5)
    assert scores["val_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)


def test_mean_of_batch_means_would_be_another_number(make_data: Make, rows_loss: Make) -> None:
    """So that the test above can tell them apart."""
    data = make_data()
    rows = data.rows("validation")
    means = [rows_loss([row]) for row in rows]
    assert sum(means) / len(means) != pytest.approx(rows_loss(rows), rel=1e-3)


def test_each_validation_starts_from_nothing(
    make_module: Make, make_data: Make, make_trainer: Make, rows_loss: Make, curves: Any
) -> None:
    module = make_module(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0))
    data = make_data()
    make_trainer(max_epochs=2, limit_val_batches=1.0, logger=curves).fit(module, data)
    assert curves.curve("val_loss") == pytest.approx([rows_loss(data.rows("validation"))] * 2, rel=1e-5)


@pytest.mark.parametrize("method", [ZeroShot, lambda: LoRA(r=1)], ids=["zero_shot", "lora"])
def test_scores_of_a_test_are_those_of_the_libraries(
    method: Make,
    make_module: Make,
    make_data: Make,
    make_trainer: Make,
    network: Network,
    data_path: str,
    rows_loss: Make,
) -> None:
    metrics = ["rouge1", "rougeL", "bleu", "chrf", "exact_match"]
    module, data = make_module(method(), metrics=metrics), make_data(eval_batch_size=3)
    (by_rows, by_prompts) = make_trainer().test(module, data, verbose=False)
    scores = by_rows | by_prompts

    records = [json.loads(line) for line in Path(data_path, "test.jsonl").read_text().splitlines()]
    answers = [_answer(network, record["prompt"]) for record in records]
    assert [line["prompt"] for line in module.tally.predictions] == [record["prompt"] for record in records]
    assert [line["prediction"] for line in module.tally.predictions] == answers
    assert [line["references"] for line in module.tally.predictions] == [[r["completion"]] for r in records]

    expected = score_texts(answers, [[record["completion"]] for record in records], resolve_metrics(metrics))
    for name in metrics:
        assert scores[f"test_{name}"] == pytest.approx(expected.corpus[name], rel=1e-6)
    assert [line["scores"] for line in module.tally.predictions] == expected.records
    assert scores["test_loss"] == pytest.approx(rows_loss(data.scoring_loaders("test")[0].dataset), rel=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_a_test_keeps_the_loss_of_each_record(
    size: int, make_module: Make, make_data: Make, make_trainer: Make, rows_loss: Make
) -> None:
    module, data = make_module(LoRA(r=1)), make_data(eval_batch_size=size)
    scores, _ = make_trainer().test(module, data, verbose=False)
    rows = list(data.scoring_loaders("test")[0].dataset)
    losses = module.tally.losses
    assert [line["record"] for line in losses] == sorted(row.source for row in rows)
    for line in losses:
        (row,) = (row for row in rows if row.source == line["record"])
        assert line["tokens"] == sum(label != -100 for label in row.labels[1:])
        assert line["loss"] / line["tokens"] == pytest.approx(rows_loss([row]), rel=1e-5)
    total = sum(line["loss"] for line in losses) / sum(line["tokens"] for line in losses)
    assert module.tally.scores()["loss"] == pytest.approx(total, rel=1e-12)
    assert scores["test_loss"] == pytest.approx(total, rel=1e-6)  # Lightning's are in float32


def test_a_loss_of_another_kind_is_kept_as_a_sum(make_module: Make, make_data: Make, make_trainer: Make) -> None:
    module = make_module(LoRA(r=1))

    class Doubled(type(module)):  # type: ignore[misc]
        def summed_loss(self, batch: dict[str, Any]) -> Tensor:
            return 2 * super().summed_loss(batch)

    (alone, _) = make_trainer().test(module, make_data(), verbose=False)
    module.__class__ = Doubled
    (doubled, _) = make_trainer().test(module, make_data(), verbose=False)
    assert doubled["test_loss"] == pytest.approx(2 * alone["test_loss"], rel=1e-5)
    assert module.tally.losses == []


def test_predict_answers_every_prompt(make_module: Make, make_data: Make, make_trainer: Make, network: Network) -> None:
    module, data = make_module(ZeroShot()), make_data(eval_batch_size=3)
    make_trainer().predict(module, data)
    split: Split = "test"
    assert module.tally.answers == {
        index: _answer(network, record.prompt) for index, record in enumerate(data.records(split))
    }


@pytest.mark.parametrize(
    "judging",
    [{"num_sanity_val_steps": 2, "limit_val_batches": 2}, {"limit_val_batches": 1.0, "val_check_interval": 1}],
    ids=["sanity check", "validation at every step"],
)
def test_judging_leaves_dropout_where_it_was(
    judging: dict, make_module: Make, make_data: Make, make_trainer: Make
) -> None:
    def train(**options: Any) -> dict[str, Tensor]:
        module = make_module(LoRA(r=2, dropout=0.5, init="gaussian"))
        make_trainer(max_epochs=2, **options).fit(module, make_data())
        return {name: p for name, p in module.named_parameters() if p.requires_grad}

    without, with_judging = train(), train(**judging)
    assert all(torch.equal(without[name], with_judging[name]) for name in without)


def test_tally_holds_numbers_and_texts(make_module: Make, make_data: Make, make_trainer: Make) -> None:
    module = make_module(ZeroShot())
    make_trainer().test(module, make_data(), verbose=False)
    tensors = [value for value in vars(module.tally).values() if isinstance(value, Tensor)]
    assert all(tensor.numel() == 1 for tensor in tensors)
    assert not any(tensor.requires_grad for tensor in tensors)


def test_tally_by_hand() -> None:
    tally = Tally()
    tally.add_loss(torch.tensor(6.0, requires_grad=True), 2)
    tally.add_loss(torch.tensor(2.0), 6)
    assert tally.scores() == {"loss": 1.0, "perplexity": pytest.approx(math.e)}  # not the mean of 3 and 1/3


def test_the_losses_of_rows_by_hand() -> None:
    tally = Tally()
    tally.add_losses(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), ["b", "c", "a"])
    tally.gather()
    assert tally.losses == [
        {"record": "a", "loss": 4.0, "tokens": 1},
        {"record": "b", "loss": 3.0, "tokens": 2},
        {"record": "c", "loss": 0.0, "tokens": 0},
    ]
    assert tally.scores()["loss"] == pytest.approx(7 / 3)


def test_tally_without_targets_says_nothing_of_a_loss() -> None:
    assert Tally().scores() == {}


def _answer(network: Network, prompt: str) -> str:
    """transformers' own greedy answer to a prompt, alone in its batch."""
    tokenizer = AutoTokenizer.from_pretrained(network.path)
    model = AutoModelForCausalLM.from_pretrained(network.path)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
