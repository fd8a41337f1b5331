"""The bench: what trains, prepares, packs and checkpoints, in one run, held against the goals of bench_targets.py.

    python scripts/benchmark.py suite short --output DIR                    # on what ships with ftlab
    python scripts/benchmark.py suite short --output DIR --data DATA        # on sets in DATA
    python scripts/benchmark.py suite long --output DIR --data DATA --only words data

`short` is for 15 minutes of two cores, `long` takes hours. DATA holds t0_mix/train.jsonl and e2e/train.jsonl; a
tokenizer of 32,000 words or more, and a small network with a context of 512, are found beside it (../tokenizers/gpt2,
../models/stories260K) or named. Without them a vocabulary of 32,768 goes with the tokenizer that ships, and goals of
skewed rows are not judged. DIR gets bench_FORM.json, after each part, and bench_FORM.md. With `--only`, the other parts
stay as an earlier run left them; each has its own command, date and commit. What a GPU tells is scripts/gpu.sh's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bench_page
import checkpoint_cost
import data_cost
import head_cost
import packed_against_padded
import start_cost
import training_cost
from bench_targets import best, judged
from benching import ASSETS, commit, machine

DEMO = ASSETS / "network", ASSETS / "data" / "train.jsonl"
WORDS = 32_768
"""Of a shape, where the tokenizer that ships has fewer."""
PROFILED = 12
"""Steps of a training with `ftlab fit --profile`, which looks at four after the first four."""


@dataclass(frozen=True)
class World:
    """What there is to bench on.

    Args:
        place: Where networks are made.
        data: Directory with t0_mix and e2e.
        tokenizer: Directory of a tokenizer of 32,000 words or more.
        network: Directory of a tiny pretrained network.
    """

    place: Path
    data: Path | None = None
    tokenizer: Path | None = None
    network: Path | None = None


@dataclass(frozen=True)
class Case:
    """Arms that train alike.

    Args:
        says: What is trained, for people.
        network: demo, stories, or a shape of training_cost.
        rows: demo, or a set in World.data.
        arms: Of training_cost.
        options: Of its Work.
    """

    says: str
    network: str
    rows: str
    arms: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """Which parts run, and how often.

    Args:
        turns: Of trainings.
        cases: By name.
        other: Turns of the other parts.
        heads: Cases of head_cost.
    """

    turns: int
    cases: dict[str, Case]
    other: dict[str, int]
    heads: Sequence[head_cost.Case] = head_cost.CASES


EQUAL = ("bare", "ftlab", "hf", "trl")
TINY = Case(
    "the network that ships, LoRA, a row a step",
    *("demo", "demo", ("bare", "ftlab")),
    {"length": 256, "batch_size": 1, "warm": 10, "steps": 150},
)
FORMS = {
    "short": Form(
        turns=5,
        cases={
            "demo": Case(
                "the network that ships, LoRA, 16 rows a step",
                *("demo", "demo", EQUAL),
                {"length": 256, "batch_size": 16, "warm": 2, "steps": 11},
            ),
            "tiny": TINY,
            "words": Case(
                "a Llama of width 256 with random weights, LoRA, 8 rows a step",
                *("llama-256", "t0_mix", ("hf", "trl:default", "ftlab:pack", "trl:pack")),
                {"length": 768, "batch_size": 8, "warm": 1, "steps": 3},
            ),
        },
        other={"packing": 1, "checkpoints": 1, "head": 1, "data": 1},
        heads=head_cost.CASES[:1],
    ),
    "long": Form(
        turns=15,
        cases={
            "demo": Case(
                "the network that ships, LoRA, 16 rows a step",
                *("demo", "demo", (*EQUAL, "ftlab:bucket")),
                {"length": 256, "batch_size": 16, "warm": 4, "steps": 24},
            ),
            "full": Case(
                "the network that ships, full fine-tuning, 16 rows a step",
                *("demo", "demo", EQUAL),
                {"method": "full", "length": 256, "batch_size": 16, "warm": 4, "steps": 24},
            ),
            "tiny": TINY,
            "stories": Case(
                "stories260K, LoRA, 16 rows of E2E a step",
                *("stories", "e2e", (*EQUAL, "ftlab:pack", "trl:pack")),
                {"length": 512, "batch_size": 16, "warm": 4, "steps": 24},
            ),
            "words": Case(
                "a Llama of width 256 with random weights, LoRA, 8 rows a step",
                *("llama-256", "t0_mix", ("hf", "trl:default", "ftlab:bucket", "ftlab:pack", "trl:pack")),
                {"length": 1024, "batch_size": 8, "warm": 1, "steps": 4},
            ),
            "wide": Case(
                "a Llama of width 512 with random weights (49 M), LoRA, 4 rows a step",
                *("llama-512", "t0_mix", (*EQUAL, "ftlab:compile")),
                {"length": 1024, "batch_size": 4, "warm": 1, "steps": 4},
            ),
        },
        other={"packing": 1, "checkpoints": 1, "head": 5, "data": 15, "start": 15},
    ),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("form", choices=FORMS)
    parser.add_argument("--output", type=Path, help="directory for bench_FORM.json and bench_FORM.md")
    parser.add_argument("--data", type=Path, help="directory with t0_mix/train.jsonl and e2e/train.jsonl")
    parser.add_argument("--tokenizer", type=Path, help="directory of a tokenizer of 32,000 words or more")
    parser.add_argument("--network", type=Path, help="directory of a tiny pretrained network")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts to run; the others stay as they were")
    parser.add_argument("--turns", type=int, help="of trainings, other than the form's")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the form's parts and leaves figures and page; `refused` are trainings that do not count."""
    form = FORMS[args.form]
    if args.turns:
        form = replace(form, turns=args.turns)
    unknown = set(args.only or ()) - {*form.cases, *form.other}
    if unknown:
        sys.exit(f"--only {sorted(unknown)}: the {args.form} form has {[*form.cases, *form.other]}")
    with tempfile.TemporaryDirectory() as place:
        record = benched(args.form, form, world(args, Path(place)), args.only, args.output)
    print(bench_page.page(record))
    return {
        f"{name}: {arm}": told
        for name, part in record["parts"].items()
        for arm, told in part["figures"].items()
        if isinstance(told, dict) and "refused" in told
    }


