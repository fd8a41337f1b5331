"""What only other processes can show: a saved model opened by one that never trained, and training on two devices."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ftlab.testing.promises import model_of, same_answers
from ftlab.testing.report import Broken, NotTried
from ftlab.testing.trainings import NoDropout, compare_gradients
from ftlab.testing.trial import BATCH, Recorder, Run, Trial, descent

PATIENCE = 300
"""Seconds until a process is given up."""


def fresh_process(run: Run) -> str:
    """A process of its own opens the base, loads what `save` wrote, and answers as the trained network."""
    directory = model_of(run)
    if not directory.is_dir():
        raise NotTried("nothing was saved")
    return same_answers(run, _elsewhere(run.trial, _loaded_logits, directory))


def two_devices(run: Run) -> str:
    """Two processes, each with half of every batch, come to the gradients of one process with the whole."""
    if not run.method.trains:
        raise NotTried("trains nothing")
    return compare_gradients(_elsewhere(run.trial, _gradients, 2), _gradients(run.trial, 1), "on two devices")


def _loaded_logits(trial: Trial, directory: Path) -> Tensor:
    return trial.logits(trial.method().load(trial.opened(), directory))


def _gradients(trial: Trial, devices: int) -> dict[str, Tensor]:
    """The sum of each tensor's gradients over a training by plain gradient descent."""
    seen = Recorder()
    module = trial.module(optimizer=descent)
    trial.fit(module, [NoDropout(), seen], batch_size=BATCH // devices, devices=devices)
    return seen.total


def _elsewhere(trial: Trial, function: Callable[..., Any], argument: Any) -> Any:
    """What `function(trial, argument)` returns in a fresh process.

    Raises:
        Broken: The process failed.
        NotTried: The method cannot be sent there.
    """
    try:
        task = pickle.dumps((trial, function, argument))
    except Exception as error:  # pickle raises what it likes
        raise NotTried(f"the method cannot be pickled to be sent there ({error})") from error
    if type(trial.make()).__module__ == "__main__":
        raise NotTried("the method's class is in __main__: put it into a file that another process can import")
    place = trial.place / function.__name__.strip("_")
    place.with_suffix(".task").write_bytes(task)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-W", "ignore", "-m", "ftlab.testing.processes", str(place)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            _, said = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with those that it has started
            raise Broken(f"the process had not ended after {PATIENCE} s") from None
    if process.returncode != 0:
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise Broken(f"the process failed: {last}")
    return torch.load(place.with_suffix(".answer"), weights_only=True)


def main() -> None:
    """Does the task whose path is given; of several processes the first writes the answer."""
    place = Path(sys.argv[1])
    trial, function, argument = pickle.loads(place.with_suffix(".task").read_bytes())
    answer = function(trial, argument)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        torch.save(answer, place.with_suffix(".answer"))


if __name__ == "__main__":
    main()
