"""Bucketed and packed training: the same step as padded, exact resumes, and what cannot be packed is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig
from test_checkpoints import SaveAt, adam, trained

from ftlab.errors import UserError
from ftlab.methods import Full, LoRA, Peft, QLoRA
from ftlab.modules import Cosine
from ftlab.networks import Network

Make = Callable[..., Any]


METHODS = {
    "full": Full,
    "lora": lambda: LoRA(r=2, init="gaussian"),
    "qlora": lambda: QLoRA(r=2, init="gaussian", compute_dtype="float32"),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("layout", ["bucket", "pack"])
def test_a_step_over_all_rows_is_the_padded_one(
    layout: str, method: Make, make_module: Make, make_data: Make, make_trainer: Make
) -> None:
    """One optimiser step over the whole set, in whatever batches: 15 rows padded at once, or in three parts."""

    def step(batching: str, batch_size: int, batches: int) -> dict[str, torch.Tensor]:
        module = make_module(method())
        data = make_data(batching=batching, batch_size=batch_size, max_length=64)
        assert data.train_batches_per_epoch() == batches
        make_trainer(max_epochs=1, accumulate_grad_batches=batches).fit(module, data)
        return trained(module)

    before = trained(_adapted(make_module(method()), make_data, make_trainer))
    padded = step("pad", 15, 1)
    other = step(layout, 5, 3) if layout == "bucket" else step(layout, 3, 2)
    for name, weight in padded.items():
        update = (weight - before[name]).norm()
        assert (other[name] - weight).norm() <= 1e-5 * update + 1e-7, name


def _adapted(module: Any, make_data: Make, make_trainer: Make) -> Any:
    make_trainer(max_steps=0).fit(module, make_data())
    return module


@pytest.mark.parametrize("layout", ["bucket", "pack"])
def test_resumes_exactly_in_mid_epoch(
    layout: str, make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path, curves: Any
) -> None:
    path = tmp_path / "step.ckpt"
    size = {"batching": layout, "max_length": 64, "batch_size": 2 if layout == "bucket" else 1}

    def module() -> Any:
        return make_module(LoRA(r=2, dropout=0.3), optimizer=adam, schedule=Cosine())

    whole = module()
    make_trainer(max_epochs=3, logger=curves, callbacks=[SaveAt(7, path)]).fit(whole, make_data(**size))
    resumed, others = module(), type(curves)()
    make_trainer(max_epochs=3, logger=others).fit(resumed, make_data(**size), ckpt_path=path)
    assert min(others.rows) == 8
    for name, weight in trained(whole).items():
        assert torch.equal(trained(resumed)[name], weight), name


def test_another_layout_is_no_resume(make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path) -> None:
    path = tmp_path / "step.ckpt"
    make_trainer(max_epochs=1, callbacks=[SaveAt(1, path)]).fit(make_module(LoRA(r=2)), make_data(batching="pad"))
    with pytest.raises(UserError, match="the run to resume had batching pad and this one has bucket"):
        make_trainer(max_epochs=1).fit(make_module(LoRA(r=2)), make_data(batching="bucket"), ckpt_path=path)


def test_changed_records_of_equal_number_are_no_resume(
    make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path, data_path: str
) -> None:
    path, changed = tmp_path / "step.ckpt", tmp_path / "changed"
    changed.mkdir()
    for file in Path(data_path).iterdir():
        (changed / file.name).write_text(file.read_text().replace("train 3", "train 33"))
    make_trainer(max_epochs=1, callbacks=[SaveAt(1, path)]).fit(make_module(LoRA(r=2)), make_data())
    with pytest.raises(UserError, match="the run to resume had data"):
        make_trainer(max_epochs=1).fit(make_module(LoRA(r=2)), make_data(path=str(changed)), ckpt_path=path)


def test_virtual_tokens_cannot_be_packed(make_module: Make, make_data: Make, make_trainer: Make) -> None:
    module = make_module(Peft(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)))
    with pytest.raises(UserError, match=r"packed records .*; set data\.batching to bucket"):
        make_trainer(max_steps=1).fit(module, make_data(batching="pack", max_length=64))


def test_preference_pairs_need_an_objective_of_their_own(
    make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path, network: Network
) -> None:
    rows = [{"prompt": f"which {n}", "chosen": f"this {n}", "rejected": f"that {n}"} for n in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = {"path": str(tmp_path)} | {"splits": _no_splits()}
    with pytest.raises(UserError, match="preference pairs"):
        make_trainer(max_steps=1).fit(make_module(LoRA(r=2)), make_data(**path))
    better = {"prompt": "{prompt}", "response": "{chosen}"}
    make_trainer(max_steps=1).fit(make_module(LoRA(r=2)), make_data(**path, **better))


def _no_splits() -> Any:
    from ftlab.data.assignment import Splits

    return Splits(validation=0, test=0)
