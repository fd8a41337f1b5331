"""The trainings that training_cost.py compares, each by a tool of its own: `training_arms.py TOOL[:OPTION+…] WORK`.

All train the rows of one file once, in ftlab's order, with the same optimiser, rate, clipping and precision. The last
line that is printed holds the figures. `training_arms.py records WORK FILE` chooses the rows.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benching import TOP, as_it_stands, data_module
from training_clock import Clock
from training_cost import Work


def layout_options(work: Work, layout: str = "pad") -> dict[str, Any]:
    size = work.packs if layout == "pack" else work.batch_size
    return {"max_length": work.length, "batch_size": size, "overflow": "drop", "batching": layout}


def chosen(work: Work, file: Path) -> dict[str, int]:
    """Writes the records that all arms train: as many as fill the steps, evenly spaced over those that fit.

    Returns:
        `packs`: how many packs of `length` hold a step's tokens.
    """
    data = data_module(Path(work.data), work.network, **layout_options(work))
    rows, wanted = data.rows("train"), work.steps * work.batch_size
    if len(rows) < wanted:
        sys.exit(f"it has {len(rows)} records of up to {work.length} tokens; {wanted} are wanted")
    places = [number * len(rows) // wanted for number in range(wanted)]
    with Path(work.data).open(encoding="utf-8") as records:  # as they are numbered, whatever stands in their texts
        lines = list(records)
    numbers = [int(rows[place].source.rpartition(":")[2]) for place in places]
    file.write_text("".join(lines[number - 1].rstrip("\n") + "\n" for number in numbers), encoding="utf-8")
    return {"packs": max(1, round(int(rows.lengths[places].sum()) / work.steps / work.length))}


def rows(work: Work) -> list[list[dict[str, list[int]]]]:
    """The rows of each step in ftlab's order, as lists of input_ids and labels."""
    if (ready := Path("rows.json")).is_file():  # of start_cost.py, so that peers start without ftlab
        return json.loads(ready.read_text(encoding="utf-8"))
    data = data_module(Path(work.data), work.network, **layout_options(work))
    data.setup("fit")
    batches = []
    for batch, _ in zip(data.train_dataloader(), range(work.steps), strict=False):
        lengths = batch["attention_mask"].sum(1).tolist()
        padded_rows = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), lengths, strict=True)
        batches.append([{"input_ids": ids[:size], "labels": labels[:size]} for ids, labels, size in padded_rows])
    return batches


def ftlab(work: Work, scratch: Path, told: Set[str]) -> None:
    """`ftlab fit`, with a callback that looks at the clock, prints the figures and ends the process.

    Packs are attended to as ftlab does where nothing is said, or `masked`: as the network does by itself.
    """
    import yaml

    from ftlab.cli import main

    watch = {"class_path": "training_watch.Watch", "init_args": {"work": asdict(work)}}
    layout = next(iter(told & {"bucket", "pack"}), "pad")
    own = layout == "pack" and work.attention == "sdpa" and "masked" not in told
    config = {
        "trainer": {
            **{"precision": work.precision, "max_epochs": 1, "limit_val_batches": 0, "callbacks": [watch]},
            "enable_progress_bar": False,
        },
        "data": as_it_stands(Path(work.data)) | layout_options(work, layout),
        "model": {
            "network": {"path": work.network, "dtype": work.dtype, "attention": None if own else work.attention},
            "gradient_checkpointing": work.checkpointing,
            "optimizer": {
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": work.rate, "weight_decay": 0.0, "fused": True},
            },
            "schedule": {"class_path": "ftlab.modules.Constant", "init_args": {"warmup": 0}},
            **({"compile": True} if "compile" in told else {}),
        },
        "run": {"root": str(scratch), "name": "run"},
        "wandb": {"mode": "disabled"},
    }
    file = scratch / "bench.yaml"
    file.write_text(yaml.safe_dump(config))
    files = (TOP / "experiments" / "base.yaml", TOP / "experiments" / "method" / f"{work.method}.yaml", file)
    more = ["--profile"] if "profile" in told else []
    code = main(["fit", *(word for path in files for word in ("-c", str(path))), *more])
    sys.exit(f"ftlab fit ended with {code} before the last step")


