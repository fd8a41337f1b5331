"""`ftlab export RUN DIR`: an adapter, an adapter in few bits, or a merged model, compared with the run before it says
done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from torch import nn
from transformers import AutoModelForCausalLM

from ftlab.cli.comparison import Comparison, Judge, Judgement
from ftlab.cli.experiment import Experiment
from ftlab.cli.sentences import own_parser, parse
from ftlab.console import new_console
from ftlab.errors import UserError
from ftlab.methods import adapter_bits
from ftlab.networks import DType
from ftlab.progress import Progress
from ftlab.reports.model_card import model_card
from ftlab.runs import files_under


def run(verb: str, arguments: Sequence[str]) -> int:
    """Writes the export, opens it again, compares its answers with the run's, and only then puts it in place."""
    parser = own_parser(verb, "Writes a run's model for use elsewhere, compared with the run before it says done.")
    parser.add_argument("run", type=Path, help="directory of a finished run; or an export in few bits, to widen again")
    parser.add_argument("to", type=Path, help="directory to write; it must not exist yet")
    parser.add_argument(
        "--merge",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="fold the method away: plain weights, no peft needed",
    )
    parser.add_argument(
        "--dtype", type=DType | None, help="type of the merged weights, rounded at the end (default: float32)"
    )
    parser.add_argument(
        "--adapter_bits", "--adapter-bits", type=Literal[4, 8] | None, help="store the adapter in 4 or 8 bits a value"
    )
    parser.add_argument(
        "--records", type=int, default=64, help="validation records on which export and run are scored; 0 for none"
    )
    parser.add_argument(
        "--tolerance",
        type=float | None,
        help="largest difference that is accepted, of a logit as a share of the largest and of the loss as a share of "
        "itself; by default what the method states, and any where rounding is asked for",
    )
    parser.add_argument("--license", type=str | None, help="for the model card; by default the base's, where it says")
    parser.add_argument("--json", action="store_true", help="print sizes and the comparison as JSON, for programs")
    options = parse(parser, arguments)
    _must_make_sense(options)
    if adapter_bits.is_quantised(options.run):
        return _widen(options)
    experiment = Experiment.of_run(options.run)
    held = _held(experiment)
    judge = Judge(experiment, options.records)
    times = 3 if _in_few_bits(experiment) else 2
    with Progress(f"opening {options.run}", "records", times * judge.records or None) as bar:
        comparison = _exported(experiment, options, judge, bar, held)
    if options.json:
        print(json.dumps(_sizes(options, experiment.run.model) | comparison.plain(), indent=2))
        return 0
    print(f"{options.to}: {_size(options.to)}, a logit differs by at most {comparison.logit:.2g} of the largest")
    if options.adapter_bits:
        print(f"in {options.adapter_bits} bits a value; {experiment.run.model} is {_size(experiment.run.model)}")
    new_console().print(comparison.table())
    return 0


def _exported(experiment: Experiment, options: Namespace, judge: Judge, bar: Progress, held: str) -> Comparison:
    """Writes the export and puts it in place, if it answers as the run does."""
    trained = experiment.open_trained(judge.device)
    bar.say(f"scoring {options.run}")
    expected = judge(trained, bar)
    del trained  # no two networks are in memory at a time
    with _unfinished(options.to) as unfinished:
        bar.say(f"writing {options.to}")
        _write(experiment, options, unfinished, judge.device)
        bar.say(f"scoring {options.to}")
        exported = judge(_opened(experiment, options, unfinished, judge.device), bar)
        comparison = Comparison(expected, exported, _in_full_precision(experiment, judge, bar))
        _must_be_the_same(comparison, experiment, options)
        experiment.model.pretrained.tokenizer().save_pretrained(unfinished)
        card = model_card(
            experiment.run,
            experiment.model.pretrained,
            unfinished,
            held=held,
            checked=comparison.rows(),
            license=options.license,
        )
        (unfinished / "README.md").write_text(card, encoding="utf-8")
    return comparison


