"""`ftlab plan`: what an experiment takes before it runs, on a machine that need not have a GPU or the weights."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from rich.table import Table

from ftlab.cli import VERBS
from ftlab.cli.planned import device_of_this_machine, processes_of, step_of
from ftlab.cli.unopened import Unopened
from ftlab.console import new_console
from ftlab.data.layout import padding_waste
from ftlab.data.training import limited
from ftlab.errors import UserError
from ftlab.modules.activations import WAYS, GradientCheckpointing
from ftlab.modules.refusals import refuse_base
from ftlab.networks import base_kind
from ftlab.planning import DEVICES, EFFICIENCY, PARTS, Device, Plan, device_named, plan, shape_of, ways_on
from ftlab.progress import Progress

_DESCRIPTION = f"""{VERBS["plan"]}.

    ftlab plan -c FILE … [options below, and those of ftlab fit]
 Rows are as long as data.max_length says, and every token is learnt: what is found
is the most that a step takes. Ends with 1 where one configuration does not fit."""


@dataclass(frozen=True)
class Choice:
    """A cell of the table.

    Args:
        method: Name of a file in experiments/method/, or its path; None is the experiment's own.
        rows: Of a micro-batch.
        length: Tokens of a row.
        checkpointing: What is computed again.
    """

    method: str | None
    rows: int | None
    length: int | None
    checkpointing: GradientCheckpointing | None


def run(verb: str, arguments: Sequence[str]) -> int:
    """Plans one configuration, or a table of them."""
    options, rest = _options(verb, arguments)
    if "--help" in rest or "-h" in rest:
        _parser(verb).print_help()
        return 0
    if not rest:
        raise UserError("ftlab plan needs an experiment: give -c FILE, as to ftlab fit")
    device = device_named(options.device) if options.device else device_of_this_machine()
    choices = [
        Choice(*chosen)
        for chosen in itertools.product(options.methods, options.batches, options.lengths, options.checkpointing)
    ]
    if len(choices) == 1:
        return _one(choices[0], rest, device, options.json)
    cells: list[tuple[Choice, Plan]] = []
    refused: list[UserError] = []
    with Progress("planning", "plans", len(choices)) as bar:
        for choice in choices:
            try:
                _, found = _planned(choice, rest, device)
            except UserError as error:
                refused.append(error)
            else:
                cells.append((choice, found))
            bar.advance()
    if not cells:
        raise refused[0]
    if options.json:
        _write(options.json, [figures(choice, found) for choice, found in cells])
    if options.json != _PRINTED:
        new_console(width=None if sys.stdout.isatty() else _WIDE).print(_table(cells, device))
    for said in dict.fromkeys(map(str, refused)):
        print(f"ftlab: not in the table: {said}", file=sys.stderr)
    return 1 if refused else 0


def _one(choice: Choice, rest: Sequence[str], device: Device, json_file: Path | None) -> int:
    experiment, found = _planned(choice, rest, device)
    if json_file:
        _write(json_file, [figures(choice, found)])
    if json_file != _PRINTED:
        _tell(experiment, found)
    if found.fits:
        return 0
    print(f"ftlab: {does_not_fit(found, experiment.model.compiled)}", file=sys.stderr)
    return 1


def _planned(choice: Choice, rest: Sequence[str], device: Device) -> tuple[Unopened, Plan]:
    said = [] if choice.checkpointing is None else _NOT_AUTO
    experiment = Unopened([*_with_method(rest, choice.method), *said])
    method, network = experiment.model.method, experiment.model.pretrained
    kind = method.quantization.kind if method.quantization else base_kind(shape_of(network))
    refuse_base(method, kind, network.path)
    step = step_of(experiment, device.is_gpu, choice.length, choice.rows)
    if choice.checkpointing is not None:
        step = replace(step, checkpointing=choice.checkpointing)
    if step.checkpointing not in ways_on(device.is_gpu):
        raise UserError(f"{device.name} has no memory beside the host's: offloaded is for a GPU (--device)")
    if step.checkpointing == "selective" and experiment.model.compiled:
        raise UserError("selective is not for blocks that are compiled (model.compile)")
    with redirect_stderr(StringIO()):  # libraries' advice on training
        return experiment, plan(step, device, processes_of(experiment))


def _with_method(words: Sequence[str], name: str | None) -> list[str]:
    """The arguments with the method's file after all others, and before what is said on the command line."""
    if name is None:
        return list(words)
    path = Path(name) if Path(name).suffix else Path("experiments") / "method" / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"methods: there is no {path}: give names of files in experiments/method, or their paths")
    last = max(place for place, word in enumerate(words) if word in ("-c", "--config")) + 2
    return [*words[:last], "-c", str(path), *words[last:]]


