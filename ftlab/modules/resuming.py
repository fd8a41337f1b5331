"""Going on from a checkpoint as something else than what wrote it: refused, or forced as far as it can be exact.

Lightning takes the optimiser's hyperparameters from the checkpoint whatever the user says now, and its loops count
batches, of whatever size and on however many devices. Both stand in the checkpoint, and are put right in there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ftlab.data import FinetuneData
from ftlab.errors import UserError
from ftlab.modules.steps import batches_per_epoch, steps_in, steps_left


def refuse_other_tensors(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], trained: set[str]) -> None:
    """Refuses a checkpoint that holds other tensors than are trained.

    Args:
        theirs: The checkpoint's.
        ours: All of the module.
        trained: Names of those that are trained.

    Raises:
        UserError: Names or shapes differ.
    """
    if set(theirs) != trained:
        odd = sorted(set(theirs) ^ trained)
        raise UserError(
            f"the checkpoint holds {len(theirs)} trained tensors, this run trains {len(trained)}; {odd[0]!r} is on "
            "one side only: start another run (--run.name)"
        )
    for name, tensor in theirs.items():
        if tensor.shape != ours[name].shape:
            raise UserError(
                f"the checkpoint holds {name} in shape {tuple(tensor.shape)}, this run trains it in shape "
                f"{tuple(ours[name].shape)}: start another run (--run.name)"
            )


def asked_of(optimizer: Optimizer) -> dict[str, Any]:
    """What an optimiser was made as: its class, and the hyperparameters of each group, as text."""
    return {
        "class": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
        "groups": [
            {name: repr(value) for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ],
    }


def refuse_other_optimizer(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuses to have the checkpoint's hyperparameters take the place of those that were asked for.

    Raises:
        UserError: They differ.
    """
    if theirs["class"] != ours["class"]:
        raise _other("optimizer", theirs["class"], ours["class"])
    if len(theirs["groups"]) != len(ours["groups"]):
        raise _other("parameter groups", len(theirs["groups"]), len(ours["groups"]))
    for there, here in zip(theirs["groups"], ours["groups"], strict=True):
        for name in here:
            if there.get(name) != here[name]:
                raise _other(name, there.get(name), here[name])


def _other(what: str, theirs: Any, ours: Any) -> UserError:
    return UserError(
        f"model.optimizer: the run to resume had {what} {theirs} and this one has {ours}: resume with the same, start "
        "another run (--run.name), or go on with the new one all the same (--run.resume force)"
    )


def take_own_optimizer(checkpoint: dict[str, Any], optimizer: Optimizer, scheduler: Any) -> None:
    """Has a checkpoint hold the hyperparameters of this optimiser, fresh as it is, instead of its own.

    Its moments stay, unless it is of another class or has other groups.
    """
    theirs, ours, fresh = checkpoint["ftlab"]["optimizer"], asked_of(optimizer), optimizer.state_dict()
    saved = checkpoint["optimizer_states"][0]
    sizes = [[len(group["params"]) for group in state["param_groups"]] for state in (saved, fresh)]
    if theirs["class"] != ours["class"] or sizes[0] != sizes[1]:
        checkpoint["optimizer_states"] = [fresh]
    else:
        for there, was, here in zip(saved["param_groups"], theirs["groups"], fresh["param_groups"], strict=True):
            # not all: some optimisers keep in a group what they have learnt
            there |= {name: value for name, value in here.items() if was.get(name) != repr(value) and name != "params"}
    if scheduler is not None and checkpoint["lr_schedulers"]:
        own = scheduler.state_dict()
        place = {name: checkpoint["lr_schedulers"][0].get(name) for name in ("last_epoch", "_step_count")}
        checkpoint["lr_schedulers"] = [own | place]


def follow_schedule(optimizer: Optimizer, scheduler: Any) -> None:
    """Sets the rates of the next step as this schedule has them, whatever the one before had: training may end later
    now than it did. Where nothing has changed they are the same."""
    if isinstance(scheduler, LambdaLR):
        for group, base, factor in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)


def hand_over_loops(checkpoint: dict[str, Any], data: FinetuneData, trainer: pl.Trainer) -> int:
    """Has the loops of a checkpoint stand where this training's batches go on (see `ftlab.data.remainder`).

    Args:
        checkpoint: Is changed.
        data: Whose batches go on.
        trainer: Goes on.

    Returns:
        More steps than this training's epochs alone tell: the epochs before were of other batches.
    """
    loops = checkpoint["loops"]["fit_loop"]
    before = loops["state_dict"]["combined_loader"][0]
    progress = loops["epoch_loop.batch_progress"]
    state, done = data.handed_over(before, checkpoint["global_step"], progress["is_last_batch"])
    loops["state_dict"]["combined_loader"] = [state]
    moved = done - progress["current"]["ready"]
    progress["current"] = {name: count + moved for name, count in progress["current"].items()}
    progress["is_last_batch"] = state["epoch"] > before["epoch"]
    per_epoch = batches_per_epoch(data, trainer)
    if per_epoch is None or trainer.max_epochs in (None, -1):
        return 0
    behind = before["epoch"] + 1  # epochs, the one under way among them
    return int(checkpoint["global_step"]) + steps_left(per_epoch, done, trainer) - behind * steps_in(per_epoch, trainer)