def _must_make_sense(options: Namespace) -> None:
    if options.to.exists():
        raise UserError(f"{options.to} exists: give a new directory")
    if options.records < 0:
        raise UserError(f"--records is {options.records}: give a number of validation records, or 0 for none")
    if options.merge and options.adapter_bits:
        raise UserError("--merge and --adapter-bits are given: a merged model has no adapter left; give one of the two")
    if options.dtype and not options.merge:
        raise UserError("--dtype is of merged weights: give --merge too, or --adapter-bits for an adapter")


def _widen(options: Namespace) -> int:
    """An adapter in few bits as a plain one."""
    if options.merge or options.adapter_bits:
        raise UserError(f"{options.run} is an export in few bits: it can be widened; export the run for anything else")
    with _unfinished(options.to) as unfinished:
        unfinished.rmdir()
        adapter_bits.dequantise(options.run, unfinished)
    if options.json:
        print(json.dumps(_sizes(options, options.run), indent=2))
        return 0
    print(f"{options.to}: {_size(options.to)}, in peft's layout; {options.run} is {_size(options.run)}")
    return 0


@contextmanager
def _unfinished(to: Path) -> Iterator[Path]:
    """A directory that becomes `to` where nothing is raised, and is gone otherwise."""
    place = to.with_name(f".{to.name}.unfinished")
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir(parents=True)
        yield place
        place.replace(to)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _write(experiment: Experiment, options: Namespace, directory: Path, device: torch.device) -> None:
    """Writes the export into `directory`, an empty one."""
    if options.merge:
        quantised = experiment.model.method.quantization  # a GPU rounds otherwise than a CPU
        merged = experiment.model.method.merge(experiment.open_trained(device if quantised else "cpu"))
        merged.to(getattr(torch, options.dtype or "float32")).save_pretrained(directory)
        return
    directory.rmdir()
    if options.adapter_bits:
        adapter_bits.quantise(experiment.run.model, directory, options.adapter_bits)
    else:
        shutil.copytree(experiment.run.model, directory)


def _opened(experiment: Experiment, options: Namespace, directory: Path, device: torch.device) -> nn.Module:
    """The export as others open it, in float32."""
    if options.merge:
        network: nn.Module = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, trust_remote_code=experiment.model.pretrained.trust_remote_code
        )
        return network.to(device)
    return experiment.open_saved(directory, device)


def _held(experiment: Experiment) -> str:
    """How the base was held in training."""
    pretrained = experiment.model.pretrained
    kind = pretrained.base_kind(experiment.model.method.quantization)
    return pretrained.dtype if kind == "full" else kind


def _in_few_bits(experiment: Experiment) -> bool:
    """Whether the base was put into few bits for training, and the method also stands on one that is not."""
    method = experiment.model.method
    return bool(method.quantization) and "full" in method.bases


def _in_full_precision(experiment: Experiment, judge: Judge, bar: Progress) -> Judgement | None:
    """What the trained weights answer on the base that has not been put into few bits, where the method does that."""
    if not _in_few_bits(experiment):
        return None
    method = experiment.model.method
    quantization, method.quantization = method.quantization, None
    try:
        bar.say("scoring on the base in full precision")
        return judge(experiment.open_saved(experiment.run.model, judge.device), bar)
    finally:
        method.quantization = quantization


def _must_be_the_same(comparison: Comparison, experiment: Experiment, options: Namespace) -> None:
    rounded = options.adapter_bits or options.dtype not in (None, "float32")
    tolerance = options.tolerance
    if tolerance is None:
        tolerance = float("inf") if rounded else experiment.model.method.merge_tolerance
    for what, share in (
        (f"a logit differs by {comparison.logit:.2g} of the largest", comparison.logit),
        (f"the loss differs by {comparison.loss:.2g} of itself", comparison.loss),
    ):
        if not share <= tolerance:
            raise UserError(
                f"the export answers otherwise than {options.run}: {what}, more than the tolerance of {tolerance:.2g}; "
                "nothing was written (--tolerance accepts more)"
            )


def _sizes(options: Namespace, model: Path) -> dict[str, Any]:
    """What was exported and where to, in bytes, for programs."""
    return {
        "run": str(options.run),
        "to": str(options.to),
        "bytes": _bytes(options.to),
        "model_bytes": _bytes(model),
    }


def _size(directory: Path) -> str:
    return f"{_bytes(directory) / 1e6:.3g} MB"


def _bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in files_under(directory))
