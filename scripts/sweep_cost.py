"""What a sweep costs beside its trials: seconds to take a trial and tell of it, and of `ftlab sweep status`.

    python scripts/sweep_cost.py [--trials 100 1000 10000] [--methods grid random]

Each sweep is made in a directory of its own, its trials taken and told by one process that trains nothing; then status
is asked for by the command itself, start of Python and all. The table is that of docs/results/sweeps.md.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from optuna.trial import TrialState

from ftlab.sweeps import Plan, Study, SweepDirectory

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
LAST = 100
"""Trials at the end of a sweep, whose mean says what a trial costs when all others are there."""


def cost(method: str, trials: int, place: Path) -> tuple[float, float, float, float, int]:
    """Mean seconds a trial, of all and of the last, seconds and CPU seconds of status, and bytes of the journal."""
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
    study, seconds = Study(directory), []
    for number in range(trials):
        start = time.perf_counter()
        task = study.take()
        assert task is not None
        study.report(task, [1.0 / (number + 1)])
        study.finish(task, TrialState.COMPLETE, 1.0 / (number + 1))
        seconds.append(time.perf_counter() - start)
    start, before = time.perf_counter(), _cpu()
    subprocess.run(
        [sys.executable, "-m", "ftlab", "sweep", "status", str(directory.path)], check=True, stdout=subprocess.DEVNULL
    )
    status = time.perf_counter() - start
    last = seconds[-LAST:]
    return sum(seconds) / trials, sum(last) / len(last), status, _cpu() - before, directory.journal.stat().st_size


def _cpu() -> float:
    """Seconds of a core that processes started here have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--methods", nargs="+", default=["grid", "random"], choices=list(PARAMETERS))
    options = parser.parse_args()
    print("| method | trials | ms a trial | ms, last 100 | status, s | status, CPU s | journal, MB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as place:
        for method in options.methods:
            for trials in options.trials:
                mean, last, status, cpu, size = cost(method, trials, Path(place))
                times = f"{mean * 1e3:.1f} | {last * 1e3:.1f} | {status:.2f} | {cpu:.2f}"
                print(f"| {method} | {trials:,} | {times} | {size / 1e6:.2f} |", flush=True)


if __name__ == "__main__":
    main()
