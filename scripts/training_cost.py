"""What training costs by ftlab and by its peers: seconds, tokens, memory and floating-point operations of a step.

`scripts/benchmark.py training` runs it. All arms (training_arms.py) go once through the same records: those that fit
in `length`, evenly spaced over the file, as many as fill `steps` batches. Each is a process of its own, arms take
turns, every second turn backwards, and ratios are within a turn. A figure counts only where every record was trained
and losses are the bare loop's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benching import ASSETS, spread

OPTIONS = {
    "bare": ("unmasked", "compile"),
    "ftlab": ("bucket", "pack", "masked", "compile", "profile"),
    "hf": (),
    "trl": ("pack", "default", "liger"),
}
"""What an arm may be told after a colon, with + between: how batches are laid out, other than padded; `masked` keeps
packs apart by a mask of every pair of positions; `unmasked` tells the network of no padding, which is on the right, so
that attention takes the kernel that it takes in ftlab; `compile` compiles decoder blocks; `profile` is `ftlab fit
--profile`; `default` checkpoints activations, as TRL does unless told not to; `liger` has Liger's kernels in the place
of the network's own."""
SAME_BATCH = 0.01
SAME_RECORDS = 0.03
"""How far losses may be from the reference's: of a step on the same batch; and, where batches are other ones, over all
targets of an epoch."""
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
        length: Longer rows are dropped; packs are so long.
        batch_size: Rows of a step.
        packs: Packs of a step, where an arm packs; 0 is as many as hold a padded step's tokens.
        warm: Steps that are not measured.
        steps: All steps, where rows are not packed.
        precision: 32-true, bf16-mixed (adapters and optimiser in float32), or bf16-true.
        checkpointing: Compute activations again in the backward pass.
        attention: Kernel, as transformers names it.
        profiled: File for a trace of the last three steps, which are profiled; that makes their seconds useless.
    """

    network: str
    data: str
    method: str = "lora"
    length: int = 1024
    batch_size: int = 8
    packs: int = 0
    warm: int = 4
    steps: int = 16
    precision: str = "32-true"
    checkpointing: bool = False
    attention: str = "sdpa"
    profiled: str = ""

    @property
    def rate(self) -> float:
        return 1e-5 if self.method == "full" else 1e-4

    @property
    def dtype(self) -> str:
        """Of the weights in memory: a base that is frozen needs no more than the precision it is computed in."""
        mixed_full = self.method == "full" and self.precision == "bf16-mixed"
        return "float32" if self.precision == "32-true" or mixed_full else "bfloat16"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", default=str(ASSETS / "network"), help=f"directory, or {', '.join(SHAPES)}")
    parser.add_argument("--tokenizer", type=Path, default=ASSETS / "network", help="of a shape")
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()), help="where shapes are made")
    parser.add_argument("--data", type=Path, default=ASSETS / "data" / "train.jsonl")
    parser.add_argument("--arms", nargs="+", type=arm, default=["bare", "ftlab", "hf", "trl"], help=str(OPTIONS))
    for name, kind in (("method", str), ("precision", str), ("attention", str)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Work, name))
    for name in ("length", "batch_size", "packs", "warm", "steps"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Work, name))
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--profiled", metavar="FILE", default="")


def run(args: argparse.Namespace) -> dict[str, Any]:
    network = network_directory(args.network, args.tokenizer, args.place)
    told = {name: getattr(args, name) for name in Work.__dataclass_fields__ if name not in ("network", "data")}
    told["profiled"] = args.profiled and str(Path(args.profiled).resolve())  # arms run elsewhere
    return benchmark_training(Work(str(network), str(args.data.resolve()), **told), args.arms, args.repeats)


def arm(text: str) -> str:
    """An arm, spelt as it should be."""
    tool, _, told = text.partition(":")
    unknown = set(filter(None, told.split("+"))) - set(OPTIONS.get(tool, ()))
    if tool not in OPTIONS or unknown:
        raise argparse.ArgumentTypeError(f"{text} is no arm: give TOOL or TOOL:OPTION+OPTION of {OPTIONS}")
    return text


def padded(arm: str) -> bool:
    """Whether its batches are those of the bare loop."""
    return not {"bucket", "pack"} & set(arm.partition(":")[2].split("+"))


def benchmark_training(work: Work, arms: list[str], repeats: int) -> dict[str, Any]:
    """Prints a table and returns the figures; of an arm that failed, or did other work than the bare loop, why."""
    named = asdict(work) | {"network": Path(work.network).name, "data": "/".join(Path(work.data).parts[-2:])}
    turns: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as place:
        work = chosen(work, Path(place) / "records.jsonl")
        for turn in range(repeats):
            failed = {arm: turns[-1][arm] for arm in arms if turns and "failed" in turns[-1][arm]}  # not tried again
            order = arms if turn % 2 == 0 else arms[::-1]
            turns.append(failed | {arm: run_arm(arm, work) for arm in order if arm not in failed})
    first = turns[0]
    figures: dict[str, Any] = {"work": named | {"packs": work.packs}, "repeats": repeats}
    print(f"{first[arms[0]].get('device')}; {figures['work']}; {repeats} turns: median (smallest to largest)")
    reference = "bare" if "bare" in arms else arms[0]
    wrong = {arm: said for arm in arms for turn in turns if (said := objection(turn[arm], turn[reference], arm))}
    counted = {arm: summed([turn[arm] for turn in turns], work) for arm in arms if arm not in wrong}
    flops = operations(work)
    from ftlab.planning import operations_of  # seconds

    for arm in arms:
        if arm in wrong:
            figures[arm] = {"refused": wrong[arm]}
            print(f"  {arm:<11} does not count: {wrong[arm]}")
            continue
        mine = figures[arm] = counted[arm]
        if reference in counted:  # the time of a token: packs make other steps
            both = zip(counted[reference]["turns"]["tokens/s"], mine["turns"]["tokens/s"], strict=True)
            mine[f"over {reference}"] = spread([theirs / ours for theirs, ours in both])
        peak = operations_of(first[arm]["device"])
        equal = mine["tokens"] > 0.95 * work.batch_size * work.length  # the formula is of rows that are all as long
        if peak and equal:
            mine["mfu"] = spread([flops * rate / peak for rate in mine["turns"]["tokens/s"]])
        print(
            f"  {arm:<11}" + "  ".join(f"{name} {_said(value)}" for name, value in mine.items() if name not in UNSAID)
        )
    return figures


def summed(turns: list[dict[str, Any]], work: Work) -> dict[str, Any]:
    """One arm's figures over its turns: medians with the smallest and the largest; `turns` has each."""
    first = turns[0]
    steps = len(first["losses"]) - work.warm
    tokens, targets = (sum(first[name][work.warm :]) / steps for name in ("tokens", "targets"))
    each = {
        "ms": [1e3 * turn["seconds"] for turn in turns],
        "CPU ms": [1e3 * turn["cpu"] for turn in turns],
        "tokens/s": [tokens / turn["seconds"] for turn in turns],
        "targets/s": [targets / turn["seconds"] for turn in turns],
        "memory": [turn["memory"] for turn in turns],
        "first_step": [turn["first_step"] for turn in turns],
    }
    return {
        **{name: spread(values) for name, values in each.items()},
        "padding": 1 - sum(first["tokens"]) / sum(first["positions"]),
        **{"tokens": tokens, "targets": targets, "losses": first["losses"], "norm": first["norm"], "turns": each},
    }


