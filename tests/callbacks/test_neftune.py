"""Noise on the embeddings: its size, where there is none, and training that goes on with it exactly."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import Tensor
from transformers.integrations.neftune import neftune_post_forward_hook

from ftlab.callbacks import NEFTune
from ftlab.callbacks.neftune import record_lengths
from ftlab.cli import main
from ftlab.errors import UserError
from ftlab.methods import Full, LoRA
from ftlab.modules import FinetuneModule
from ftlab.networks import Network

Make = Callable[..., Any]
ALPHA, WIDTH = 5.0, 64


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-2)


class Watch(pl.Callback):
    """What is added to the embeddings, pass by pass, and the batches of training."""

    def __init__(self) -> None:
        self.added: list[Tensor] = []
        self.added_elsewhere: list[Tensor] = []
        self.batches: list[dict[str, Any]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.batches:
            embeddings = pl_module.network.get_input_embeddings()
            embeddings.register_forward_hook(self._note)  # after NEFTune's, which stands before in the callbacks
        self.batches.append(batch)

    def _note(self, embeddings: Any, args: tuple[Tensor], embedded: Tensor) -> None:
        plain = torch.nn.functional.embedding(args[0], embeddings.weight)
        (self.added if embeddings.training else self.added_elsewhere).append((embedded - plain).detach())


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


def check(noise: Tensor, length: int) -> None:
    """Uniform in ±alpha / sqrt(length * width)."""
    bound = ALPHA / math.sqrt(length * WIDTH)
    assert noise.shape == (length, WIDTH)
    assert noise.abs().max() <= bound * (1 + 1e-5)
    assert noise.abs().max() > 0.95 * bound
    assert noise.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)


def test_noise_of_padded_records(make_module: Make, make_data: Make, make_trainer: Make) -> None:
    watch = Watch()
    callbacks = [NEFTune(ALPHA), watch]
    make_trainer(max_steps=3, callbacks=callbacks).fit(make_module(Full()), make_data(batching="pad"))
    assert len(watch.added) == 3
    padded = 0
    for batch, added in zip(watch.batches, watch.added, strict=True):
        for mask, noise in zip(batch["attention_mask"], added, strict=True):
            check(noise[: mask.sum()], int(mask.sum()))
            assert not noise[mask.sum() :].any()
            padded += int((1 - mask).sum())
    assert padded > 0
    assert not torch.equal(watch.added[0][0, :3], watch.added[0][1, :3])


def test_noise_of_packed_records_is_that_of_each_alone(make_module: Make, make_data: Make, make_trainer: Make) -> None:
    watch = Watch()
    callbacks = [NEFTune(ALPHA), watch]
    make_trainer(max_steps=2, callbacks=callbacks).fit(make_module(Full()), make_data(batching="pack"))
    records = 0
    for batch, added in zip(watch.batches, watch.added, strict=True):
        for positions, noise in zip(batch["position_ids"], added, strict=True):
            starts = [*positions.eq(0).nonzero().flatten().tolist(), len(positions)]
            for start, end in pairwise(starts):
                check(noise[start:end], end - start)
            records += len(starts) - 1
    assert records > sum(len(batch["input_ids"]) for batch in watch.batches)


def test_lengths_of_records() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    assert record_lengths(None, positions).tolist() == [[3, 3, 3, 2, 2, 1], [6] * 6]  # type: ignore[union-attr]
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert record_lengths(mask, None).tolist() == [[2, 2, 0], [3, 3, 3]]  # type: ignore[union-attr]
    assert record_lengths(None, None) is None


def test_without_padding_it_is_transformers_own(network: Network) -> None:
    def embedded(hook: Callable[..., Any]) -> Tensor:
        embeddings = network.model().train().get_input_embeddings()
        embeddings.neftune_noise_alpha = ALPHA
        embeddings.register_forward_hook(hook)
        torch.manual_seed(0)
        return embeddings(torch.arange(24).view(2, 12))

    torch.testing.assert_close(embedded(NEFTune(ALPHA)._add_noise), embedded(neftune_post_forward_hook))


def test_none_in_validation_and_generation(make_module: Make, make_data: Make, make_trainer: Make) -> None:
    watch = Watch()
    trainer = make_trainer(max_steps=4, callbacks=[NEFTune(ALPHA), watch], limit_val_batches=1.0, val_check_interval=2)
    module = make_module(Full())
    trainer.fit(module, make_data())
    assert len(watch.added) == 4
    assert len(watch.added_elsewhere) > 2  # passes over rows, and one for each token that is generated
    assert not any(added.any() for added in watch.added_elsewhere)
    module.network.train()  # the network that is left behind adds none
    module.network(input_ids=torch.arange(6).view(1, 6))
    assert not watch.added[-1].any()


def test_none_in_a_pass_without_gradients(network: Network) -> None:
    embeddings = network.model().train().get_input_embeddings()
    embeddings.register_forward_hook(NEFTune(ALPHA)._add_noise)
    with torch.no_grad():
        assert torch.equal(embeddings(torch.tensor([[3]])), embeddings.weight[3].view(1, 1, -1))


def test_goes_on_exactly(make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path) -> None:
    path, options = tmp_path / "step.ckpt", {"max_epochs": 3, "accumulate_grad_batches": 2}

    def train(*callbacks: pl.Callback, checkpoint: Path | None = None) -> dict[str, Tensor]:
        module = make_module(LoRA(r=2, dropout=0.3), optimizer=adam)
        make_trainer(**options, callbacks=list(callbacks)).fit(module, make_data(batch_size=2), ckpt_path=checkpoint)
        return trained(module)

    whole = train(NEFTune(ALPHA), SaveAt(5, path))
    torch.manual_seed(999)  # what another process may have drawn before
    resumed = train(NEFTune(ALPHA), checkpoint=path)
    without = train()
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name
        assert not torch.equal(without[name], weight), name


def test_once_under_gradient_checkpointing(make_module: Make, make_data: Make, make_trainer: Make) -> None:
    def train(checkpointing: bool) -> tuple[dict[str, Tensor], list[Tensor]]:
        watch = Watch()
        module = make_module(LoRA(r=2), optimizer=adam, gradient_checkpointing=checkpointing)
        make_trainer(max_steps=3, callbacks=[NEFTune(ALPHA), watch]).fit(module, make_data())
        return trained(module), watch.added

    (plain, once), (again, noise) = train(False), train(True)
    assert len(once) == len(noise) == 3
    for one, other in zip(once, noise, strict=True):
        assert torch.equal(one, other)
    for name, weight in plain.items():
        torch.testing.assert_close(again[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_refuses_what_is_no_size(alpha: float) -> None:
    with pytest.raises(UserError, match=r"NEFTune's alpha is .*, and must be above 0"):
        NEFTune(alpha)


def test_from_the_command_line(
    network: Network,
    data_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer: dict[str, Any] = {"accelerator": "cpu", "max_steps": 2, "log_every_n_steps": 1}
    trainer |= {"num_sanity_val_steps": 0, "enable_progress_bar": False, "enable_model_summary": False}
    model = {"method": {"class_path": "ftlab.methods.LoRA"}, "network": {"path": network.path}}
    model |= {"decoding": {"max_new_tokens": 2}}
    callbacks = [{"class_path": "ftlab.callbacks.NEFTune", "init_args": {"alpha": 10.0}}]
    plain = {"trainer": trainer, "model": model, "data": {"path": data_path, "batch_size": 4}}
    Path("plain.yaml").write_text(yaml.safe_dump(plain))
    Path("noise.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))

    def losses(name: str, *options: str) -> list[str]:
        assert main(["fit", "-c", "plain.yaml", *options, "--run.experiment", "tiny", "--run.name", name]) == 0
        header, *rows = Path(f"runs/tiny/{name}/metrics.csv").read_text().splitlines()
        return [row.split(",")[header.split(",").index("train_loss")] for row in rows]

    noise = losses("noise", "-c", "noise.yaml")
    assert noise == losses("again", "-c", "noise.yaml")
    assert noise[0] != losses("plain")[0]
    config = yaml.safe_load(Path("runs/tiny/noise/config.yaml").read_text())
    assert config["trainer"]["callbacks"] == callbacks
    capfd.readouterr()
    assert main(["fit", "-c", "plain.yaml", "-c", "noise.yaml", "--trainer.callbacks.alpha", "0"]) != 0
    assert capfd.readouterr().err.startswith("ftlab: ")
