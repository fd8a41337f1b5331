"""One optimiser step: its gradient does not depend on how the step is cut up, and what is logged is what happened."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from ftlab.errors import UserError
from ftlab.methods import Full, LoRA, QLoRA
from ftlab.modules import FinetuneModule
from ftlab.networks import Network

Make = Callable[..., Any]


@pytest.fixture
def precise(network: Network) -> Network:
    """The network in float64, so that nothing but the arithmetic is compared."""
    return replace(network, dtype="float64")  # type: ignore[arg-type]


def assert_same_update(ours: dict[str, Tensor], theirs: dict[str, Tensor], start: nn.Module, tolerance: float) -> None:
    """Compares how far the weights have moved, relative to how far they should have, over all of them."""
    wrong = moved = 0.0
    for name, before in start.named_parameters():
        update = theirs[name].detach().double() - before.double()
        wrong += float(((ours[name].detach().double() - before.double()) - update).square().sum())
        moved += float(update.square().sum())
    assert moved > 0
    assert (wrong / moved) ** 0.5 < tolerance


@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_gradient_does_not_depend_on_micro_batches(
    batch_size: int,
    accumulate: int,
    make_module: Make,
    make_data: Make,
    make_trainer: Make,
    precise: Network,
    descend: Make,
) -> None:
    """15 rows: a whole window of 8, then a ragged one of 7."""
    module, data = make_module(network=precise), make_data(batch_size=batch_size)
    trainer = make_trainer(accumulate_grad_batches=accumulate)
    trainer.fit(module, data)
    assert trainer.global_step == 2
    by_hand = descend(data, rows_per_step=8)
    assert_same_update(dict(module.network.named_parameters()), by_hand.weights, precise.model(), 1e-6)


def test_logged_loss_rate_and_gradient_norm_are_those_of_the_step(
    make_module: Make, make_data: Make, make_trainer: Make, descend: Make, curves: Any
) -> None:
    module, data = make_module(), make_data(batch_size=2)
    make_trainer(accumulate_grad_batches=3, max_epochs=2, logger=curves).fit(module, data)
    by_hand = descend(data, rows_per_step=6, epochs=2)
    assert len(by_hand.losses) == 6
    assert curves.curve("train_loss") == pytest.approx(by_hand.losses, rel=1e-4)
    assert curves.curve("grad_norm") == pytest.approx(by_hand.norms, rel=1e-3)
    assert curves.curve("lr") == pytest.approx([0.1] * 6)
    assert sorted(curves.rows) == [1, 2, 3, 4, 5, 6]


def test_loss_between_logs_is_the_mean_over_all_tokens_since_the_last(
    make_module: Make, make_data: Make, make_trainer: Make, network: Network, curves: Any
) -> None:
    frozen = make_module(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0))
    data = make_data(batch_size=4)
    make_trainer(max_epochs=1, log_every_n_steps=2, logger=curves).fit(frozen, data)
    model = network.model()
    sums = []
    for batch in data.batches():
        logits = model(batch["input_ids"], batch["attention_mask"]).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].mT, batch["labels"][:, 1:], reduction="sum")
        sums.append((loss.item(), batch["target_tokens"]))
    expected = [(a + b) / (m + n) for (a, m), (b, n) in (sums[:2], sums[2:])]
    assert curves.curve("train_loss") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_clipping_by_norm(
    clip: float, make_module: Make, make_data: Make, make_trainer: Make, precise: Network, descend: Make, curves: Any
) -> None:
    module, data = make_module(network=precise), make_data(batch_size=4)
    make_trainer(gradient_clip_val=clip, accumulate_grad_batches=2, logger=curves).fit(module, data)
    by_hand = descend(data, rows_per_step=8, clip=clip)
    assert curves.curve("grad_norm") == pytest.approx(by_hand.norms, rel=1e-5)  # before clipping
    assert_same_update(dict(module.network.named_parameters()), by_hand.weights, precise.model(), 1e-5)


def test_clipping_by_value(make_module: Make, make_data: Make, make_trainer: Make, network: Network) -> None:
    clip, lr = 1e-3, 0.1
    module = make_module()
    trainer = make_trainer(gradient_clip_val=clip, gradient_clip_algorithm="value", max_steps=1)
    trainer.fit(module, make_data())
    start = dict(network.model().named_parameters())
    furthest = max(float((p - start[n]).abs().max()) for n, p in module.network.named_parameters())
    assert furthest == pytest.approx(lr * clip, rel=1e-3)


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_rate_of_a_group_is_scaled_as_the_method_asks(
    ratio: float, make_module: Make, make_data: Make, make_trainer: Make
) -> None:
    trainer = make_trainer(max_steps=1)
    module = make_module(LoRA(r=4, ratio=ratio))
    trainer.fit(module, make_data())
    rates = {id(p): group["lr"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    for name, parameter in module.network.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == pytest.approx(0.1 * (ratio if "lora_B" in name else 1.0))


class TestTotalSteps:
    @pytest.mark.parametrize(
        ("options", "steps"),
        [
            ({"max_epochs": 2}, 16),  # 15 rows in batches of 2
            ({"max_epochs": -1, "max_steps": 9}, 9),
            ({"max_epochs": 3, "max_steps": 9}, 9),
            ({"max_epochs": 1, "max_steps": 9}, 8),
            ({"max_epochs": 2, "accumulate_grad_batches": 3}, 6),  # 8 batches are two windows and a ragged one
            ({"max_epochs": 1, "limit_train_batches": 3}, 3),
            ({"max_epochs": 1, "limit_train_batches": 100}, 8),
            ({"max_epochs": 2, "limit_train_batches": 0.4}, 6),
            ({"max_epochs": 2, "limit_train_batches": 5, "accumulate_grad_batches": 2}, 6),
            ({"max_epochs": 1, "limit_train_batches": 1.0}, 8),
            ({"max_epochs": 1, "overfit_batches": 2}, 2),
        ],
        ids=str,
    )
    def test_is_how_many_there_are(
        self, options: dict, steps: int, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        announced = []
        trainer = make_trainer(**options)

        def schedule(optimizer: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LambdaLR:
            announced.append(total)
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

        trainer.fit(make_module(LoRA(r=1, targets=["q_proj"]), schedule=schedule), make_data(batch_size=2))
        assert announced == [steps]
        assert trainer.global_step == steps

    def test_training_without_an_end_is_refused(self, make_module: Make, make_data: Make, make_trainer: Make) -> None:
        with pytest.raises(UserError, match="max_steps or max_epochs"):
            make_trainer(max_epochs=-1).fit(make_module(), make_data())


class TestNetwork:
    def test_configure_model_twice_keeps_the_network(
        self, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        module, data = make_module(), make_data()
        make_trainer(max_steps=1).fit(module, data)
        trained = module.network
        module.configure_model()
        assert module.network is trained
        make_trainer(max_steps=1).fit(module, data)
        assert module.network is trained

    def test_a_base_that_the_method_cannot_have_is_refused_before_its_weights_are_opened(
        self, make_module: Make, make_data: Make, make_trainer: Make, network: Network, tmp_path: Path
    ) -> None:
        place = Path(shutil.copytree(network.path, tmp_path / "quantised"))
        config = json.loads((place / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        (place / "config.json").write_text(json.dumps(config))
        (place / "model.safetensors").unlink()
        module = make_module(Full(), network=Network(str(place)))
        with pytest.raises(UserError, match="Full does not work on a base in int8, which "):
            make_trainer(max_steps=1).fit(module, make_data())

    def test_trains_in_train_mode(self, make_module: Make, make_data: Make, make_trainer: Make) -> None:
        modes = []

        class Look(pl.Callback):
            def on_train_batch_start(self, trainer: pl.Trainer, module: FinetuneModule, *_: Any) -> None:
                modes.append(all(part.training for part in module.modules()))

        trainer = make_trainer(max_epochs=2, limit_val_batches=1.0, callbacks=[Look()])
        trainer.fit(make_module(LoRA(r=1)), make_data())
        assert modes == [True] * 8  # also after a validation

    @pytest.mark.parametrize(
        "method", [Full, LoRA, lambda: QLoRA(compute_dtype="float32")], ids=lambda make: getattr(make, "__name__", None)
    )
    def test_gradient_checkpointing_computes_twice_and_the_same(
        self, method: Make, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        def train(checkpointing: bool) -> tuple[int, dict[str, Tensor]]:
            module, calls = make_module(method(), gradient_checkpointing=checkpointing), []

            class Count(pl.Callback):
                def on_train_start(self, trainer: pl.Trainer, module: FinetuneModule) -> None:
                    layer = next(m for n, m in module.named_modules() if n.endswith("layers.0.mlp"))
                    layer.register_forward_pre_hook(lambda *_: calls.append(1) if torch.is_grad_enabled() else None)

            make_trainer(max_steps=2, callbacks=[Count()]).fit(module, make_data())
            return len(calls), {n: p for n, p in module.named_parameters() if p.requires_grad}

        without, weights = train(False)
        with_it, same = train(True)
        assert (without, with_it) == (2, 4)  # in two steps
        for name, weight in weights.items():
            torch.testing.assert_close(same[name], weight, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize(
        "method", [LoRA, QLoRA, lambda: LoRA(init="pissa")], ids=lambda make: getattr(make, "__name__", None)
    )
    def test_mixed_precision_keeps_adapters_and_their_states_in_float32(
        self, method: Make, make_module: Make, make_data: Make, make_trainer: Make, network: Network
    ) -> None:
        module = make_module(
            method(), network=replace(network, dtype="bfloat16"), optimizer=lambda g: torch.optim.AdamW(g, lr=1e-3)
        )
        trainer = make_trainer(max_steps=1, precision="bf16-mixed")
        trainer.fit(module, make_data())
        trained = [p for p in module.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32}
        states = [state["exp_avg"].dtype for state in trainer.optimizers[0].state.values()]
        assert states == [torch.float32] * len(trained)

    def test_divergence_stops_training(self, make_module: Make, make_data: Make, make_trainer: Make) -> None:
        module = make_module(optimizer=lambda groups: torch.optim.SGD(groups, lr=1e30))
        with pytest.raises(UserError, match="training has diverged: at step 2 the loss is nan"):
            make_trainer(max_epochs=3).fit(module, make_data())


TWO_PROCESSES = """
import sys
from pathlib import Path
import lightning.pytorch as pl
import torch
from ftlab.data import FinetuneData
from ftlab.methods import Full
from ftlab.modules import Constant, FinetuneModule
from ftlab.networks import Network

