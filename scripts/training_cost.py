"""What training costs by ftlab and by its peers: seconds, tokens, memory and floating-point operations of a step.

`scripts/benchmark.py training` runs it. An arm is a tool and how it lays rows out; each is a process of its own, arms
take turns, ratios are within a turn. All train the same rows of one file, in ftlab's order, with the same optimiser,
rate and precision. A figure counts only where an arm's losses are those of the bare PyTorch loop.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[1]
ASSETS = TOP / "ftlab" / "assets"
ARMS = ("bare", "ftlab", "hf", "trl", "ftlab:pack", "trl:pack")
PEAKS = {"H200": 989e12, "H100": 989e12}
"""Dense bfloat16 operations a second, by the makers' datasheets."""

SHAPES = {
    "llama-256": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 8},
    "llama-512": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},
    "llama-3.2-1b": {
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True},
    },
    "llama-3.1-8b": {
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False},
    },
}
"""Of Llamas with random weights: all but the vocabulary, which is the tokenizer's where none is given."""


@dataclass(frozen=True)
class Work:
    """What every arm does.

    Args:
        network: Directory of network and tokenizer.
        data: JSONL file with prompt and completion, or with dialogue and summary.
        method: full, lora or qlora.
        length: Longer rows are dropped, or cut where `cut`.
        batch_size: Rows of a step; packs, where an arm packs.
        warm: Steps that are not measured.
        steps: All steps.
        precision: 32-true, bf16-mixed (adapters and optimiser in float32), or bf16-true.
        checkpointing: Compute activations again in the backward pass.
        attention: Kernel, as transformers names it.
        profiled: Whether the last three steps are profiled, which makes their seconds useless.
    """

    network: str
    data: str
    method: str = "lora"
    length: int = 1024
    batch_size: int = 8
    warm: int = 4
    steps: int = 16
    precision: str = "32-true"
    checkpointing: bool = False
    attention: str = "sdpa"
    profiled: bool = False

    @property
    def rate(self) -> float:
        return 1e-5 if self.method == "full" else 1e-4

    @property
    def dtype(self) -> str:
        """Of the weights in memory: a base that is frozen needs no more than the precision it is computed in."""
        mixed_full = self.method == "full" and self.precision == "bf16-mixed"
        return "float32" if self.precision == "32-true" or mixed_full else "bfloat16"


class Clock:
    """Notes when steps begin and end, their losses, and the norm of the first gradient.

    The device is waited for twice, where the measured steps begin and where they end.
    """

    def __init__(self, work: Work) -> None:
        self.work, self.step = work, 0
        self.losses: list[Any] = []
        self.norm = self.began = self.first = self.seconds = self.cpu = 0.0
        self.profiler: Any = None

    def begins(self) -> None:
        if self.step == 0:
            self.first = _since_start()
        if self.step == self.work.warm:
            _wait()
            self.began, self.cpu = time.perf_counter(), time.process_time()
        if self.work.profiled and self.step == self.work.steps - 3:
            from torch.profiler import profile

            self.profiler = profile()
            self.profiler.__enter__()

    def ends(self, loss: Any, parameters: Any) -> bool:
        """Whether it was the last; `loss` is the mean over the step's targets."""
        if self.step == 0:
            import torch

            gradients = [p.grad for p in parameters if p.grad is not None]
            self.norm = float(torch.nn.utils.get_total_norm(gradients))
        self.losses.append(loss.detach())
        self.step += 1
        if self.step < self.work.steps:
            return False
        _wait()
        self.seconds, self.cpu = time.perf_counter() - self.began, time.process_time() - self.cpu
        return True

    def figures(self) -> dict[str, Any]:
        import torch

        if self.profiler:
            self.profiler.__exit__(None, None, None)
            for by in ("self_cuda_time_total", "self_cpu_time_total"):
                print(self.profiler.key_averages().table(sort_by=by, row_limit=16, max_name_column_width=60))
        steps = self.work.steps - self.work.warm
        cuda = torch.cuda.is_available()
        return {
            "seconds": self.seconds / steps,
            "cpu": self.cpu / steps,
            "first_step": self.first,
            "losses": [float(loss) for loss in self.losses],
            "norm": self.norm,
            "memory": torch.cuda.max_memory_allocated()
            if cuda
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
        }


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _since_start() -> float:
    """Seconds since this process was started."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------- the arms


def data_options(work: Work) -> dict[str, Any]:
    """ftlab's data, with nothing split off, compared or dropped but what is too long."""
    with Path(work.data).open(encoding="utf-8") as file:
        first = json.loads(file.readline())
    wording = {} if "completion" in first else {"prompt": "{dialogue}\n", "response": "{summary}"}
    return {
        **wording,
        **{"path": work.data, "template": "plain", "max_length": work.length, "batch_size": work.batch_size},
        **{"overflow": "drop", "batching": "pad"},
    }


