"""What a method promises of itself, judged on one training that has been watched."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from ftlab.errors import UserError
from ftlab.networks import count_parameters, fingerprint
from ftlab.testing.report import Broken, NotTried, Refused
from ftlab.testing.trial import Recorder, Run, digests

ROUNDING = 1e-5
"""Of the largest logit: what another order of the same sums in float32 may change."""
MOST_STEPS = 100
"""For methods that thaw tensors by turns."""


def identity(run: Run) -> str:
    """Before the first step the adapted network answers as the base, unless `identity_at_start` is False."""
    if not run.method.identity_at_start:
        raise NotTried("declared not to be the base at the start (identity_at_start)")
    trial = run.trial
    difference, allowed = apart(trial.logits(trial.adapted(trial.method())), trial.logits(trial.opened()))
    if not difference <= 10 * allowed:  # DoRA divides a column by its own norm
        raise Broken(
            f"before the first step a logit differs by {difference:.2g} from the base's: begin with an update of "
            "zero, or declare identity_at_start = False"
        )
    return f"a logit differs by at most {difference:.1g}"


def declared(run: Run) -> str:
    """Training changes no tensor beside the base's that `trained()` does not name, nor is the optimiser given one."""
    names = run.method.trained(run.network)
    unknown = names - {name for name, _ in run.network.named_parameters()}
    if unknown:
        raise Broken(f"trained() names {min(unknown)}, and the network has no parameter of that name")
    of_base = {id(tensor) for _, tensor, _ in run.base}
    now, tensors = digests(run.network, run.method), dict(run.network.named_parameters())
    changed = {n for n, digest in run.seen.frozen.items() if now.get(n) != digest and id(tensors.get(n)) not in of_base}
    undeclared = sorted(changed | (set(run.seen.in_optimizer) - names))
    if undeclared:
        raise Broken(
            f"{undeclared[0] or 'a tensor that is no parameter of the network'} trains and trained() does not name it: "
            "a checkpoint would not hold it"
        )
    return f"{len(names)} tensors"


def gradient(run: Run) -> str:
    """Each declared tensor gets a gradient that is not zero, at one step at least."""
    if not run.method.trains:
        raise NotTried("trains nothing")
    seen = run.seen
    names = run.method.trained(run.network) & {name for name, _ in run.network.named_parameters()}
    if not names:
        raise Broken("trained() names no parameter of the network, and trains is True")
    if names - seen.asked:  # thawed by turns, it may be
        seen = Recorder(stop_when=lambda recorder: names <= recorder.asked)
        run.trial.fit(run.trial.module(), [seen], MOST_STEPS)
    for name in sorted(names - seen.moved):
        if name not in seen.asked:
            raise Broken(f"{name} is declared in trained(), but it required no gradient in {MOST_STEPS} steps")
        raise Broken(
            f"{name} is declared in trained(), but its gradient was zero at every step: the loss does not depend on it"
        )
    return f"{len(names)} tensors"


def base(run: Run) -> str:
    """What is not declared stays as it was, to the byte: in training, and in `adapt` where the start is the base."""
    trained = run.method.trained(run.network)
    names = {id(parameter): name for name, parameter in run.network.named_parameters()}
    for original, tensor, digest in run.base:
        if names.get(id(tensor)) in trained:
            continue
        at_start = run.seen.frozen.get(names.get(id(tensor), ""), digest)
        if at_start != digest and run.method.identity_at_start:
            raise Broken(f"{original} was changed by adapt(), and the method declares identity_at_start")
        if fingerprint([("", tensor)]) != at_start:
            raise Broken(_written(original))
    now = digests(run.network, run.method)
    for name, digest in run.seen.frozen.items():
        if name.endswith(".SCB") and now.get(name) != digest:  # the scales of an int8 weight are no parameter
            raise Broken(_written(name))
    return f"{len(run.base)} tensors to the byte"


def _written(name: str) -> str:
    return f"{name} changed during training: the method writes to weights that it does not declare in trained()"


