"""All checks of a method, one after another, on every base that it declares."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args, get_type_hints

from ftlab.errors import UserError, one_line
from ftlab.methods import Method
from ftlab.networks import Network, Quantization
from ftlab.testing import processes as elsewhere
from ftlab.testing import promises, trainings
from ftlab.testing.report import Broken, NotTried, Outcome, Refused, Report
from ftlab.testing.trial import ASSETS, Run, Trial

Check = Callable[[Run], str]
MADE = frozenset({"full", *get_args(get_type_hints(Quantization)["kind"])})
"""Bases that any network can be opened in; the others are what a checkpoint already is."""

CHECKS: dict[str, Check] = {
    "identity": promises.identity,
    "declared": promises.declared,
    "gradient": promises.gradient,
    "base": promises.base,
    "count": promises.count,
    "load": promises.saved,
    "merge": promises.merged,
    "resume": trainings.resumed,
    "checkpointing": trainings.checkpointed,
    "bf16-mixed": trainings.in_bf16,
    "packing": trainings.packed,
    "instances": trainings.two_instances,
}
IN_PROCESSES: dict[str, Check] = {
    "fresh process": elsewhere.fresh_process,
    "two devices": elsewhere.two_devices,
}


def check_method(
    method: Method | Callable[[], Method],
    network: Network | None = None,
    *,
    bases: Iterable[str] | None = None,
    steps: int = 6,
    parameters: int | None = None,
    processes: bool = False,
) -> Report:
    """Tries on a small network everything that ftlab relies on of a method.

    Args:
        method: The method, which is copied before it is used, or what makes one: a class without arguments, a function.
        network: The network to try it on; by default the one that ships with ftlab.
        bases: The bases to try, "full" and kinds of `Quantization`; by default all of these that the method declares.
        steps: Optimiser steps of a training: as many as it takes until the method has done all that it does.
        parameters: How many parameters it should train, where that is to be checked.
        processes: Also open the saved model in a fresh process, and train on two devices: half a minute more.

    Raises:
        Broken: The method does not keep a promise; a line says which, for each.
        UserError: It declares no such base.
    """
    report = examine(method, network, bases=bases, steps=steps, parameters=parameters, processes=processes)
    report.raise_failures()
    return report


def examine(
    method: Method | Callable[[], Method],
    network: Network | None = None,
    *,
    bases: Iterable[str] | None = None,
    steps: int = 6,
    parameters: int | None = None,
    processes: bool = False,
) -> Report:
    """The same, with failures in the report and not raised."""
    make = method if callable(method) else partial(copy.deepcopy, method)
    made = make()
    named = type(made).__name__
    wanted = _bases(made) if bases is None else list(bases)
    for base in wanted:
        if base not in made.bases & MADE:
            raise UserError(f"{named} declares the bases {', '.join(_bases(made))}, and {base} is none of them")
    checks = CHECKS | (IN_PROCESSES if processes else {})
    if parameters is not None:
        checks["count"] = partial(promises.count, parameters=parameters)
    network = replace(network or Network(str(ASSETS / "network")), dtype="float32")
    outcomes: list[Outcome] = []
    for base in wanted:
        with tempfile.TemporaryDirectory() as place:
            outcomes += _tried(Trial(make, network, base, steps, Path(place)), checks)
    return Report(named, tuple(outcomes))


def _bases(method: Method) -> list[str]:
    """Those that the method declares and that a network can be opened in, the one that it is configured for first."""
    own = method.quantization.kind if method.quantization else "full"
    return sorted(method.bases & MADE, key=lambda base: (base != own, base != "full", base))


def _tried(trial: Trial, checks: dict[str, Check]) -> Iterator[Outcome]:
    """The training that the checks look at, and then each check."""
    try:
        run = Run.of(trial)
    except Exception as error:  # whatever a method of somebody's own raises
        yield Outcome("training", trial.base, "failed", _raised(error))
        for name in checks:
            yield Outcome(name, trial.base, "not tried", "training failed")
        return
    yield Outcome("training", trial.base, "passed", f"{trial.steps} steps" if run.method.trains else "trains nothing")
    undeclared = False
    for name, check in checks.items():
        if undeclared and check in (trainings.resumed, trainings.two_instances):
            yield Outcome(name, trial.base, "not tried", "weights change that are not declared, as is said above")
            continue
        outcome = _outcome(name, check, run)
        undeclared |= outcome.status == "failed" and check in (promises.declared, promises.base)
        yield outcome


def _outcome(name: str, check: Check, run: Run) -> Outcome:
    base = run.trial.base
    try:
        return Outcome(name, base, "passed", check(run))
    except Broken as error:
        return Outcome(name, base, "failed", str(error))
    except Refused as reason:
        return Outcome(name, base, "refused", str(reason))
    except NotTried as reason:
        return Outcome(name, base, "not tried", str(reason))
    except Exception as error:
        return Outcome(name, base, "failed", _raised(error))


def _raised(error: Exception) -> str:
    """An error in one line; a UserError is a sentence of its own."""
    said = one_line(error)
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said or 'without a message'}"