# ---------------------------------------------------------------- one configuration


def _tell(experiment: Unopened, found: Plan) -> None:
    rehearsal, batch, device = found.rehearsal, found.step.batch, found.device
    method, network = type(found.step.method).__name__, found.step.network
    checkpointing = f", {_AGAIN[found.step.checkpointing]}" if found.step.checkpointing else ""
    print(
        f"{method} of {network.path}: {_count(rehearsal.parameters)} parameters, {_count(rehearsal.trained)} trained "
        f"({rehearsal.trained / rehearsal.parameters:.2%}), {experiment.config.trainer.precision}{checkpointing}"
    )
    over = found.processes
    several = f", of {over.count} by {over.strategy}" if over.count > 1 else ""
    print(f"a micro-batch of {batch.rows} x {batch.length:,} tokens on {device.name}{several}:")
    for part in PARTS:
        print(f"  {_WORDS[part]:<36}{_gb(rehearsal.peak[part])}")
    if beside := over.beside(rehearsal):
        print(f"  {'for being several':<36}{_gb(beside)}")
    print(f"  {'together, at the peak':<36}{_gb(found.memory)}  of {_gb(device.usable).strip()} usable")
    print(f"the largest micro-batch that fits: {found.largest} rows")
    print(_time(experiment, found))
    print(
        f"a checkpoint: {_gb(found.checkpoint).strip()} with the optimiser's state; what is trained: "
        f"{_gb(rehearsal.trained_bytes).strip()}"
    )


def does_not_fit(found: Plan, compiled: bool = False) -> str:
    """Says what would fit instead."""
    step, device = found.step, found.device
    ways = []
    if found.largest:
        ways.append(f"micro-batches of {found.largest} rows (data.batch_size, trainer.accumulate_grad_batches)")
    ways += [told for told, _ in other_ways(found, compiled)]
    if not ways:
        ways.append("a lower data.max_length, a base in fewer bits, or more devices")
    return (
        f"{step.batch.rows} rows of {step.batch.length:,} tokens take {_gb(found.memory).strip()}, and "
        f"{device.name} has {_gb(device.usable).strip()}: take {' or '.join(ways)}"
    )


def other_ways(found: Plan, compiled: bool = False) -> list[tuple[str, bool]]:
    """Ways of computing more again, up to the first with which the step fits, and whether it does; each says how many
    rows it leaves room for. Selective checkpointing is not for blocks that are compiled."""
    step, told = found.step, []
    order = [way for way in ways_on(step.on_gpu) if way == step.checkpointing or not (compiled and way == "selective")]
    for way in order[order.index(step.checkpointing) + 1 :]:
        again = plan(replace(step, checkpointing=way, counted=False), found.device, found.processes)
        if again.largest:
            told.append((f"model.gradient_checkpointing {_KEYS[way]}, with up to {again.largest} rows", again.fits))
        if again.fits:
            break
    return told


def _time(experiment: Unopened, found: Plan) -> str:
    operations = f"{found.rehearsal.operations / 1e12:,.2f} TFLOP a micro-batch"
    if found.seconds is None or found.tokens_a_second is None:
        if found.device.operations is None and found.device not in DEVICES:
            return f"time: {operations}; how fast {found.device.name} is is not known: give --device with a name"
        precision = found.step.precision.precision
        return f"time: {operations}; how fast {found.device.name} is in {precision} is not known"
    told = (
        f"time: {operations}, {found.seconds:.3g} s, {found.tokens_a_second:,.0f} tokens/s "
        f"(at {100 * EFFICIENCY:.0f} % of its peak)"
    )
    steps, share = _steps(experiment, found)
    if steps is None:
        return f"{told}; that of the whole training is not known"
    seconds = steps * found.processes.accumulate * found.seconds * share
    return f"{told}; {steps:,} steps: {_duration(seconds)}"


def _steps(experiment: Unopened, found: Plan) -> tuple[int | None, float]:
    """Optimiser steps of the training, and what its batches are of those planned for, at the mean."""
    ends, data = experiment.config.trainer, experiment.datamodule
    known = ends.max_steps if ends.max_steps != -1 else None
    if data.streaming or not all(Path(source.path).exists() for source in data.sources):
        return known, 1.0
    if found.step.batch != step_of(experiment, found.step.on_gpu).batch:
        return None, 1.0  # of another batch than the experiment's
    try:
        data.setup("fit")
        batches = limited(data.train_batches_per_epoch(found.processes.count), ends.limit_train_batches)
        lengths, kind = data.rows("train").lengths, data.layout.kind
    except UserError:  # said by ftlab prepare, and by ftlab fit
        return None, 1.0
    steps = known
    if ends.max_epochs not in (None, -1):
        of_all = ends.max_epochs * math.ceil(batches / found.processes.accumulate)
        steps = of_all if known is None else min(known, of_all)
    if kind == "pack" or data.batch_tokens is not None:  # batches are full
        return steps, 1.0
    padding = padding_waste(lengths, kind, data.batch_size, None, int(lengths.max()))
    return steps, min(1.0, float(lengths.mean()) / (1 - padding) / found.step.batch.length)


