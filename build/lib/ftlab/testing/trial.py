"""A method on one base: the data it trains on, its training as `ftlab fit` does it, and what was seen meanwhile."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import ftlab
from ftlab.data import FinetuneData
from ftlab.data.assignment import Splits
from ftlab.methods import Method
from ftlab.modules import Constant, FinetuneModule
from ftlab.networks import Network, Quantization, fingerprint, frozen_tensors

SEED = 42
ROWS = 16
BATCH = 4
LENGTH = 64
"""Tokens of a record; prompts are cut."""
ASSETS = Path(ftlab.__file__).parent / "assets"

Optimizer = Callable[[Any], torch.optim.Optimizer]


def adam(groups: Any) -> torch.optim.Optimizer:
    """Moves every weight that has a gradient by about the same: whatever is lost on the way shows in the logits."""
    return torch.optim.AdamW(groups, lr=2e-3)


def descent(groups: Any) -> torch.optim.Optimizer:
    """Moves weights in proportion to their gradients, and little: another rounding stays as small as it began."""
    return torch.optim.SGD(groups, lr=1e-3)


@dataclass(frozen=True)
class Trial:
    """What is tried: a method, a network, a base.

    Args:
        make: Gives a new instance of the method.
        network: The network, in float32.
        base: "full", or a kind of `Quantization`.
        steps: Optimiser steps of a training.
        place: A directory for data, checkpoints and saved models.
    """

    make: Callable[[], Method]
    network: Network
    base: str
    steps: int
    place: Path

    def method(self) -> Method:
        """A new instance, its base held as this trial says and multiplied in float32: rounding is no finding."""
        method = self.make()
        own = method.quantization
        if self.base == "full":
            method.quantization = None
        elif own is not None and own.kind == self.base:
            method.quantization = dataclasses.replace(own, compute_dtype="float32")
        else:
            method.quantization = Quantization(self.base, compute_dtype="float32")  # type: ignore[arg-type]
        return method

    def opened(self) -> PreTrainedModel:
        """The network on this base, not adapted."""
        return self.network.model(self.method().quantization)

    def adapted(self, method: Method, network: PreTrainedModel | None = None, seed: int = SEED) -> nn.Module:
        """The network (freshly opened where none is given), adapted as at the start of a training."""
        network = network or self.opened()
        torch.manual_seed(seed)
        return method.adapt(network, self._batches() if method.needs_batches else None)

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        data = self.data()
        data.setup("fit")
        for batch in data.batches():
            yield {name: value for name, value in batch.items() if isinstance(value, Tensor)}

    def data(self, batch_size: int = BATCH) -> FinetuneData:
        """Records of several lengths: the first of those that ship."""
        path = self.place / "data"
        if not path.is_dir():
            path.mkdir()
            with (ASSETS / "data/train.jsonl").open() as lines:
                rows = [json.loads(line) for line in islice(lines, ROWS)]
            pairs = [{"prompt": f"{row['dialogue']}\n", "completion": row["summary"]} for row in rows]
            (path / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        return FinetuneData(
            self.network,
            str(path),
            template="plain",
            max_length=LENGTH,
            overflow="truncate",
            batching="pad",
            batch_size=batch_size,
            splits=Splits(validation=0, test=0),
            workers=0,
            preparation_workers=1,
            cache=str(self.place / "cache"),
        )

    def module(self, method: Method | None = None, optimizer: Optimizer = adam, **options: Any) -> FinetuneModule:
        """The method in the module that trains it."""
        made = method or self.method()
        return FinetuneModule(made, self.network, optimizer, Constant(), metrics=[], seed=SEED, **options)

    def fit(
        self,
        module: FinetuneModule,
        callbacks: list[pl.Callback],
        steps: int | None = None,
        checkpoint: Path | None = None,
        batch_size: int = BATCH,
        precision: Literal["32-true", "bf16-mixed"] = "32-true",
        devices: int = 1,
    ) -> pl.Trainer:
        """Trains on the CPU, each device a process, from a checkpoint where one is given."""
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=devices,
            # so named, DDP also takes methods that let tensors rest
            strategy="ddp_find_unused_parameters_true" if devices > 1 else "auto",
            precision=precision,
            max_steps=steps or self.steps,
            max_epochs=-1,
            callbacks=callbacks,
            logger=False,
            log_every_n_steps=1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=self.place,
        )
        trainer.fit(module, self.data(batch_size), ckpt_path=str(checkpoint) if checkpoint else None)
        return trainer

    @torch.no_grad()
    def logits(self, network: nn.Module) -> Tensor:
        """(4, 32, vocabulary) in evaluation mode, on text: of tokens at random the logits are mostly rounding."""
        rows = [row.input_ids[:32] for row in self.data().rows("train") if len(row.input_ids) >= 32][:4]
        ids = torch.tensor(numpy.array(rows))
        answers = network.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return answers[:, -ids.shape[1] :].float()  # without a prompt method's virtual tokens


class Recorder(pl.Callback):
    """Sees what a training does to every tensor.

    Args:
        save_at: Step after which a checkpoint is written, to `path`.
        path: Where.
        stop_when: Asked after every step; training ends where it says True.
    """

    def __init__(
        self,
        save_at: int | None = None,
        path: Path | None = None,
        stop_when: Callable[[Recorder], bool] | None = None,
    ) -> None:
        self.save_at = save_at
        self.path = path
        self.stop_when = stop_when
        self.frozen: dict[str, str] = {}
        """Digests of all others."""
        self.asked: set[str] = set()
        """Names that required a gradient at some step."""
        self.moved: set[str] = set()
        """Those whose gradient was not zero at some step."""
        self.first: dict[str, Tensor] = {}
        """The gradients of the first step, as the optimiser was given them."""
        self.total: dict[str, Tensor] = {}
        """The sum of the gradients of all steps."""
        self.in_optimizer: list[str] = []
        """The tensors that the optimiser was given; empty names are of no parameter of the network."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network, method = network_of(pl_module), method_of(pl_module)
        self.frozen = digests(network, method)
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        groups = trainer.optimizers[0].param_groups
        self.in_optimizer = [names.get(id(parameter), "") for group in groups for parameter in group["params"]]
        # after the step, when the gradient has been summed over devices and divided, and before `after_step`
        trainer.optimizers[0].register_step_post_hook(lambda *_: self._note_gradients(network))

    def _note_gradients(self, network: nn.Module) -> None:
        required = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.asked |= set(required)
        gradients = {name: p.grad.detach().clone() for name, p in required.items() if p.grad is not None}
        self.moved |= {name for name, gradient in gradients.items() if gradient.any()}
        self.first = self.first or gradients
        for name, gradient in gradients.items():
            self.total[name] = self.total[name] + gradient if name in self.total else gradient

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.save_at:
            assert self.path is not None
            trainer.save_checkpoint(self.path)
        if self.stop_when is not None and self.stop_when(self):
            trainer.should_stop = True


