"""`ftlab export RUN DIR`: the adapter or the merged model, checked against the run before it says done."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ftlab.cli.experiment import Experiment
from ftlab.cli.sentences import own_parser, parse
from ftlab.errors import UserError


def run(verb: str, arguments: Sequence[str]) -> int:
    """Writes the export, opens it again, compares its logits with the run's, and only then puts it in place."""
    parser = own_parser(verb, "Writes a run's model for use elsewhere.")
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("to", type=Path, help="directory to write; it must not exist yet")
    parser.add_argument("--merge", type=bool, default=False, help="fold the method away: plain weights, no peft needed")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest difference of a logit that is accepted")
    options = parse(parser, arguments)
    if options.to.exists():
        raise UserError(f"{options.to} exists: give a new directory")
    experiment = Experiment.of_run(options.run)
    _in_full_precision(experiment)
    trained = experiment.open_trained()
    ids = _some_tokens(trained)
    expected = _logits(trained, ids)
    unfinished = options.to.with_name(f".{options.to.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        exported = _merged(experiment, trained, unfinished) if options.merge else _adapter(experiment, unfinished)
        difference = (_logits(exported, ids) - expected).abs().max().item()
        if not difference <= options.tolerance:
            raise UserError(
                f"the export answers otherwise than {options.run}: a logit differs by {difference:.2g}, more than the "
                f"tolerance of {options.tolerance:.2g}; nothing was written (--tolerance accepts more)"
            )
        experiment.model.pretrained.tokenizer().save_pretrained(unfinished)
        unfinished.replace(options.to)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    size = sum(file.stat().st_size for file in options.to.iterdir())
    print(f"{options.to}: {size / 1e6:.1f} MB, largest difference of a logit {difference:.2g}")
    return 0


def _in_full_precision(experiment: Experiment) -> None:
    """Opens and multiplies in float32: what is compared is the weights, not the rounding of sums and products."""
    method = experiment.model.method
    experiment.model.pretrained = dataclasses.replace(experiment.model.pretrained, dtype="float32")
    if method.quantization:
        method.quantization = dataclasses.replace(method.quantization, compute_dtype="float32")


def _some_tokens(network: nn.Module) -> Tensor:
    """Token ids (4, 32), drawn from the whole vocabulary: no data is needed to compare two networks."""
    vocabulary = network.get_input_embeddings().num_embeddings  # type: ignore[operator]
    return torch.randint(vocabulary, (4, 32), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def _logits(network: nn.Module, ids: Tensor) -> Tensor:
    return network.eval()(input_ids=ids).logits.float()


def _adapter(experiment: Experiment, directory: Path) -> nn.Module:
    shutil.copytree(experiment.run.model, directory)
    return experiment.open_saved(directory)


def _merged(experiment: Experiment, trained: nn.Module, directory: Path) -> PreTrainedModel:
    merged = experiment.model.method.merge(trained)
    merged.save_pretrained(directory)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=merged.dtype)
