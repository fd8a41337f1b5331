"""What a sweep costs beside its trials: seconds to take a trial and tell of it, and of `ftlab sweep status`.

    python scripts/sweep_cost.py [--trials 100 1000 10000] [--methods grid random bayes]
    python scripts/sweep_cost.py --workers 64 [--trials 640]

Each sweep is made in a directory of its own, its trials taken and told by one process that trains nothing; then status
is asked for by the command itself, start of Python and all. With --workers, that many workers run the trials at once,
each trial a process of a second, and half of the workers are killed (SIGKILL) on the way: every result that one of
them has said to be told must be there at the end, once. The tables are those of docs/results/sweeps.md.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

import yaml
from optuna.trial import TrialState

from ftlab.sweeps import Plan, Study, SweepDirectory, status
from ftlab.sweeps.ledger import SAID
from ftlab.sweeps.worker import command

PARAMETERS = {
    "grid": {"lr": {"min": 0, "max": 9999}, "r": {"value": 8}, "config": {"value": ["lora.yaml", "adamw.yaml"]}},
    "random": {
        "lr": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-1},
        "r": {"values": [4, 8, 16, 32]},
        "dropout": {"min": 0.0, "max": 0.5},
    },
    "bayes": {
        "lr": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-1},
        "r": {"values": [4, 8, 16, 32]},
        "dropout": {"min": 0.0, "max": 0.5},
    },
}
OBJECTIVE = Path(__file__).parents[1] / "tests/sweeps/objective.py"
LAST = 100
"""Trials at the end of a sweep, whose mean says what a trial costs when all others are there."""


def cost(method: str, trials: int, place: Path) -> tuple[float, float, float, float, float, int]:
    """Mean seconds a trial, of all and of the last; CPU seconds of the last; seconds and CPU seconds of status; bytes
    of the journal."""
    file = place / f"{method}.yaml"
    content = {
        "method": method,
        "metric": {"name": "val_loss"},
        "parameters": PARAMETERS[method],
        "command": ["true", "${args}"],
        "run_cap": trials,
    }
    file.write_text(yaml.safe_dump(content))
    directory = SweepDirectory(place / f"{method}-{trials}")
    directory.found(file, Plan(["true", "${args}"], str(file), str(place)))
    directory.begin({"run_cap": trials})
    study, seconds, core = Study(directory), [], []
    for number in range(trials):
        start, before = time.perf_counter(), time.process_time()
        task = study.take()
        assert task is not None
        study.report(task, [1.0 / (number + 1)])
        study.finish(task, TrialState.COMPLETE, 1.0 / (number + 1))
        seconds.append(time.perf_counter() - start)
        core.append(time.process_time() - before)
    start, before = time.perf_counter(), _cpu()
    subprocess.run(
        [sys.executable, "-m", "ftlab", "sweep", "status", str(directory.path)], check=True, stdout=subprocess.DEVNULL
    )
    status = time.perf_counter() - start
    last, last_core = seconds[-LAST:], core[-LAST:]
    return (
        sum(seconds) / trials,
        sum(last) / len(last),
        sum(last_core) / len(last_core),
        status,
        _cpu() - before,
        directory.journal.stat().st_size,
    )


@dataclass
class Together:
    """What became of a sweep whose workers all worked at once.

    Args:
        killed: Workers that were killed.
        acknowledged: Results that some worker had said to be told.
        lost: Of these, how many are not in the study with the value that their trial came to.
        twice: Of these, how many were said to be told more than once.
        finished: Trials that finished.
        starts: Of trials; each that is taken up again is one more.
        seconds: From the first start to the last end.
    """

    killed: int
    acknowledged: int
    lost: int
    twice: int
    finished: int
    starts: int
    seconds: float


def together(workers: int, trials: int, place: Path) -> Together:
    """Runs a sweep by so many workers, kills half of them one after another, and compares what they said with what is
    there."""
    file = place / "together.yaml"
    content = {
        "method": "grid",
        "metric": {"name": "val_loss"},
        "parameters": {"x": {"min": 1, "max": trials}, "seconds": {"value": 0.2}},
        "command": [sys.executable, str(OBJECTIVE), "${args}"],
    }
    file.write_text(yaml.safe_dump(content))
    directory = SweepDirectory(place / "together")
    directory.found(file, Plan(content["command"], str(file), str(place)))
    directory.begin({})
    Study(directory)
    start, dice = time.perf_counter(), random.Random(0)
    logs = [place / f"worker-{n}" for n in range(workers)]
    processes = [_worker(directory, log) for log in logs]
    for kill, n in enumerate(dice.sample(range(workers), workers // 2)):
        share = trials * (kill + 1) // (workers // 2 + 1)  # the kills are spread over the whole of the sweep
        while len(_said(logs)) < share and processes[n].poll() is None:
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 0.5))  # or each would be killed when some trial has just ended
        processes[n].kill()
    codes = [process.wait() for process in processes]
    said, seconds = _said(logs), time.perf_counter() - start
    if any(code not in (0, -9) for code in codes):
        raise SystemExit(f"a worker has failed: exit codes {sorted(set(codes))}, logs in {place}")
    study = Study(directory)
    there = {trial.user_attrs[SAID]["run"]: trial for trial in study.trials() if trial.state == TrialState.COMPLETE}
    kept = [
        run
        for run in set(said)
        if run in there and there[run].value == there[run].user_attrs[SAID]["parameters"]["x"] ** 2
    ]
    return Together(
        killed=codes.count(-9),
        acknowledged=len(set(said)),
        lost=len(set(said)) - len(kept),
        twice=len(said) - len(set(said)),
        finished=status(study).states["finished"],
        starts=sum(len(path.read_text().splitlines()) for path in directory.path.glob("*/starts")),
        seconds=seconds,
    )


def _worker(directory: SweepDirectory, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command(directory.path), stdin=subprocess.DEVNULL, stderr=file)


def _said(logs: list[Path]) -> list[str]:
    """The runs whose results workers have said to be told."""
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return [line.split()[1] for line in lines if " finished: " in line]


def _cpu() -> float:
    """Seconds of a core that processes started here have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trials", type=int, nargs="+", help="of each sweep (default: 100 1000 10000, or ten a worker)"
    )
    parser.add_argument("--methods", nargs="+", default=["grid", "random"], choices=list(PARAMETERS))
    parser.add_argument("--workers", type=int, nargs="+", help="at once, of which half are killed")
    options = parser.parse_args()
    if options.workers:
        _print_together(options.workers, options.trials)
        return
    print(
        "| method | trials | ms a trial | ms, last 100 | CPU ms, last 100 | status, s | status, CPU s | journal, MB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as place:
        for method in options.methods:
            for trials in options.trials or [100, 1000, 10000]:
                mean, last, core, status, cpu, size = cost(method, trials, Path(place))
                times = f"{mean * 1e3:.1f} | {last * 1e3:.1f} | {core * 1e3:.1f} | {status:.2f} | {cpu:.2f}"
                print(f"| {method} | {trials:,} | {times} | {size / 1e6:.2f} |", flush=True)


def _print_together(numbers: list[int], trials: list[int] | None) -> None:
    print("| workers | trials | killed | acknowledged | of these lost | twice | finished | starts | s |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for workers in numbers:
        for count in trials or [10 * workers]:
            with tempfile.TemporaryDirectory() as place:
                found = together(workers, count, Path(place))
            cells = [workers, count, *(getattr(found, field.name) for field in fields(found))]
            print(f"| {' | '.join(f'{cell:.0f}' for cell in cells)} |", flush=True)
            if found.lost or found.twice or found.finished != count:
                raise SystemExit("results were lost, or are there twice")


if __name__ == "__main__":
    main()