@dataclass
class Run:
    """A training that has come to its end; of a method that trains nothing, the network as it was adapted."""

    trial: Trial
    method: Method
    module: FinetuneModule
    base: list[tuple[str, Tensor, str]]
    """The base's own tensors, with their digests before the network was adapted."""
    seen: Recorder
    end: dict[str, Any] = field(default_factory=dict)
    """Weights, the optimiser's state and the method's at the end, as `kept` copies them."""

    @property
    def network(self) -> nn.Module:
        """The network, trained."""
        return network_of(self.module)

    @property
    def checkpoint(self) -> Path:
        """Written half-way."""
        assert self.seen.path is not None
        return self.seen.path

    @classmethod
    def of(cls, trial: Trial) -> Run:
        """Trains once, from start to end, all eyes open."""
        method = trial.method()
        adapt = method.adapt
        base: list[tuple[str, Tensor, str]] = []

        def watched(network: PreTrainedModel, batches: Any = None) -> nn.Module:
            tensors = [*network.named_parameters(), *network.named_buffers()]
            base.extend((name, tensor, fingerprint([("", tensor)])) for name, tensor in tensors)
            return adapt(network, batches)

        method.adapt = watched  # type: ignore[method-assign]
        module, seen = trial.module(method), Recorder(max(1, trial.steps // 2), trial.place / f"{trial.base}.ckpt")
        if not method.trains:
            module.network = trial.adapted(method)
            return cls(trial, method, module, base, seen)
        trainer = trial.fit(module, [seen])
        return cls(trial, method, module, base, seen, kept(trainer, module))


def network_of(module: pl.LightningModule) -> nn.Module:
    """The network in a module that has been configured."""
    assert isinstance(module, FinetuneModule)
    assert module.network is not None
    return module.network


def method_of(module: pl.LightningModule) -> Method:
    """The method in a module."""
    assert isinstance(module, FinetuneModule)
    return module.method


def weights(network: nn.Module, method: Method) -> dict[str, Tensor]:
    """Copies of the tensors that the method declares, by name."""
    declared = method.trained(network)
    return {name: p.detach().clone() for name, p in network.named_parameters() if name in declared}


def kept(trainer: pl.Trainer, module: FinetuneModule) -> dict[str, Any]:
    """A copy of all that must survive a stop."""
    network, method = network_of(module), module.method
    state = {"optimiser's state": trainer.optimizers[0].state_dict(), "method's state": method.state(network)}
    return {"weight": weights(network, method)} | copy.deepcopy(state)


def digests(network: nn.Module, method: Method) -> dict[str, str]:
    """A digest of each tensor that the method does not declare, by name."""
    return {name: fingerprint([("", t)]) for name, t in frozen_tensors(network, method.trained(network))}