UNSAID = {"losses", "tokens", "targets", "turns"}


def _said(value: Any) -> str:
    if not isinstance(value, tuple):
        return f"{value:.4g}"
    median, low, high = value
    return f"{median:.4g}" if low == high else f"{median:.4g} ({low:.4g} to {high:.4g})"


def objection(mine: dict[str, Any], reference: dict[str, Any], arm: str) -> str | None:
    """Why a figure does not count, or None; the reference may have failed itself."""
    if "failed" in mine:
        return mine["failed"]
    if not (math.isfinite(mine["norm"]) and mine["norm"] > 0):
        return f"the first gradient's norm is {mine['norm']}"
    if "failed" in reference:
        return "what it is held against failed"
    trained, wanted = ((sum(whose["tokens"]), sum(whose["targets"])) for whose in (mine, reference))
    if trained != wanted:
        return f"{trained[0]} tokens, {trained[1]} targets; the reference {wanted[0]}, {wanted[1]}"
    if padded(arm):
        if (mine["tokens"], mine["targets"]) != (reference["tokens"], reference["targets"]):
            return "its steps hold other records than the reference's: other tokens or targets"
        for step, (loss, other) in enumerate(zip(mine["losses"], reference["losses"], strict=True), 1):
            if not abs(loss - other) <= SAME_BATCH * other:  # NaN is neither
                return f"the loss of step {step} is {loss:.5f}, the reference's {other:.5f}"
    loss, other = mean_loss(mine), mean_loss(reference)
    if not abs(loss - other) <= SAME_RECORDS * other:
        return f"the loss of the epoch is {loss:.5f} a target, the reference's {other:.5f}"
    return None