def opened(work: Work) -> Any:
    """The network as plain transformers and peft open it, on the device, ready for training."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    torch.manual_seed(42)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"dtype": getattr(torch, work.dtype), "attn_implementation": work.attention}
    if work.method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    network = AutoModelForCausalLM.from_pretrained(work.network, device_map={"": device}, **options)
    if work.checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        network.enable_input_require_grads()
    if work.method != "full":
        config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        network = peft.get_peft_model(network, config)
    return network.train()


def bare(work: Work, scratch: Path, told: Set[str]) -> dict[str, Any]:
    """A loop over padded batches with nothing in it that need not be there."""
    import torch

    batches = rows(work)
    network, clock = opened(work), Clock(work)
    if "compile" in told:
        from ftlab.modules.compiling import compile_blocks

        compile_blocks(network)
    device = next(network.parameters()).device
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=work.rate, weight_decay=0.0, fused=True)
    mixed = torch.autocast(device.type, torch.bfloat16) if work.precision == "bf16-mixed" else contextlib.nullcontext()
    for batch in batches:
        holds(clock, batch)
        clock.begins()
        inputs = {name: value.to(device, non_blocking=True) for name, value in padded(batch).items()}
        # labels are shifted, not logits, of which a slice would be a copy
        labels = torch.nn.functional.pad(inputs.pop("labels")[:, 1:], (0, 1), value=-100)
        if "unmasked" in told:
            del inputs["attention_mask"]
        with mixed:
            logits = network(**inputs, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        clock.updates(trained)
        optimizer.step()
        clock.ends(loss)
        optimizer.zero_grad()
    return clock.figures()


def padded(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
    """On the right, with 0 where no token is."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids, labels = ([torch.tensor(row[name]) for row in batch] for name in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }


def holds(clock: Clock, batch: list[dict[str, list[int]]]) -> None:
    """Tells the clock of a padded batch."""
    lengths = [len(row["input_ids"]) for row in batch]
    targets = sum(label != -100 for row in batch for label in row["labels"][1:])
    clock.holds(sum(lengths), targets, len(batch) * max(lengths))


def trainer_options(work: Work, scratch: Path, told: Set[str]) -> dict[str, Any]:
    """Of Hugging Face's Trainer, and of TRL's: the same optimiser, rate and clipping; nothing saved, nothing sent."""
    import torch

    size = work.packs if "pack" in told else work.batch_size
    return {
        **{"output_dir": str(scratch), "num_train_epochs": 1, "per_device_train_batch_size": size},
        **{"learning_rate": work.rate, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0},
        **{"optim": "adamw_torch_fused", "bf16": work.precision == "bf16-mixed", "save_strategy": "no"},
        **{"report_to": "none", "disable_tqdm": True, "use_cpu": not torch.cuda.is_available()},
        **{"gradient_checkpointing": work.checkpointing or "default" in told},
        **{"gradient_checkpointing_kwargs": {"use_reentrant": False}, "use_liger_kernel": "liger" in told},
    }


def watched(kind: Any, clock: Clock) -> tuple[Any, Any]:
    """The Trainer class `kind`, in the order of its rows, and a callback that looks at the clock at both ends of a
    step."""
    import torch
    from transformers import TrainerCallback

    latest: list[Any] = []

    class Watched(kind):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            ids, labels, mask = (inputs.get(name) for name in ("input_ids", "labels", "attention_mask"))
            # packs lie end to end, without padding, and each sample's first label is masked
            tokens, targets = (ids.numel(), labels) if mask is None else (mask.sum(), labels[:, 1:])
            held = tokens, targets.ne(-100).sum(), ids.numel()
            latest[:] = [super().training_step(model, inputs, *rest)]
            clock.holds(*held)
            return latest[0]

    class Watch(TrainerCallback):
        def on_train_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            clock.last = state.max_steps

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begins()

        def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
            clock.updates(model.parameters())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.ends(latest[0])

    return Watched, Watch()


def hf(work: Work, scratch: Path, told: Set[str]) -> dict[str, Any]:
    """transformers' Trainer with peft."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    clock = Clock(work)
    kind, watch = watched(Trainer, clock)
    trainer = kind(
        opened(work),
        TrainingArguments(**trainer_options(work, scratch, told), remove_unused_columns=False),
        data_collator=padded,
        train_dataset=Dataset.from_list([row for batch in rows(work) for row in batch]),
        callbacks=[watch],
    )
    trainer.train()
    return clock.figures()


def trl(work: Work, scratch: Path, told: Set[str]) -> dict[str, Any]:
    """TRL's SFTTrainer, with its own collator, loss and packing."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    clock = Clock(work)
    kind, watch = watched(SFTTrainer, clock)
    tokenizer = AutoTokenizer.from_pretrained(work.network)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    options = {"max_length": work.length, "packing": "pack" in told, "shuffle_dataset": False}
    config = SFTConfig(**trainer_options(work, scratch, told), **options)
    data = Dataset.from_list([row for batch in rows(work) for row in batch])
    trainer = kind(opened(work), config, train_dataset=data, processing_class=tokenizer, callbacks=[watch])
    trainer.train()
    return clock.figures()


TOOLS: dict[str, Callable[[Work, Path, Set[str]], dict[str, Any] | None]] = {
    **{"ftlab": ftlab, "bare": bare, "hf": hf, "trl": trl}
}


if __name__ == "__main__":
    tool, _, options = sys.argv[1].partition(":")
    work = Work(**json.loads(sys.argv[2]))
    if tool == "records":
        print(json.dumps(chosen(work, Path(sys.argv[3]))))
    else:
        print(json.dumps(TOOLS[tool](work, Path.cwd(), set(options.split("+")))))