def main():
    path, data_path, directory = sys.argv[1:]
    network = Network(path, dtype="float64")
    module = FinetuneModule(
        Full(), network, lambda groups: torch.optim.SGD(groups, lr=0.1), Constant(), metrics=["exact_match"]
    )
    data = FinetuneData(network, data_path, template="plain", batch_size=2, eval_batch_size=2)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, accumulate_grad_batches=2, logger=False,
        log_every_n_steps=1, num_sanity_val_steps=0, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=directory, gradient_clip_val=1e6,
    )
    trainer.fit(module, data)
    torch.save(
        {"weights": module.network.state_dict(), "logged": {n: float(v) for n, v in trainer.callback_metrics.items()}},
        Path(directory) / f"{trainer.global_rank}.pt",
    )

main()
"""


def test_two_processes_train_what_one_trains(
    make_data: Make, network: Network, precise: Network, descend: Make, tmp_path: Path
) -> None:
    """2 processes x 2 rows x 2 micro-batches: a window of 8 rows, and a ragged one of 4 and 3."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    data = make_data()
    command = [sys.executable, "-c", TWO_PROCESSES, network.path, data.corpus.name, str(tmp_path)]
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    processes = [
        subprocess.Popen(
            command, env=shared | {"LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    by_hand = descend(data, rows_per_step=8)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    assert_same_update(first["weights"], by_hand.weights, precise.model(), 1e-6)
    assert first["logged"]["train_loss"] == pytest.approx(by_hand.losses[-1], rel=1e-6)
    assert first["logged"]["grad_norm"] == pytest.approx(by_hand.norms[-1], rel=1e-6)
    with torch.no_grad():
        sums = [_loss(by_hand.network, row) for row in data.rows("validation")]
    expected = sum(loss for loss, _ in sums) / sum(targets for _, targets in sums)
    assert [part["logged"]["val_loss"] for part in (first, second)] == pytest.approx([expected] * 2, rel=1e-6)


def _loss(network: nn.Module, row: Any) -> tuple[float, int]:
    labels = torch.tensor(row.labels[1:])
    logits = network(torch.tensor([row.input_ids])).logits[0, :-1]
    return nn.functional.cross_entropy(logits, labels, reduction="sum").item(), int((labels != -100).sum())