_WORDS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "the optimiser's state",
    "activations": "activations for the backward pass",
    "head": "logits, and their gradient",
    "temporary": "temporary, and computed again",
}


_PRINTED = Path("-")
"""In the place of a file: standard output."""
_WIDE = 120
"""Columns of a table that goes into a file."""

_NOT_AUTO = ("--model.gradient_checkpointing", "false", "--data.micro_batch_memory", "null")
"""What an experiment may leave to the device."""
_KEYS: dict[GradientCheckpointing, str] = {way: str(way).lower() for way in WAYS}
_AGAIN: dict[GradientCheckpointing, str] = {
    "selective": "activations but for products computed again",
    True: "activations computed again",
    "offloaded": "activations computed again, from inputs in the host's memory",
}

# ---------------------------------------------------------------- a table


def _table(cells: Sequence[tuple[Choice, Plan]], device: Device) -> Table:
    table = Table(title=f"{device.name}, {_gb(device.usable).strip()} usable", title_justify="left")
    for name in ("method", "rows", "tokens", "computed again", "peak", "fits", "largest", "tokens/s", "checkpoint"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for choice, found in cells:
        rate = f"{found.tokens_a_second:,.0f}" if found.tokens_a_second is not None else ""
        table.add_row(
            choice.method or type(found.step.method).__name__,
            str(found.step.batch.rows),
            f"{found.step.batch.length:,}",
            _KEYS[found.step.checkpointing],
            _gb(found.memory).strip(),
            "yes" if found.fits else "no",
            str(found.largest),
            rate,
            _gb(found.checkpoint).strip(),
        )
    return table


def figures(choice: Choice, found: Plan) -> dict[str, Any]:
    """All of a plan, in bytes and seconds."""
    step = found.step
    return {
        "method": choice.method or type(step.method).__name__,
        "network": step.network.path,
        "rows": step.batch.rows,
        "length": step.batch.length,
        "checkpointing": step.checkpointing,
        "device": found.device.name,
        "usable": found.device.usable,
        "parts": found.rehearsal.peak,
        "peak": found.memory,
        "fits": found.fits,
        "largest": found.largest,
        "operations": found.rehearsal.operations,
        "seconds": found.seconds,
        "tokens_per_second": found.tokens_a_second,
        "parameters": found.rehearsal.parameters,
        "trained": found.rehearsal.trained,
        "checkpoint": found.checkpoint,
    }


def _write(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2) + "\n"
    if path == _PRINTED:
        print(text, end="")
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"json: {path} cannot be written ({error.strerror}): name another file") from error


# ---------------------------------------------------------------- options and units


def _options(verb: str, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    words = ["--help" if word == "-h" else word for word in arguments]
    try:
        return _parser(verb).parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UserError(f"ftlab plan: {error}") from error


def _parser(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        f"ftlab {verb}",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
        add_help=False,
    )
    parser.add_argument("--device", help="such as 'RTX 4090', or '24 GB'; by default what this machine has")
    several = "several with commas between make a table"
    parser.add_argument("--methods", type=_words, default=[None], help=f"files of experiments/method; {several}")
    parser.add_argument("--batches", type=_numbers, default=[None], help=f"rows of a micro-batch; {several}")
    parser.add_argument("--lengths", type=_numbers, default=[None], help=f"tokens of a row; {several}")
    parser.add_argument(
        "--checkpointing",
        type=_ways,
        default=[None],
        help=f"what is computed again: {', '.join(_KEYS.values())}; all four; or several with commas between",
    )
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=_PRINTED,
        metavar="FILE",
        help="a file for all figures, in bytes and seconds; without one they are printed, and nothing else",
    )
    return parser


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _ways(text: str) -> list[GradientCheckpointing]:
    by_key = {key: way for way, key in _KEYS.items()}
    words = list(by_key) if text == "all" else _words(text)
    if not words or not by_key.keys() >= set(words):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(by_key)}, and not all")
    return [by_key[word] for word in words]


def _numbers(text: str) -> list[int]:
    words = _words(text)
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers from 1 on")
    return [int(word) for word in words]


def _gb(size: float) -> str:
    return f"{size / 1e9:8.2f} GB" if abs(size) >= 1e7 else f"{size / 1e6:8.2f} MB"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"about {hours} h {minutes} min" if hours else f"about {max(1, minutes)} min"
