"""What the three tools say alike, or hand on to HF Trainer: which network, how long, in which batches, how fast."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ftlab.cli.importing.foreign import Foreign, Part, asset


def common(foreign: Foreign) -> None:
    """All that does not depend on the tool."""
    _end(foreign)
    _batches(foreign)
    _optimizer(foreign)
    _schedule(foreign)
    _intervals(foreign)
    _seeds(foreign)
    _strategy(foreign)
    clip = foreign.number("max_grad_norm", 1.0)
    foreign.put("trainer.gradient_clip_val", clip or None)
    if noise := foreign.number("neftune_noise_alpha"):
        callback = {"class_path": asset("shared")["noise"], "init_args": {"alpha": noise}}
        foreign.put("trainer.callbacks", [callback])
        foreign.note("differs", "padding gets no noise and counts for none", "neftune_noise_alpha")
    if foreign.take("torch_compile") == "auto" or foreign.flag("torch_compile"):
        foreign.put("model.compile", True)
    workers = foreign.whole("dataloader_num_workers")
    if foreign.says("dataloader_num_workers"):
        foreign.put("data.workers", workers)


def network(foreign: Foreign, key: str, dtype: str | None, attention: Any) -> None:
    """Which network is trained.

    Args:
        foreign: The configuration.
        key: Under which it says where the network lies.
        dtype: Of the weights in memory.
        attention: The kernel; nothing where that is left to transformers.

    Raises:
        UserError: It does not say where.
    """
    path = foreign.text(key)
    if not path:
        raise foreign.refuse(f"{key} is missing: say which network is to be trained")
    foreign.put("model.network.path", path)
    if (revision := foreign.take("model_revision", "main")) != "main":
        foreign.put("model.network.revision", revision)
    foreign.put("model.network.dtype", dtype)
    if attention:
        foreign.put("model.network.attention", attention)
    if foreign.flag("trust_remote_code"):
        foreign.put("model.network.trust_remote_code", True)


def precision(foreign: Foreign, bf16: bool, fp16: bool) -> None:
    """Mixed precision; the numbers of 16-bit floats, which need scaled gradients, are those of bfloat16 here."""
    if fp16 and not bf16:
        foreign.note("differs", "ftlab has no fp16, whose gradients are scaled: bfloat16 stands for it", "fp16")
    foreign.put("trainer.precision", "bf16-mixed" if bf16 or fp16 else "32-true")


def checkpointing(foreign: Foreign, on: bool) -> None:
    """What is computed again in the backward pass: memory for time, and the same numbers."""
    foreign.put("model.gradient_checkpointing", on)


def _end(foreign: Foreign) -> None:
    steps, epochs = foreign.whole("max_steps", -1), foreign.number("num_train_epochs")
    if steps > 0:
        foreign.put("trainer.max_steps", steps)
        if foreign.says("num_train_epochs"):
            foreign.note("ours", "max_steps has the last word, there as here", "num_train_epochs")
    elif epochs != int(epochs) or epochs < 1:
        raise foreign.refuse(
            f"{foreign.key('num_train_epochs')} is {epochs:g}, and ftlab trains whole epochs: give max_steps instead"
        )
    else:
        foreign.put("trainer.max_epochs", int(epochs))


def _batches(foreign: Foreign) -> None:
    size, accumulated = foreign.whole("per_device_train_batch_size"), foreign.whole("gradient_accumulation_steps", 1)
    for name, value in {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}.items():
        if value < 1:
            raise foreign.wrong(name, "1 or more")
    foreign.put("data.batch_size", size)
    if size_of_evaluation := foreign.whole("per_device_eval_batch_size"):
        foreign.put("data.eval_batch_size", size_of_evaluation)
    foreign.put("trainer.accumulate_grad_batches", accumulated)
    foreign.put("trainer.devices", 1)
    foreign.note(
        "hand",
        f"a step takes {size} x {accumulated} = {size * accumulated} rows on each device, and how many devices there "
        "are says the launcher there: --trainer.devices here",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    )
    by_length = bool(foreign.take("group_by_length", False))
    if "train_sampling_strategy" in foreign.tool.keys:
        by_length = foreign.take("train_sampling_strategy") == "group_by_length" or by_length
    foreign.put("data.batching", "bucket" if by_length else "pad")


def _optimizer(foreign: Foreign) -> None:
    table = asset("shared")
    name = str(foreign.take("optim", "adamw_torch_fused"))
    if name not in table["optimizers"]:
        foreign.note("hand", f"AdamW stands for {name}: docs/how-to/optimizers.md names what else there is", "optim")
        name = "adamw_torch"
    found = table["optimizers"][name]
    arguments = {"lr": foreign.number("learning_rate"), "weight_decay": foreign.number("weight_decay")}
    betas = foreign.number("adam_beta1", 0.9), foreign.number("adam_beta2", 0.999)
    epsilon = foreign.number("adam_epsilon", 1e-8)
    if name in table["of Adam"]:
        if betas != (0.9, 0.999):
            arguments["betas"] = list(betas)  # type: ignore[assignment]
        if epsilon != 1e-8:
            arguments["eps"] = epsilon
    if name in table["paged elsewhere"]:
        foreign.note("differs", "its states are not paged: the same numbers, in the device's memory", "optim")
    optimizer = {"class_path": found["class_path"], "init_args": {**arguments, **found.get("init_args", {})}}
    foreign.put("model.optimizer", optimizer)


def held_out(foreign: Foreign, key: str) -> None:
    """The share, or the number, of the records that are kept for validation."""
    share = foreign.number(key)
    foreign.put("data.splits", {"validation": int(share) if share >= 1 else share, "test": 0})
    if share:
        foreign.note(
            "differs",
            "records to validate on that are found in training, too, are refused: --data.leaks.action drop leaves "
            "those of training out, ignore has them stay",
            key,
        )


def _schedule(foreign: Foreign) -> None:
    table = asset("shared")["schedules"]
    name = str(foreign.take("lr_scheduler_type", "linear"))
    more = foreign.part("lr_scheduler_kwargs", power=1, num_cycles={"cosine": 0.5}.get(name, 1))
    rate = foreign.number("learning_rate")
    arguments: dict[str, Any] = {"warmup": 0 if name == "constant" else _warmup(foreign)}
    if name not in table:
        foreign.note(
            "hand", f"a straight line stands for {name}: ftlab has constant, cosine and linear", "lr_scheduler_type"
        )
        name = "linear"
    if name == "polynomial" or (name == "cosine_with_min_lr" and more.take("min_lr") is not None):
        if not rate:
            raise foreign.wrong("learning_rate", "above 0")
        arguments["floor"] = (more.number("lr_end", 1e-7) if name == "polynomial" else more.number("min_lr")) / rate
    elif name == "cosine_with_min_lr":
        arguments["floor"] = more.number("min_lr_rate")
    if table[name].endswith("Linear") or table[name].endswith("Cosine"):
        arguments.setdefault("floor", _floor(foreign))
    if unread := more.unread():
        said = f"{', '.join(unread)} is none of ftlab's schedules: it is left out"
        foreign.note("hand", said, "lr_scheduler_kwargs")
    if arguments["warmup"]:
        foreign.note(
            "differs",
            "each step of the warm-up has the rate that it has one step later there, where the first has a rate of 0",
            "warmup_ratio" if foreign.says("warmup_ratio") else "warmup_steps",
        )
    foreign.put("model.schedule", {"class_path": table[name], "init_args": arguments})


def _floor(foreign: Foreign) -> float:
    """The share of the rate at which it ends: a key of its own in Axolotl."""
    return foreign.number("cosine_min_lr_ratio") if "cosine_min_lr_ratio" in foreign.tool.keys else 0.0


def _warmup(foreign: Foreign) -> float | int:
    """A share of all steps below 1, or a number of them; HF Trainer takes the number where there are both."""
    steps, share = foreign.number("warmup_steps"), foreign.number("warmup_ratio")
    length = steps or share
    return int(length) if length >= 1 or length == 0 else length


def _intervals(foreign: Foreign) -> None:
    accumulated = foreign.whole("gradient_accumulation_steps", 1)
    log = foreign.number("logging_steps", 10)
    foreign.put("trainer.log_every_n_steps", max(1, int(log)))
    how = str(foreign.take("eval_strategy", "no"))
    if how == "steps":
        every = _steps(foreign, "eval_steps", foreign.number("eval_steps", log))
        if every:
            foreign.put("trainer.val_check_interval", every * accumulated)  # Lightning counts batches
            foreign.put("trainer.check_val_every_n_epoch", None)
    foreign.take("eval_steps")
    if how == "no":
        foreign.put("trainer.limit_val_batches", 0)
    save = str(foreign.take("save_strategy", "steps"))
    if save == "steps":
        every = _steps(foreign, "save_steps", foreign.number("save_steps", 500))
        if every:
            foreign.put("run.checkpoints.every_n_steps", every)
    else:
        foreign.take("save_steps")
        if save != "epoch":
            foreign.note("ours", "the last and the best checkpoint are written in any case", "save_strategy")


def _steps(foreign: Foreign, name: str, value: float) -> int | None:
    """An interval in optimiser steps; a share of all steps is known only where these are."""
    if value >= 1:
        return int(value)
    if (steps := foreign.whole("max_steps", -1)) > 0:
        return math.ceil(steps * value)
    foreign.note("hand", f"{value:g} is a share of all steps: give their number", name)
    return None


def _seeds(foreign: Foreign) -> None:
    foreign.put("seed_everything", foreign.whole("seed", 42))
    if "data_seed" in foreign.tool.keys and (order := foreign.whole_or_none("data_seed")) is not None:
        foreign.put("seeds.order", order)


def logging(foreign: Foreign) -> None:
    """W&B as it is said to report to."""
    names = foreign.texts("report_to")
    if {"wandb", "all"} & set(names):
        foreign.put("wandb.mode", "auto")
    else:
        foreign.put("wandb.mode", "disabled")
        if others := [name for name in names if name != "none"]:
            said = f"a logger for {', '.join(others)} is a class in trainer.logger: docs/how-to/wandb.md"
            foreign.note("hand", said, "report_to")


def _strategy(foreign: Foreign) -> None:
    shards, options, deep = foreign.take("fsdp"), foreign.take("fsdp_config"), foreign.take("deepspeed")
    if shards or options:
        _on_all(foreign, "fsdp", "fsdp" if shards else "fsdp_config", "what is wrapped and gathered")
    elif deep:
        sharded = _stage(foreign, deep) == 3
        _on_all(foreign, "fsdp" if sharded else "ddp", "deepspeed", "what DeepSpeed's file says beside its stage")


def _on_all(foreign: Foreign, strategy: str, name: str, rest: str) -> None:
    foreign.put("trainer.strategy", strategy)
    foreign.put("trainer.devices", "auto")
    foreign.note(
        "differs", f"trainer.strategy {strategy} on all devices; {rest} is ftlab's own: docs/how-to/scale.md", name
    )


def _stage(foreign: Foreign, said: Any) -> int:
    """The stage of ZeRO: of the file where it is at hand, else by its name."""
    if isinstance(said, str):
        if not Path(said).is_file():
            return 3 if any(word in said.lower() for word in ("z3", "zero3", "zero-3", "ds3")) else 0
        try:
            said = json.loads(Path(said).read_text(encoding="utf-8"))
        except ValueError:
            return 0
    return Part(foreign.place("deepspeed"), said).part("zero_optimization").whole("stage")