def rows(work: Work, place: Path) -> list[list[dict[str, list[int]]]]:
    """The rows of each step in ftlab's order, as lists of input_ids and labels; read from `place` the second time."""
    if place.exists():
        return json.loads(place.read_text())
    from ftlab.data import FinetuneData
    from ftlab.data.assignment import Splits
    from ftlab.data.duplicates import Duplicates
    from ftlab.networks import Network

    data = FinetuneData(
        Network(work.network),
        **data_options(work),
        splits=Splits(validation=0.0, test=0.0),
        duplicates=Duplicates(exact=False),
    )
    data.setup("fit")
    batches = []
    for batch, _ in zip(data.train_dataloader(), range(work.steps), strict=False):
        lengths = batch["attention_mask"].sum(1).tolist()
        batches.append(
            [
                {"input_ids": ids[:length], "labels": labels[:length]}
                for ids, labels, length in zip(
                    batch["input_ids"].tolist(), batch["labels"].tolist(), lengths, strict=True
                )
            ]
        )
    place.write_text(json.dumps(batches))
    return batches


def ftlab(work: Work, scratch: Path, layout: str) -> dict[str, Any]:
    """`ftlab fit`, with a callback that looks at the clock."""
    import lightning.pytorch as pl
    import yaml

    from ftlab.cli import main

    clock = Clock(work)
    seen: list[tuple[int, int]] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            clock.begins()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            seen.append((batch["tokens"], batch["target_tokens"]))
            if clock.ends(outputs["loss"] / batch["target_tokens"], module.parameters()):
                counted = [list(map(sum, zip(*seen[work.warm :], strict=True)))]
                print(json.dumps(clock.figures() | {"tokens": counted[0][0], "targets": counted[0][1]}), flush=True)
                os._exit(0)  # what comes after the last step is not measured

    sys.modules["watch"] = type(sys)("watch")
    sys.modules["watch"].Watch = Watch  # type: ignore[attr-defined]
    data = data_options(work) | {"batching": layout, "splits": {"validation": 0.0, "test": 0.0}}
    data["duplicates"] = {"exact": False}
    config = {
        "trainer": {
            **{
                "precision": work.precision,
                "max_steps": work.steps,
                "limit_val_batches": 0,
                "callbacks": ["watch.Watch"],
            },
            **{"enable_progress_bar": False},
        },
        "data": data,
        "model": {
            "network": {"path": work.network, "dtype": work.dtype, "attention": work.attention},
            "gradient_checkpointing": work.checkpointing,
            "optimizer": {
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": work.rate, "weight_decay": 0.0, "fused": True},
            },
            "schedule": {"class_path": "ftlab.modules.Constant"},
        },
        "run": {"root": str(scratch), "name": "run"},
        "wandb": {"mode": "disabled"},
    }
    file = scratch / "bench.yaml"
    file.write_text(yaml.safe_dump(config))
    experiments = TOP / "experiments"
    code = main(
        ["fit", *("-c", f"{experiments}/base.yaml", "-c", f"{experiments}/method/{work.method}.yaml"), "-c", str(file)]
    )
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


