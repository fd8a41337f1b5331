"""Many methods on one task: the same steps, batches, seed and search for the learning rate for each, and one table.

    python scripts/methods.py --task demo [--methods lora,dora,…] [--jobs 2]
    python scripts/methods.py --task e2e --network DIR --data DIR      # E2E's train.jsonl lies in --data

A method's learning rate is found by short trainings, judged by the validation loss: at 0.001, 0.01 and 0.1, then at
half a decade to both sides of the best so far until both are worse. With that rate it trains to the end and is scored
on test records. The rates in experiments/method/ are not asked: they are those of papers on much larger networks.

Runs are ordinary ones: methods_TASK/METHOD, and the short ones methods_TASK_rates/METHOD-lrRATE. Stopped and started
again, it goes on. A method that fails is a row that says why. The table goes into docs/results.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from methods_table import Failure, Row, table, write

from ftlab.cli import main as ftlab
from ftlab.cli import quiet
from ftlab.cli.compose import read_config
from ftlab.errors import UserError
from ftlab.runs import Run

T = TypeVar("T")

TOP = Path(__file__).resolve().parent.parent
METHODS = (
    *("zeroshot", "full", "norms", "last_blocks", "lisa"),
    *("lora", "rslora", "lora_plus", "pissa", "dora", "qlora", "adalora"),
    *("loha", "lokr", "oft", "boft", "hra", "miss", "randlora", "vera", "fourierft", "c3a", "road", "ia3"),
    *("prompt_tuning", "prefix_tuning"),
)
SHARE = 4  # a rate is tried by a training of the steps divided by this
FIRST_RATES = (-6, -4, -2)  # in half decades: 0.001, 0.01, 0.1
MOST_RATES = 8  # to try: where every step down is better, training itself does harm
# of e2e: the feed-forward layers of stories260K are 172 wide, which the blocks in experiments/method do not divide
BLOCKS = {
    "boft": ("boft_block_size", "2"),
    "c3a": ("block_size", "4"),
    "oft": ("oft_block_size", "4"),
    "road": ("group_size", "4"),
}

Losses = dict[int, float]
"""Validation loss by learning rate, the rate in half decades; infinite where training diverged."""


@dataclass(frozen=True)
class Study:
    """What all methods have in common.

    Args:
        task: demo or e2e.
        root: Directory of all runs.
        steps: Optimiser steps of the training whose end is scored.
        options: For `ftlab fit`, beside those of the configuration files: where network and data are.
        kind: With which the names of its directories begin.
    """

    task: str
    root: Path
    steps: int
    options: tuple[str, ...] = ()
    kind: str = "methods"

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.task}"

    def run(self, method: str) -> Run:
        """The training to the end."""
        return Run(self.root / self.name / method)

    def trial(self, method: str, rate: int) -> Run:
        """The short training that tries a rate."""
        return Run(self.root / f"{self.name}_rates" / f"{method}-lr{in_digits(rate)}")

    def command(self, method: str, run: Run, steps: int, judged: int, rate: int | None) -> list[str]:
        """The options of `ftlab fit`.

        Args:
            method: Name of a file in experiments/method.
            run: Where it is kept.
            steps: Optimiser steps.
            judged: How often validation is judged, at equal distances, the last time at the end.
            rate: Learning rate in half decades; none where nothing is trained.
        """
        network = "demo" if self.task == "demo" else "gpt2"  # e2e: replaced by --network
        files = ["base", f"network/{network}", f"data/{self.task}", f"method/{method}", f"studies/methods_{self.task}"]
        words = [word for file in files for word in ("-c", f"experiments/{file}.yaml")]
        words += ["--run.root", str(self.root)]
        words += ["--run.experiment", run.directory.parent.name, "--run.name", run.directory.name]
        words += ["--wandb.mode", "disabled", "--trainer.enable_progress_bar", "false", *self.options]
        words += ["--trainer.max_steps", str(steps)]
        words += ["--trainer.val_check_interval", str(steps // judged)]
        if self.task == "e2e" and method in BLOCKS:
            field, size = BLOCKS[method]
            words += [f"--model.method.init_args.config.init_args.{field}", size]
        return words + (["--model.optimizer.init_args.lr", in_digits(rate)] if rate is not None else [])


def in_digits(rate: int) -> str:
    """A rate given in half decades, to two digits: -5 is 0.0032."""
    return f"{10 ** (rate / 2):.2g}"


# ---------------------------------------------------------------- one method, in processes of its own


def losses_by_rate(study: Study, method: str) -> Losses:
    """Tries learning rates until the best is between two worse; none where the method trains nothing.

    Raises:
        UserError: The method cannot be trained, or diverges at all of FIRST_RATES.
    """
    losses: Losses = {}
    if not trains(study, method):
        return losses
    while rates := untried(losses):
        for rate in rates:
            run = study.trial(method, rate)
            losses[rate] = fit_loss(study.command(method, run, study.steps // SHARE, 1, rate), run)
        if not any(math.isfinite(loss) for loss in losses.values()):
            raise UserError(f"training diverges at every learning rate of {', '.join(map(in_digits, losses))}")
    return losses


def untried(losses: Losses) -> list[int]:
    """The rates to try next; none when the best is between two worse, or MOST_RATES have been tried."""
    if not losses:
        return list(FIRST_RATES)
    best = best_rate(losses)
    return [rate for rate in (best - 1, best + 1) if rate not in losses][: MOST_RATES - len(losses)]


def best_rate(losses: Losses) -> int:
    """The rate of the least loss; of equal ones the lowest."""
    return min(sorted(losses), key=losses.__getitem__)


def is_bracketed(losses: Losses) -> bool:
    """Whether the rates to both sides of the best have been tried."""
    return not losses or {best_rate(losses) - 1, best_rate(losses) + 1} <= set(losses)


def trains(study: Study, method: str) -> bool:
    """Whether the method trains anything, so that it has a rate."""
    quiet.silence()  # before what it silences is imported
    from ftlab.cli.experiment import Experiment

    experiment = Experiment(study.command(method, study.run(method), study.steps, 1, None))
    return experiment.model.method.trains


def fit_loss(command: list[str], run: Run) -> float:
    """Trains and returns the validation loss; infinite where training has diverged."""
    try:
        give("fit", command)
    except UserError as error:
        if "training has diverged" in str(error):
            return math.inf
        raise
    loss = scores(run)["val_loss"]
    return loss if math.isfinite(loss) else math.inf


def fit_and_test(study: Study, method: str, rate: int | None) -> None:
    """Trains to the end and scores the test records, where that has not been done."""
    command, run = study.command(method, study.run(method), study.steps, 2, rate), study.run(method)
    give("fit", command)
    if "test_loss" not in scores(run):
        give("test", command)


def give(verb: str, words: list[str]) -> None:
    """Gives one command to ftlab in this process, in silence.

    Raises:
        UserError: It was refused, with the sentence that ftlab said.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = ftlab([verb, *words])
    if code == 130:
        raise KeyboardInterrupt
    if code:
        sentences = [line for line in said.getvalue().splitlines() if line.startswith("ftlab: ")]
        raise UserError(sentences[-1].removeprefix("ftlab: ") if sentences else f"ftlab {verb} ended with {code}")