def mean_loss(figures: dict[str, Any]) -> float:
    """Over all targets of the epoch."""
    each = zip(figures["losses"], figures["targets"], strict=True)
    return sum(loss * targets for loss, targets in each) / sum(figures["targets"])


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


def chosen(work: Work, file: Path) -> Work:
    """The work over the records that all arms train, which are written to `file`."""
    found = _arms("records", work, str(file))
    if "failed" in found:
        sys.exit(f"{work.data}: {found['failed']}")
    return replace(work, data=str(file), packs=work.packs or found["packs"])


def run_arm(arm: str, work: Work) -> dict[str, Any]:
    """One training in a process of its own: its figures, or why it `failed`; `said` holds what else it printed."""
    figures = _arms(arm, work)
    if work.profiled:
        print("\n".join(figures.get("said", ())))
    return figures


def _arms(name: str, work: Work, *more: str) -> dict[str, Any]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
    with tempfile.TemporaryDirectory() as scratch:
        environment |= {"FTLAB_CACHE": f"{scratch}/cache", "HF_DATASETS_CACHE": scratch}
        # compiled code is kept from turn to turn, as it is between a user's runs
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(Path(work.data).with_name("compiled"))
        script = Path(__file__).with_name("training_arms.py")
        command = [sys.executable, str(script), name, json.dumps(asdict(work)), *more]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=scratch)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
        return {"failed": (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1][:300]}
    *before, figures = done.stdout.splitlines()
    return json.loads(figures) | {"said": before}


def network_directory(name: str, tokenizer: Path, place: Path, words: int = 0) -> Path:
    """`name` where that is a directory; else a Llama of that shape in bfloat16 with random weights, made in `place`.

    Args:
        name: Directory, or a name of SHAPES.
        tokenizer: Directory of the tokenizer of a shape.
        place: Where shapes are made, and found again.
        words: Least vocabulary of a shape that does not say its own; by default the tokenizer's.
    """
    if Path(name).is_dir():
        return Path(name).resolve()
    directory = place / name
    if (directory / "done").exists():
        return directory
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokens = AutoTokenizer.from_pretrained(tokenizer)
    tokens.eos_token = tokens.eos_token or "<|endoftext|>"  # GPT-2's files do not say it
    shape = {"vocab_size": max(len(tokens), words), "max_position_embeddings": 8192} | SHAPES[name]
    config = LlamaConfig(**shape, bos_token_id=None, eos_token_id=tokens.eos_token_id, rope_theta=500000.0)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"), default_dtype(torch.bfloat16):
        LlamaForCausalLM(config).save_pretrained(directory)
    tokens.save_pretrained(directory)
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