def world(args: argparse.Namespace, place: Path) -> World:
    """What was named, or lies beside the data."""
    beside = {"tokenizer": Path("tokenizers/gpt2"), "network": Path("models/stories260K")}
    found = {}
    for name, path in beside.items():
        guess = args.data and args.data.resolve().parent / path
        found[name] = getattr(args, name) or (guess if guess and guess.is_dir() else None)
    return World(place, args.data, **found)


def benched(name: str, form: Form, world: World, only: Sequence[str] | None, output: Path | None) -> dict[str, Any]:
    """The record of a form: what is in `output`, with the parts that are run now."""
    file = output and output / f"bench_{name}.json"
    record: dict[str, Any] = {"form": name, "machine": machine(), "parts": {}}
    if file and only and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["machine"] != record["machine"]:
            sys.exit(f"{file.name} is of another machine, other threads or versions: run the form without --only")
        record["parts"] = before["parts"]
    for part in (*form.cases, *form.other):
        if only and part not in only:
            continue
        print(f"\n== {part}", flush=True)
        began = time.monotonic()
        if part in form.cases:
            told = {"kind": "training", "says": form.cases[part].says}
            figures = trained(form.cases[part], world, form.turns)
        else:
            told = {"kind": part}
            figures = OTHERS[part](form, world)
        if figures is None:
            print("left out: it takes BENCH_DATA")
            continue
        seconds = time.monotonic() - began
        print(f"-- {part}: {seconds:.0f} s", flush=True)
        told |= {"command": _command(), "commit": commit(), "date": time.strftime("%Y-%m-%d")}
        record["parts"][part] = told | {"seconds": round(seconds), "figures": figures}
        if file:
            order = [*form.cases, *form.other]
            record["parts"] = dict(sorted(record["parts"].items(), key=lambda item: order.index(item[0])))
            file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            file.with_suffix(".md").write_text(bench_page.page(record), encoding="utf-8")
    return record


