"""What it takes to come to the first optimiser step: `ftlab fit` on the demo, a bare loop, and HF Trainer with peft.

`scripts/benchmark.py start` runs it. Each start is a process of its own, with nothing prepared before; arms take turns,
ratios are within a turn. The bare loop and the Trainer are those of training_arms.py, on as many rows of the same file,
which lie ready as tokens; they log nothing. With `--before DIR`, ftlab as it stands in another checkout takes turns.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benching import ASSETS, TOP, said, spread
from training_clock import since_start
from training_cost import Work

WORK = Work(str(ASSETS / "network"), str(ASSETS / "data" / "train.jsonl"), length=256, batch_size=16, warm=0, steps=1)
DEMO = "experiments/demo_lora.yaml"
PHASES = ("imports", "configuration", "data", "W&B", "network", "first step")
"""Of ftlab: each up to the end of what it is named after; the network with digests of its files, the step with the
optimiser's making."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--before", type=Path, help="another checkout of ftlab, to take turns with this one")


def run(args: argparse.Namespace) -> dict[str, Any]:
    return benchmark_start(args.repeats, args.before and args.before.resolve())


def benchmark_start(repeats: int, before: Path | None) -> dict[str, Any]:
    """Prints two tables, of whole starts and of ftlab's phases, and returns the figures."""
    arms = {"ftlab": TOP, **({"before": before} if before else {}), "bare": TOP, "hf": TOP}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "rows.json"
        subprocess.run([sys.executable, __file__, "rows", str(file)], check=True, stdout=subprocess.DEVNULL)
        for arm, top in arms.items():  # files that a first process reads from the disk, and bytecode
            _run(arm, top, file)
        turns = [{arm: _run(arm, top, file) for arm, top in arms.items()} for _ in range(repeats)]
    figures: dict[str, Any] = {}
    print("| arm | s to the first step's end | CPU s | ftlab's wall over it | ftlab's CPU over it | modules | MB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for arm in arms:
        figures[arm] = {
            "wall": spread([turn[arm]["wall"] for turn in turns]),
            "cpu": spread([turn[arm]["cpu"] for turn in turns]),
            "wall ratio": spread([turn["ftlab"]["wall"] / turn[arm]["wall"] for turn in turns]),
            "cpu ratio": spread([turn["ftlab"]["cpu"] / turn[arm]["cpu"] for turn in turns]),
            "modules": spread([turn[arm]["modules"] for turn in turns]),
            "MB": spread([turn[arm]["memory"] / 1e6 for turn in turns]),
        }
        print(f"| {arm} | {' | '.join(map(said, figures[arm].values(), (1, 1, 2, 2, 0, 0)))} |")
        figures[arm]["turns"] = [turn[arm]["wall"] for turn in turns]
    told = [arm for arm in ("ftlab", "before") if arm in arms]
    print(f"\n| phase | {' | '.join(f'{arm}: s | CPU s' for arm in told)} |")
    print(f"|---|{'---:|' * 2 * len(told)}")
    for phase in PHASES:
        cells = []
        for arm in told:
            both = [spread([turn[arm]["phases"][phase][kind] for turn in turns]) for kind in (0, 1)]
            figures[arm].setdefault("phases", {})[phase] = dict(zip(("wall", "cpu"), both, strict=True))
            cells += [said(value, 2) for value in both]
        print(f"| {phase} | {' | '.join(cells)} |")
    return figures


def _run(arm: str, top: Path, rows: Path) -> dict[str, Any]:
    environment: Mapping[str, str] = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(top)}
    with tempfile.TemporaryDirectory() as scratch:
        environment |= {"FTLAB_CACHE": f"{scratch}/cache", "HF_DATASETS_CACHE": scratch}
        shutil.copy(rows, scratch)
        command = [sys.executable, __file__, "ftlab" if arm == "before" else arm, str(top)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=scratch)
    if done.returncode or not done.stdout:
        sys.exit(f"arm {arm} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


class Marks:
    """Notes the ends of phases, and says at the last what they took."""

    def __init__(self) -> None:
        self.phases: dict[str, tuple[float, float]] = {}
        self._last = (0.0, 0.0)

    def ends(self, phase: str) -> None:
        """The first time it does."""
        if phase in self.phases:
            return
        now = since_start(), time.process_time()
        self.phases[phase] = (now[0] - self._last[0], now[1] - self._last[1])
        self._last = now

    def after(self, owner: Any, name: str, phase: str) -> None:
        """Has the phase end where this function comes back."""
        function = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            try:
                return function(*args, **options)
            finally:
                self.ends(phase)

        setattr(owner, name, watched)

    def say(self) -> None:
        import resource

        wall, cpu = (sum(phase[kind] for phase in self.phases.values()) for kind in (0, 1))
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        figures = {"wall": wall, "cpu": cpu, "modules": len(sys.modules), "memory": memory, "phases": self.phases}
        print(json.dumps(figures), flush=True)
        os._exit(0)  # what comes then is not measured


def ftlab(top: Path) -> None:
    """The demo as its users start it, W&B among it, with one step; `top` holds ftlab and its experiments."""
    marks = Marks()
    load = importlib.import_module

    def loaded(name: str, package: str | None = None) -> Any:
        module = load(name, package)
        if name == "ftlab.cli.verbs":
            marks.ends("imports")
            _watch(marks)
        return module

    importlib.import_module = loaded  # type: ignore[assignment]
    from ftlab.cli import main

    options = {"trainer.max_steps": 1, "trainer.callbacks+": "start_cost.Last", "run.root": str(Path.cwd())}
    os.chdir(top)  # the demo's paths begin there
    main(["fit", "-c", DEMO, *(f"--{name}={value}" for name, value in options.items())])
    sys.exit("ftlab fit ended before the first step did")


def _watch(marks: Marks) -> None:
    import lightning.pytorch as pl

    from ftlab.cli.experiment import Experiment
    from ftlab.data import FinetuneData
    from ftlab.modules import FinetuneModule

    marks.after(Experiment, "instantiate_classes", "configuration")
    marks.after(FinetuneData, "setup", "data")
    marks.after(Experiment, "log_to_wandb", "W&B")
    marks.after(FinetuneModule, "configure_model", "network")

    class Last(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            marks.ends("first step")
            marks.say()

    sys.modules["start_cost"] = sys.modules["__main__"]
    sys.modules["__main__"].Last = Last  # type: ignore[attr-defined]


def peer(name: str) -> None:
    """The bare loop or the Trainer, until its first step has ended."""
    import training_arms
    from training_clock import Clock

    marks = Marks()

    def ends(clock: Any, *_: Any) -> bool:
        marks.ends("first step")
        marks.say()
        return True

    Clock.ends = ends  # type: ignore[method-assign]
    training_arms.TOOLS[name](WORK, Path.cwd(), set())


def rows(file: Path) -> None:
    """Leaves the tokens of the step's rows."""
    from training_arms import rows

    file.write_text(json.dumps(rows(WORK)))


if __name__ == "__main__":
    arm, place = sys.argv[1:]
    ARMS: dict[str, Callable[[], None]] = {"ftlab": lambda: ftlab(Path(place)), "rows": lambda: rows(Path(place))}
    ARMS.get(arm, lambda: peer(arm))()