def count(run: Run, parameters: int | None = None) -> str:
    """The optimiser is given each declared tensor once; the number is the one that the author states."""
    names = run.method.trained(run.network)
    given = run.seen.in_optimizer
    if run.method.trains:
        twice = sorted({name for name in given if given.count(name) > 1})
        if twice:
            raise Broken(f"param_groups() gives {twice[0]} to the optimiser {given.count(twice[0])} times")
        left_out = sorted(names - set(given))
        if left_out:
            raise Broken(
                f"{left_out[0]} is declared in trained(), but param_groups() does not give it to the optimiser"
            )
    trained, total = count_parameters(run.network, names)
    if parameters is not None and trained != parameters:
        raise Broken(f"{trained:,} parameters are trained, and {parameters:,} were stated")
    return f"{trained:,} of {total:,} parameters"


def saved(run: Run) -> str:
    """What `save` writes, a fresh instance loads onto a fresh base: the answers are the trained network's."""
    trial, directory = run.trial, model_of(run)
    expected = trial.logits(run.network)
    unfinished = directory.with_name(f"{directory.name}-unfinished")
    unfinished.mkdir()
    run.method.save(run.network, unfinished)
    unfinished.rename(directory)
    difference, allowed = apart(trial.logits(run.network), expected)
    if not difference <= allowed:
        raise Broken("save() changed the network that it wrote: it answers otherwise than before")
    return same_answers(run, trial.logits(trial.method().load(trial.opened(), directory)))


def same_answers(run: Run, loaded: Tensor) -> str:
    """How far the logits of a network that was loaded are from the trained one's.

    Raises:
        Broken: Farther than rounding accounts for.
    """
    difference, allowed = apart(loaded, run.trial.logits(run.network))
    # a start that took a part out of the base is saved as an update of the whole: two large numbers beside a small one
    if not difference <= allowed * (1 if run.method.identity_at_start else 10):
        raise Broken(
            f"a logit of the network that load() returns differs by {difference:.2g} from the trained one: save() "
            "forgets something, or load() does not put it back"
        )
    return f"a logit differs by at most {difference:.1g}"


def merged(run: Run) -> str:
    """The merged network answers as the adapted one within `merge_tolerance`, opens again by transformers alone and
    answers the same; or `merge` refuses with a reason.

    A quantised base is compared in the full precision that its bits stand for: int8 rounds activations too, which no
    merged network does.
    """
    trial, directory, method = run.trial, model_of(run), run.method
    if not directory.is_dir():
        raise NotTried("nothing was saved")
    try:
        plain = trial.method().merge(trial.method().load(trial.opened(), directory))
    except UserError as error:
        raise Refused(str(error)) from error
    answers, expected = trial.logits(plain), _in_full_precision(run)
    difference = float((answers - expected).abs().max() / expected.abs().max())
    if not difference <= method.merge_tolerance:
        raise Broken(
            f"a logit of the merged network differs by {difference:.2g} of the largest from the adapted one, and "
            f"merge_tolerance is {method.merge_tolerance:.2g}: merge() does not add what the method computes"
        )
    place = trial.place / f"{trial.base}-merged"
    plain.save_pretrained(place)
    opened = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    again, allowed = apart(trial.logits(opened), answers)
    if not again <= allowed:
        raise Broken(
            f"the merged network, saved and opened by transformers, differs by {again:.2g} in a logit: merge() leaves "
            "something in it that save_pretrained does not keep"
        )
    return f"a logit differs by at most {difference:.1g}"


def model_of(run: Run) -> Path:
    """The directory that `saved` fills."""
    return run.trial.place / f"{run.trial.base}-model"


def _in_full_precision(run: Run) -> Tensor:
    """Logits of the trained network; of one on a quantised base, as loaded onto what its bits stand for."""
    trial = run.trial
    if trial.base == "full":
        return trial.logits(run.network)
    method = trial.method()
    plain = trial.opened().dequantize().float()
    method.quantization = None
    return trial.logits(method.load(plain, model_of(run)))


def apart(answers: Tensor, expected: Tensor) -> tuple[float, float]:
    """The largest difference of a logit, and how much of it rounding accounts for."""
    return float((answers - expected).abs().max()), ROUNDING * max(1.0, float(expected.abs().max()))