def bare(work: Work, scratch: Path, layout: str) -> dict[str, Any]:
    """A loop over padded batches with nothing in it that need not be there."""
    import torch

    batches = rows(work, scratch / "rows.json")
    network, clock = opened(work), Clock(work)
    device = next(network.parameters()).device
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=work.rate, weight_decay=0.0, fused=True)
    mixed = torch.autocast(device.type, torch.bfloat16) if work.precision == "bf16-mixed" else contextlib.nullcontext()
    for batch in batches:
        clock.begins()
        inputs = {name: value.to(device, non_blocking=True) for name, value in padded(batch).items()}
        labels = inputs.pop("labels")
        with mixed:
            logits = network(**inputs, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        clock.ends(loss, trained)
        optimizer.zero_grad()
    return clock.figures() | counts(batches[work.warm :])


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


def counts(batches: list[list[dict[str, list[int]]]]) -> dict[str, int]:
    """Real tokens, and those that are learned."""
    every = [row for batch in batches for row in batch]
    return {
        "tokens": sum(len(row["input_ids"]) for row in every),
        "targets": sum(label != -100 for row in every for label in row["labels"][1:]),
    }


def trainer_options(work: Work, scratch: Path) -> dict[str, Any]:
    """Of Hugging Face's Trainer, and of TRL's: the same optimiser, rate and clipping; nothing saved, nothing sent."""
    import torch

    return {
        **{"output_dir": str(scratch), "max_steps": work.steps, "per_device_train_batch_size": work.batch_size},
        **{"learning_rate": work.rate, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0},
        **{"optim": "adamw_torch_fused", "bf16": work.precision == "bf16-mixed", "save_strategy": "no"},
        **{"report_to": "none", "disable_tqdm": True, "use_cpu": not torch.cuda.is_available()},
        **{"gradient_checkpointing": work.checkpointing, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    }


def watched(kind: Any, clock: Clock) -> tuple[Any, Any, list[dict[str, Any]]]:
    """The Trainer class `kind`, in the order of its rows; a callback that looks at the clock at both ends of a step;
    and the batches that are seen."""
    import torch
    from transformers import TrainerCallback

    seen: list[dict[str, Any]] = []
    latest: list[Any] = []

    class Watched(kind):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            loss = super().training_step(model, inputs, *rest)
            seen.append(inputs)
            latest[:] = [loss]
            return loss

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begins()

        def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
            if clock.step == 0:  # its gradients are gone where a step ends
                self.norms = [p.grad.clone() for p in model.parameters() if p.grad is not None]

        def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
            first = [type("Held", (), {"grad": g}) for g in self.norms] if clock.step == 0 else ()
            self.norms = []
            clock.ends(latest[0], first)

    return Watched, Watch(), seen


def hf(work: Work, scratch: Path, layout: str) -> dict[str, Any]:
    """transformers' Trainer with peft."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    batches, clock = rows(work, scratch / "rows.json"), Clock(work)
    kind, watch, _ = watched(Trainer, clock)
    trainer = kind(
        opened(work),
        TrainingArguments(**trainer_options(work, scratch), remove_unused_columns=False),
        data_collator=padded,
        train_dataset=Dataset.from_list([row for batch in batches for row in batch]),
        callbacks=[watch],
    )
    trainer.train()
    return clock.figures() | counts(batches[work.warm :])


def trl(work: Work, scratch: Path, layout: str) -> dict[str, Any]:
    """TRL's SFTTrainer, with its own collator, loss and packing."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    packed = layout == "pack"
    batches = rows(replace(work, steps=8 * work.steps) if packed else work, scratch / f"rows_{layout}.json")
    clock = Clock(work)
    kind, watch, seen = watched(SFTTrainer, clock)
    tokenizer = AutoTokenizer.from_pretrained(work.network)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    config = SFTConfig(**trainer_options(work, scratch), max_length=work.length, packing=packed, shuffle_dataset=False)
    data = Dataset.from_list([row for batch in batches for row in batch])
    trainer = kind(opened(work), config, train_dataset=data, processing_class=tokenizer, callbacks=[watch])
    trainer.train()
    if not packed:
        return clock.figures() | counts(batches[work.warm :])
    measured = seen[work.warm :]
    tokens = sum(batch["input_ids"].numel() for batch in measured)  # it lays packs end to end, without padding
    return clock.figures() | {"tokens": tokens, "targets": sum(int(b["labels"].ne(-100).sum()) for b in measured)}


TOOLS: dict[str, Callable[[Work, Path, str], dict[str, Any]]] = {"ftlab": ftlab, "bare": bare, "hf": hf, "trl": trl}


# ---------------------------------------------------------------- the comparison


def benchmark_training(work: Work, arms: list[str], repeats: int) -> dict[str, Any]:
    """Prints a table and returns the figures.

    Raises:
        SystemExit: An arm failed, or did other work than the bare loop.
    """
    turns = [{arm: _run(arm, work) for arm in arms} for _ in range(repeats)]
    first = turns[0]
    flops = operations(work)
    figures: dict[str, Any] = {
        "work": asdict(work) | {"network": Path(work.network).name, "data": Path(work.data).name}
    }
    print(f"{first[arms[0]].get('device')}; {figures['work']}; {repeats} turns: median (smallest to largest)")
    wrong = {arm: said for arm in arms for turn in turns if (said := objection(turn[arm], turn.get("bare"), arm))}
    for arm in arms:
        if arm in wrong:
            figures[arm] = {"refused": wrong[arm]}
            print(f"  {arm:<11} does not count: {wrong[arm]}")
            continue
        measured = work.steps - work.warm
        tokens, targets = first[arm]["tokens"] / measured, first[arm]["targets"] / measured
        mine = figures[arm] = {
            "ms": _spread([1e3 * turn[arm]["seconds"] for turn in turns]),
            "tokens/s": _spread([tokens / turn[arm]["seconds"] for turn in turns]),
            "targets/s": _spread([targets / turn[arm]["seconds"] for turn in turns]),
            "tokens": tokens,
            "targets": targets,
            "memory": _spread([turn[arm]["memory"] for turn in turns]),
            "first_step": _spread([turn[arm]["first_step"] for turn in turns]),
            "losses": first[arm]["losses"],
            "norm": first[arm]["norm"],
        }
        if "bare" in arms and "bare" not in wrong and not arm.endswith(":pack"):
            mine["over bare"] = _spread([turn[arm]["seconds"] / turn["bare"]["seconds"] for turn in turns])
        if peak := next((peak for name, peak in PEAKS.items() if name in first[arm]["device"]), None):
            mine["mfu"] = _spread([flops * tokens / turn[arm]["seconds"] / peak for turn in turns])
        print(
            f"  {arm:<11}" + "  ".join(f"{name} {_said(value)}" for name, value in mine.items() if name not in UNSAID)
        )
    return figures


UNSAID = {"losses", "tokens", "targets"}


def _said(value: Any) -> str:
    if not isinstance(value, tuple):
        return f"{value:.4g}"
    median, low, high = value
    return f"{median:.4g}" if low == high else f"{median:.4g} ({low:.4g} to {high:.4g})"


def objection(mine: dict[str, Any], bare: dict[str, Any] | None, arm: str) -> str | None:
    """Why a figure does not count, or None."""
    if "failed" in mine:
        return mine["failed"]
    if not (math.isfinite(mine["norm"]) and mine["norm"] > 0):
        return f"the first gradient's norm is {mine['norm']}"
    if bare is None or "failed" in bare or arm.endswith(":pack"):
        return None
    if (mine["tokens"], mine["targets"]) != (bare["tokens"], bare["targets"]):
        return (
            f"{mine['tokens']} tokens and {mine['targets']} targets, the bare loop {bare['tokens']}, {bare['targets']}"
        )
    for step, (loss, wanted) in enumerate(zip(mine["losses"], bare["losses"], strict=True), 1):
        if abs(loss - wanted) > 0.01 * wanted:
            return f"the loss of step {step} is {loss:.5f}, the bare loop's {wanted:.5f}"
    return None


def operations(work: Work) -> float:
    """Floating-point operations that a token needs where rows are `work.length` long: full 6 N + 6 L d s, with adapters
    4 N + 6 L d s + 6 of theirs; N are weights that are multiplied, without the input embedding (PaLM, Chowdhery et al.
    2022, arXiv 2204.02311, appendix B, halved for attention that is causal)."""
    shape = json.loads((Path(work.network) / "config.json").read_text())
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    head = shape.get("head_dim") or hidden // heads
    keys = head * (shape.get("num_key_value_heads") or heads)
    layer = [(hidden, heads * head), (hidden, keys), (hidden, keys), (heads * head, hidden)]
    layer += 3 * [(hidden, shape["intermediate_size"])]
    layers = shape["num_hidden_layers"]
    weights = layers * sum(a * b for a, b in layer) + hidden * shape["vocab_size"]
    adapters = layers * sum(16 * (a + b) for a, b in layer) if work.method != "full" else 0
    attention = 6 * layers * heads * head * work.length
    return (6 if work.method == "full" else 4) * weights + 6 * adapters + attention


def _run(arm: str, work: Work) -> dict[str, Any]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
    with tempfile.TemporaryDirectory() as scratch:
        environment |= {"FTLAB_CACHE": f"{scratch}/cache", "HF_DATASETS_CACHE": scratch}
        command = [sys.executable, __file__, arm, json.dumps(asdict(work))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=scratch)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
        return {"failed": (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1][:300]}
    *before, figures = done.stdout.splitlines()
    if work.profiled:
        print("\n".join(before))
    return json.loads(figures)


def network_directory(name: str, tokenizer: Path, place: Path) -> Path:
    """`name` where that is a directory; else a Llama of that shape in bfloat16 with random weights, made in `place`."""
    if Path(name).is_dir():
        return Path(name).resolve()
    directory = place / name
    if (directory / "done").exists():
        return directory
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    words = AutoTokenizer.from_pretrained(tokenizer)
    words.eos_token = words.eos_token or "<|endoftext|>"  # GPT-2's files do not say it
    shape = {"vocab_size": len(words), "max_position_embeddings": 8192} | SHAPES[name]
    config = LlamaConfig(**shape, bos_token_id=None, eos_token_id=words.eos_token_id, rope_theta=500000.0)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"), default_dtype(torch.bfloat16):
        LlamaForCausalLM(config).save_pretrained(directory)
    words.save_pretrained(directory)
    (directory / "done").touch()
    return directory


@contextlib.contextmanager
def default_dtype(dtype: Any) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


if __name__ == "__main__":
    tool, _, how = sys.argv[1].partition(":")
    print(json.dumps(TOOLS[tool](Work(**json.loads(sys.argv[2])), Path.cwd(), how or "pad")))