def trained(case: Case, world: World, turns: int) -> dict[str, Any] | None:
    """Figures of a training case, with the profile of ftlab's arm where a goal is missed; None where its network or
    rows are not there."""
    work = work_of(case, world)
    if work is None:
        return None
    figures = training_cost.benchmark_training(work, list(case.arms), turns)
    config = json.loads((Path(work.network) / "config.json").read_text(encoding="utf-8"))
    figures["work"] |= {"vocabulary": config["vocab_size"], "skewed": world.data is not None and case.rows == "t0_mix"}
    missed = any(target.met is False for target in judged({"": {"kind": "training", "figures": figures}}))
    if missed and (arm := "ftlab" if "ftlab" in case.arms else best(figures)):
        figures["profile"] = profile(work, arm)
    return figures


def profile(work: training_cost.Work, arm: str) -> list[str]:
    """Where the steps of an arm of ftlab go: the lines of `ftlab fit --profile`."""
    with tempfile.TemporaryDirectory() as place:
        longer = training_cost.chosen(replace(work, steps=max(work.steps, PROFILED)), Path(place) / "records.jsonl")
        told = training_cost.run_arm(f"{arm}{'+' if ':' in arm else ':'}profile", longer)
    lines = told.get("said", [])
    first = next((number for number, line in enumerate(lines) if line.startswith("a step of ")), len(lines))
    return [
        arm,
        *(line for line in lines[first:] if line.startswith(("a step of ", "  ")) and "trace.json" not in line),
    ]


def work_of(case: Case, world: World) -> training_cost.Work | None:
    """The work of a case, for which networks of a shape are made; None where what it takes is not there."""
    rows = world.data / case.rows / "train.jsonl" if world.data and case.rows != "demo" else DEMO[1]
    if case.network == "stories":
        if not (world.data and world.network):
            return None
        network = world.network
    elif case.network == "demo":
        network = DEMO[0]
    else:
        network = made(case.network, world)
    return training_cost.Work(str(network.resolve()), str(rows.resolve()), **case.options)


def made(shape: str, world: World) -> Path:
    """The directory of a network of a shape, with its tokenizer, which then has a stop token if it had none."""
    return training_cost.network_directory(shape, world.tokenizer or DEMO[0], world.place, WORDS)


def _data(form: Form, world: World) -> dict[str, Any]:
    rows = world.data / "t0_mix" / "train.jsonl" if world.data else DEMO[1]
    tokenizer = made("llama-256", world) if world.tokenizer else DEMO[0]
    return data_cost.benchmark_data([rows], tokenizer, form.other["data"])


def _packing(form: Form, world: World) -> dict[str, Any]:
    if world.data and world.network:
        return packed_against_padded.benchmark_packing(world.network, world.data / "e2e" / "train.jsonl")
    return packed_against_padded.benchmark_packing(*DEMO)


OTHERS: dict[str, Callable[[Form, World], dict[str, Any]]] = {
    "data": _data,
    "packing": _packing,
    "head": lambda form, _: head_cost.benchmark_head(form.other["head"], ("all logits", "ftlab"), form.heads),
    "checkpoints": lambda *_: checkpoint_cost.adapter_bytes(),
    "start": lambda form, _: start_cost.benchmark_start(form.other["start"], None),
}


def _command() -> str:
    """As it was given, with the names of directories for their paths."""
    words, named = ["python scripts/benchmark.py"], ""
    for word in sys.argv[1:]:
        words.append(f"${named.upper()}" if named in ("data", "tokenizer", "network", "output") else word)
        named = word.removeprefix("--") if word.startswith("--") else ""
    return " ".join(words)
