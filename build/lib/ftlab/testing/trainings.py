"""What training relies on of a method: each check trains again, otherwise, and compares."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.data.collators import PackCollator, PadCollator
from ftlab.errors import UserError, one_line
from ftlab.modules.packs import attend_to_packs
from ftlab.testing.promises import apart
from ftlab.testing.report import Broken, NotTried, Refused
from ftlab.testing.trial import ROWS, SEED, Recorder, Run, kept, network_of, weights

RELATIVE = 1e-2
"""Of a tensor's largest gradient: above rounding, far below what a forgotten factor or sample changes."""
PACKING = 1e-3
"""Of the loss: int8 rounds a row by its largest value, and packs have other rows."""


def resumed(run: Run) -> str:
    """Training that was stopped half-way and goes on ends with the same weights, optimiser and state, to the bit."""
    _must_train(run)
    trial = run.trial
    module = trial.module()
    torch.manual_seed(999)  # what another process may have drawn before
    trainer = trial.fit(module, [], checkpoint=run.checkpoint)
    place = _first_difference(run.end, kept(trainer, module))
    if place is not None:
        raise Broken(
            f"the {place} is another than without the stop: what the method keeps from step to step belongs into "
            "trained(), or into state() and restore()"
        )
    return f"the same bits after {trial.steps} steps, stopped after {run.seen.save_at}"


def checkpointed(run: Run) -> str:
    """Gradient checkpointing gives the same gradient, or is refused."""
    _must_train(run)
    seen = Recorder(stop_when=lambda _: True)
    try:
        run.trial.fit(run.trial.module(gradient_checkpointing=True), [seen])
    except UserError as error:
        if seen.asked:
            raise Broken(f"with gradient checkpointing training begins, and then stops: {error}") from error
        raise Refused(str(error)) from error
    return compare_gradients(seen.first, run.seen.first, "with gradient checkpointing")


def in_bf16(run: Run) -> str:
    """Under bf16-mixed the loss stays finite and what is trained stays in float32."""
    _must_train(run)
    module = run.trial.module()
    trainer = run.trial.fit(module, [], precision="bf16-mixed")
    declared = module.method.trained(network_of(module))
    for name, parameter in network_of(module).named_parameters():
        if name in declared and parameter.dtype != torch.float32:
            raise Broken(f"{name} is held in {parameter.dtype}: steps smaller than its rounding would be lost")
    return f"the loss ends at {float(trainer.callback_metrics['train_loss']):.2f}"


def packed(run: Run) -> str:
    """Packed records have the loss that they have in rows of their own, or training refuses to pack them."""
    module = run.module
    try:
        module.told_bounds = attend_to_packs(run.network, module.pretrained)
    except UserError as error:
        raise Refused(f"training refuses it ({one_line(error)})") from error
    data = run.trial.data()
    rows = [data.rows("train")[place] for place in range(ROWS)]
    pad = data.encoder.pad_id
    module.eval()
    with torch.no_grad():
        alone = float(module.summed_loss(dict(PadCollator(pad)(rows))))
        together = float(module.summed_loss(dict(PackCollator(pad)([rows[: ROWS // 2], rows[ROWS // 2 :]]))))
    if not abs(together - alone) <= PACKING * abs(alone):
        raise Broken(f"the summed loss of packed records is {together:.4f}, and in rows of their own {alone:.4f}")
    return f"the loss differs by {abs(together - alone) / abs(alone):.0e} of itself"


def two_instances(run: Run) -> str:
    """A second instance, adapted and trained between the first one's start and its training, changes nothing for it.

    Both stand on one base in memory where the method leaves the base's own tensors alone (not of int8).
    """
    _must_train(run)
    trial = run.trial
    first, second, base = trial.method(), trial.method(), trial.opened()
    of_base = {id(tensor) for _, tensor, _ in run.base}
    trained = run.method.trained(run.network)
    changes_base = any(id(p) in of_base for name, p in run.network.named_parameters() if name in trained)
    # bitsandbytes moves the scales of an int8 weight into the module that first computes with it
    shared = run.method.identity_at_start and not changes_base and trial.base != "int8"
    other = _sharing(base) if shared else trial.opened()
    one, two = trial.module(first), trial.module(second)
    one.network = trial.adapted(first, base).train()
    two.network = trial.adapted(second, other, SEED + 1).train()
    trial.fit(two, [])
    answers = trial.logits(two.network)
    trial.fit(one, [])
    place = _first_difference(run.end["weight"], weights(one.network, first))
    if place is not None:
        raise Broken(
            f"{place} is trained to another value where a second instance has trained meanwhile: keep what belongs to "
            "a training on the instance or in the network, not on the class or the module"
        )
    difference, allowed = apart(trial.logits(two.network), answers)
    if not difference <= allowed:
        raise Broken("a trained network answers otherwise once another instance has trained: the two share tensors")
    return "one base in memory" if shared else "a base for each"


def _sharing(network: PreTrainedModel) -> PreTrainedModel:
    """Another network over the same tensors: its modules are its own."""
    return copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})


def compare_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor], how: str) -> str:
    """The largest difference between two gradients, relative to each tensor's largest entry.

    Raises:
        Broken: A tensor has a gradient on one side only, or another.
    """
    worst = 0.0
    for name in sorted(expected.keys() | ours.keys()):
        if name not in ours or name not in expected:
            raise Broken(f"{name} has {'no' if name in expected else 'a'} gradient {how}, otherwise than without")
        size = max(float(expected[name].abs().max()), 1e-6)
        worst = max(worst, float((ours[name] - expected[name]).abs().max()) / size)
        if not worst <= RELATIVE:
            raise Broken(f"the gradient of {name} {how} differs by {worst:.1g} of its largest entry")
    return f"a gradient differs by at most {worst:.0e} of its tensor's largest"


class NoDropout(pl.Callback):
    """Turns dropout off in training: two processes draw other numbers than one."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for module in pl_module.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0


def _must_train(run: Run) -> None:
    if not run.method.trains:
        raise NotTried("trains nothing")


def _first_difference(ours: Any, theirs: Any, place: str = "") -> str | None:
    """Where two nested states differ in a bit; None where they do not."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        same = ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        return None if same else place
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            return f"{place} {min(map(str, ours.keys() ^ theirs.keys()))}".strip()
        pairs = [(str(key), ours[key], theirs[key]) for key in ours]
    elif isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        pairs = [(str(number), *pair) for number, pair in enumerate(zip(ours, theirs, strict=True))]
    else:
        return None if ours == theirs else place
    found = (_first_difference(a, b, f"{place} {key}".strip()) for key, a, b in pairs)
    return next((where for where in found if where is not None), None)
