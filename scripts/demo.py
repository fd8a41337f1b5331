"""The main job on what ships with ftlab: one network, one dataset, four methods, and `ftlab compare` of them.

    python scripts/demo.py [--root runs] [OPTION …]

Further options go to every `ftlab fit`, such as `--trainer.max_steps 20`. Each method runs in a process of its own, so
that its peak memory is its own. Run again, it shows what is there already.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ftlab.cli import main as ftlab
from ftlab.runs import Run

TOP = Path(__file__).resolve().parent.parent
METHODS = {"zeroshot": "zero-shot", "full": "full", "lora": "LoRA-PiSSA", "qlora": "QLoRA"}
RECORDS_SHOWN = 3


def fit_and_test(experiment: str, root: str, options: list[str]) -> None:
    """Runs one experiment to its scores, or exits as ftlab does."""
    place = ["--run.root", root, "--run.name", "demo", "--wandb.mode", "offline"]
    for verb in ("fit", "test"):
        code = ftlab([verb, "-c", f"experiments/{experiment}.yaml", *place, *options])
        if code:
            raise SystemExit(code)


def answers(run: Run) -> list[dict[str, Any]]:
    """The test records as a run answered them."""
    with run.predictions("test").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def show_answers(runs: dict[str, Run], console: Console) -> None:
    """The first test records with every method's answer."""
    told = {method: answers(run) for method, run in runs.items()}
    for number in range(RECORDS_SHOWN):
        record = told["zeroshot"][number]
        console.print(Text(f"\n{record['prompt']}", style="dim"))
        print(f"  {'reference':<12} {record['references'][0]}")
        for method, rows in told.items():
            print(f"  {METHODS[method]:<12} {' '.join(rows[number]['prediction'].split())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="runs", help="directory of the runs")
    arguments, options = parser.parse_known_args()
    os.chdir(TOP)
    # a network this small is bound by calls, not by products: a second thread only waits for the first
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    runs = {}
    for number, method in enumerate(METHODS, 1):
        experiment = f"demo_{method}"
        print(
            f"\n[{number}/{len(METHODS)}] {METHODS[method]}: experiments/{experiment}.yaml", file=sys.stderr, flush=True
        )
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            process.submit(fit_and_test, experiment, arguments.root, options).result()
        runs[method] = Run(Path(arguments.root) / experiment / "demo")
    show_answers(runs, Console())
    words = ["compare", *(f"{METHODS[method]}={run.directory}" for method, run in runs.items()), "--baseline", "full"]
    print(f"\nftlab {' '.join(words)}\n", flush=True)
    raise SystemExit(ftlab(words))


if __name__ == "__main__":
    main()