def scores(run: Run) -> dict[str, float]:
    """What scores.json holds."""
    return json.loads(run.scores.read_text(encoding="utf-8"))


def row(study: Study, method: str, losses: Losses) -> Row:
    """The row of a method whose run has been scored."""
    run = study.run(method)
    cost, judged = run.record()["cost"], scores(run)
    return Row(
        method,
        trained=cost["trainable_parameters"],
        share=cost["trainable_parameters"] / cost["parameters"],
        model_bytes=cost["model_bytes"],
        peak_memory_bytes=cost["peak_memory_bytes"],
        seconds_a_step=cost["training_seconds"] / study.steps if losses else None,
        rate=in_digits(best_rate(losses)) if losses else "",
        rates_tried=len(losses),
        rate_bracketed=is_bracketed(losses),
        val_loss=judged["val_loss"],
        test_loss=judged["test_loss"],
        rouge_l=judged["test_rougeL"],
    )


# ---------------------------------------------------------------- all methods


def in_own_process(function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function in a fresh process: its peak memory is its own, and where it dies it takes nobody with it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def study_method(study: Study, method: str, call: Callable[..., Any] = in_own_process) -> Row | Failure:
    """One method from its rates to its row."""
    try:
        losses = call(losses_by_rate, study, method)
        call(fit_and_test, study, method, best_rate(losses) if losses else None)
        return row(study, method, losses)
    except UserError as error:
        return Failure(method, str(error))
    except Exception as error:  # a library's, or BrokenProcessPool of a process that was killed
        traceback.print_exc()
        return Failure(method, f"{type(error).__name__}: {' '.join(str(error).split())}")


def study_methods(study: Study, methods: list[str], jobs: int) -> list[Row | Failure]:
    """What all methods came to, `jobs` of them at a time."""
    started = time.monotonic()

    def study_one(method: str) -> Row | Failure:
        result = study_method(study, method)
        minutes = (time.monotonic() - started) / 60
        came_to = f"ROUGE-L {result.rouge_l:.1f}" if isinstance(result, Row) else result.failure
        print(f"{minutes:3.0f} min  {method}: {came_to}", file=sys.stderr, flush=True)
        return result

    with ThreadPoolExecutor(jobs) as threads:
        futures = [threads.submit(study_one, method) for method in methods]
        try:
            return [future.result() for future in futures]
        except KeyboardInterrupt:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--task", choices=["demo", "e2e"], required=True)
    parser.add_argument("--methods", default=",".join(METHODS), help="names in experiments/method, with commas between")
    parser.add_argument("--network", type=Path, help="of e2e: directory of the pretrained network")
    parser.add_argument("--data", type=Path, help="of e2e: directory of train.jsonl")
    parser.add_argument("--steps", type=int, help="by default those of experiments/studies/methods_TASK.yaml")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, of one thread each")
    parser.add_argument("--root", type=Path, default=TOP / "runs", help="directory of the runs")
    parser.add_argument("--out", type=Path, default=TOP / "docs" / "results", help="directory of the table")
    arguments = parser.parse_args()
    options: tuple[str, ...] = ()
    command = f"python scripts/methods.py --task {arguments.task} --jobs {arguments.jobs}"
    command += f" --steps {arguments.steps}" if arguments.steps else ""
    command += f" --methods {arguments.methods}" if arguments.methods != parser.get_default("methods") else ""
    if arguments.task == "e2e":
        if not (arguments.network and arguments.data):
            parser.error("--task e2e needs --network DIR and --data DIR")
        # one file and not the directory: its validation and test records are then carved out, so that the records
        # that choose the rate are others than those that judge
        data = arguments.data / "train.jsonl"
        options = ("--model.network.path", os.path.relpath(arguments.network, TOP))
        options += ("--data.path", os.path.relpath(data, TOP))
        command += " --network $NETWORK --data $DATA"
    study_file = TOP / "experiments" / "studies" / f"methods_{arguments.task}.yaml"
    steps = arguments.steps or read_config(study_file)["trainer"]["max_steps"]
    if steps < 1 or steps % SHARE:
        parser.error(f"--steps {steps}: give a multiple of {SHARE}, as a rate is tried for one step in {SHARE}")
    root, out = arguments.root.resolve(), arguments.out.resolve()
    os.chdir(TOP)
    # networks this small are bound by calls, not by products: a second thread only waits for the first
    os.environ["OMP_NUM_THREADS"] = "1"
    study = Study(arguments.task, Path(os.path.relpath(root)), steps, options)
    try:
        results = study_methods(study, arguments.methods.split(","), arguments.jobs)
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    runs = [study.run(result.method) for result in results if isinstance(result, Row)]
    page = write(out, study.task, results, runs, command)
    print(f"{table(results)}\n{page}")


if __name__ == "__main__":
    main()
