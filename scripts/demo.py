"""The main job on what ships with ftlab: one network, one dataset, four methods, and a table that compares them.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ftlab.cli import main as ftlab
from ftlab.runs import Run

TOP = Path(__file__).resolve().parent.parent
METHODS = {"zeroshot": "zero-shot", "full": "full", "lora": "LoRA", "qlora": "QLoRA"}
RECORDS_SHOWN = 3


@dataclass
class Result:
    """What one method came to."""

    method: str
    run: Run

    @property
    def cost(self) -> dict[str, Any]:
        return self.run.record()["cost"]

    @property
    def scores(self) -> dict[str, float]:
        return json.loads(self.run.scores.read_text())

    def answers(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run.predictions("test").read_text().splitlines()]


def fit_and_test(experiment: str, root: str, options: list[str]) -> None:
    """Runs one experiment to its scores, or exits as ftlab does."""
    place = ["--run.root", root, "--run.name", "demo", "--wandb.mode", "offline"]
    for verb in ("fit", "test"):
        code = ftlab([verb, "-c", f"experiments/{experiment}.yaml", *place, *options])
        if code:
            raise SystemExit(code)


def table(results: list[Result]) -> Table:
    """One row a method."""
    columns = ["trained", "share", "on disk", "peak memory", "val loss", "ROUGE-1", "ROUGE-2", "ROUGE-L", "seconds"]
    table = Table("method", title=f"one pretrained network, {len(results[0].answers())} test records")
    for column in columns:
        table.add_column(column, justify="right")
    for result in results:
        cost, scores = result.cost, result.scores
        table.add_row(
            METHODS[result.method],
            f"{cost['trainable_parameters']:,}",
            f"{cost['trainable_parameters'] / cost['parameters']:.1%}",
            f"{cost['model_bytes'] / 1e6:.2f} MB",
            f"{cost['peak_memory_bytes'] / 1e6:.0f} MB",
            f"{scores['val_loss']:.3f}",
            *(f"{scores[f'test_{name}']:.1f}" for name in ("rouge1", "rouge2", "rougeL")),
            f"{cost['seconds']:.0f}",
        )
    return table


def show_answers(results: list[Result], console: Console) -> None:
    """The first test records with every method's answer."""
    answers = {result.method: result.answers() for result in results}
    for number in range(RECORDS_SHOWN):
        record = answers["zeroshot"][number]
        console.print(Text(f"\n{record['prompt']}", style="dim"))
        print(f"  {'reference':<10} {record['references'][0]}")
        for method, rows in answers.items():
            print(f"  {METHODS[method]:<10} {' '.join(rows[number]['prediction'].split())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="runs", help="directory of the runs")
    arguments, options = parser.parse_known_args()
    os.chdir(TOP)
    # a network this small is bound by calls, not by products: a second thread only waits for the first
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results = []
    for number, method in enumerate(METHODS, 1):
        experiment = f"demo_{method}"
        print(
            f"\n[{number}/{len(METHODS)}] {METHODS[method]}: experiments/{experiment}.yaml", file=sys.stderr, flush=True
        )
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            process.submit(fit_and_test, experiment, arguments.root, options).result()
        results.append(Result(method, Run(Path(arguments.root) / experiment / "demo")))
    console = Console() if sys.stdout.isatty() else Console(width=110)  # a file has no width: 80 would cut the names
    console.print(table(results))
    show_answers(results, console)
    print("\nThe runs are in " + ", ".join(str(result.run.directory) for result in results))


if __name__ == "__main__":
    main()
