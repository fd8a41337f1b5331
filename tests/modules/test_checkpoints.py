"""What a checkpoint holds, which are refused, and training that goes on as if it had never stopped."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from ftlab.errors import UserError
from ftlab.methods import AdaLoRA, Full, LoRA, Method, QLoRA
from ftlab.modules import Cosine, FinetuneModule
from ftlab.networks import Network

Make = Callable[..., Any]


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-2)


class SaveAt(pl.Callback):
    """Writes a checkpoint after one optimiser step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def trained(module: FinetuneModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


METHODS: dict[str, Callable[[], Method]] = {
    "full": Full,
    "full_patterns": lambda: Full(["*norm*"]),
    "lora": lambda: LoRA(r=2, dropout=0.3),
    "pissa": lambda: LoRA(r=2, init="pissa", dropout=0.3),
    "pissa_niter_16": lambda: LoRA(r=2, init="pissa_niter_16"),
    "corda": lambda: LoRA(r=2, init="corda"),
    "lora_ga": lambda: LoRA(r=2, init="lora_ga"),
    "loftq": lambda: QLoRA(r=2, init="loftq"),
    "adalora": lambda: AdaLoRA(init_r=4, target_r=1, warmup=0.0, final=0.1, dropout=0.3),
    "eva": lambda: LoRA(r=2, init="eva", dropout=0.3),
    "modules_to_save": lambda: LoRA(r=2, modules_to_save=["lm_head"]),
    "qlora": lambda: QLoRA(r=2, dropout=0.3),
    "qlora_int8": lambda: QLoRA(r=2, kind="int8"),
}


@pytest.mark.parametrize("name", METHODS)
def test_checkpoint_holds_what_is_trained_and_resumes_exactly_in_mid_epoch(
    name: str, make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path, curves: Any
) -> None:
    """8 batches an epoch, two a step; stopped after step 5, in the second epoch of three."""
    path, method = tmp_path / "step.ckpt", METHODS[name]
    options = {"max_epochs": 3, "accumulate_grad_batches": 2}

    def module() -> FinetuneModule:
        return make_module(method(), optimizer=adam, schedule=Cosine())

    whole = module()
    make_trainer(**options, logger=curves, callbacks=[SaveAt(5, path)]).fit(whole, make_data(batch_size=2))

    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint["state_dict"]) == set(trained(whole))
    held = sum(tensor.nbytes for tensor in trained(whole).values())
    own = checkpoint["ftlab"]["method"].values()
    held += sum(t.nbytes for group in own if isinstance(group, dict) for t in group.values() if isinstance(t, Tensor))
    assert path.stat().st_size < 3 * held + 100_000  # the weights and Adam's two states of each

    resumed, others = module(), type(curves)()
    torch.manual_seed(999)  # what another process may have drawn before
    make_trainer(**options, logger=others).fit(resumed, make_data(batch_size=2), ckpt_path=path)
    for key, weight in trained(whole).items():
        assert torch.equal(trained(resumed)[key], weight), key
    assert list(others.rows) == list(range(6, 13))
    assert all(others.rows[step] == curves.rows[step] for step in others.rows)


def test_dropout_matters_to_the_test_above(make_module: Make, make_data: Make, make_trainer: Make) -> None:
    def train(seed: int) -> dict[str, Tensor]:
        module = make_module(LoRA(r=2, dropout=0.3, init="gaussian"), optimizer=adam, seed=seed)
        make_trainer(max_steps=3).fit(module, make_data())
        return trained(module)

    first, again, other = train(1), train(1), train(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


class TestRefusals:
    @pytest.fixture
    def checkpoint(self, make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path) -> Path:
        path = tmp_path / "step.ckpt"
        make_trainer(max_steps=1, callbacks=[SaveAt(1, path)]).fit(make_module(LoRA(r=2)), make_data())
        return path

    @pytest.mark.parametrize(
        ("method", "said"),
        [
            (LoRA(r=2, targets=["q_proj"]), "trained tensors"),
            (LoRA(r=2, modules_to_save=["lm_head"]), "lm_head"),
            (LoRA(r=4), "shape"),
            (QLoRA(r=2), "belongs to"),
            (Full(), "belongs to"),
        ],
        ids=["targets", "modules_to_save", "rank", "base", "method"],
    )
    def test_of_another_method(
        self, checkpoint: Path, method: Method, said: str, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        with pytest.raises(UserError, match=said):
            make_trainer(max_steps=2).fit(make_module(method), make_data(), ckpt_path=checkpoint)

    def test_of_another_network(
        self,
        checkpoint: Path,
        network: Network,
        make_module: Make,
        make_data: Make,
        make_trainer: Make,
        tmp_path: Path,
    ) -> None:
        other = replace(network, path=str(copytree(network.path, tmp_path / "other")))
        with pytest.raises(UserError, match="belongs to"):
            make_trainer(max_steps=2).fit(make_module(LoRA(r=2), network=other), make_data(), ckpt_path=checkpoint)

    def test_that_is_not_ours(self, make_module: Make, make_data: Make, make_trainer: Make, checkpoint: Path) -> None:
        content = torch.load(checkpoint, weights_only=True)
        del content["ftlab"]
        torch.save(content, checkpoint)
        with pytest.raises(UserError, match="belongs to"):
            make_trainer(max_steps=2).fit(make_module(LoRA(r=2)), make_data(), ckpt_path=checkpoint)


def test_a_method_of_ones_own_needs_nothing_but_the_interface(
    make_module: Make, make_data: Make, make_trainer: Make, network: Network, tmp_path: Path
) -> None:
    method = NormsOnly()
    module = make_module(method, optimizer=adam)
    trainer = make_trainer(max_steps=3, callbacks=[SaveAt(3, tmp_path / "step.ckpt")])
    trainer.fit(module, make_data())
    assert method.steps == [1, 2, 3]
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [pytest.approx(3e-2)]

    start = dict(network.model().named_parameters())
    now = dict(module.network.named_parameters())
    assert {name for name in now if not torch.equal(now[name], start[name])} == {n for n in now if "norm" in n}
    assert set(torch.load(tmp_path / "step.ckpt", weights_only=True)["state_dict"]) == {
        f"network.{name}" for name in now if "norm" in name
    }

    method.save(module.network, tmp_path)
    loaded = method.load(network.model(), tmp_path)
    assert all(torch.equal(p, now[name]) for name, p in loaded.named_parameters())


class NormsOnly(Method):
    """Trains the norms, three times as fast, and counts its steps."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def adapt(self, network: Any, batches: Any = None) -> Any:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("norm" in name)
        return network

    def param_groups(self, network: Any) -> list[dict[str, Any]]:
        return [{"params": [p for p in network.parameters() if p.requires_grad], "lr_scale": 3.0}]

    def save(self, network: Any, directory: Path) -> None:
        torch.save({n: p.data for n, p in network.named_parameters() if p.requires_grad}, directory / "norms.pt")

    def load(self, network: Any, directory: Path) -> Any:
        network.load_state_dict(torch.load(directory / "norms.pt"), strict=False)
        return network

    def merge(self, network: Any) -> Any:
        return network

    def after_step(self, network: Any, step: int) -> None:
        self.steps.append(step)
