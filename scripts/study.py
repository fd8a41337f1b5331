"""Zero-shot, full, LoRA and QLoRA on one task: a rate found for each in the same way, several seeds, and a page.

    python scripts/study.py --task demo [--jobs 2]
    python scripts/study.py --task e2e --network DIR --data DIR      # E2E's train.jsonl lies in --data

The learning rate of each method is searched as scripts/methods.py does, by trainings of a quarter of the steps with one
seed; then it trains with others and is scored on test records and, on the demo, on what it must not forget. What `ftlab
compare` makes of that goes into docs/results/TASK: README.md, comparison.html, comparison.csv and .json, figures.

Stopped and started again, it goes on: a run is named by what makes it.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods import (
    FIRST_RATES,
    SHARE,
    TOP,
    Losses,
    Study,
    best_rate,
    give,
    in_digits,
    in_own_process,
    is_bracketed,
    losses_by_rate,
    scores,
)

from ftlab.cli.compose import read_config
from ftlab.errors import UserError
from ftlab.reports.compare import Options, compare, find_runs
from ftlab.reports.compare.page import page
from ftlab.reports.compare.plots import drawn
from ftlab.reports.compare.tables import Table, csv_text, json_text, markdown
from ftlab.runs import Run
from ftlab.runs.files import write_together

METHODS = {"zeroshot": "zero-shot", "full": "full", "lora": "LoRA", "qlora": "QLoRA"}
SEEDS = {"demo": 5, "e2e": 3}
RETENTION = {"demo": "experiments/retention/demo.yaml"}  # what stories260K has been trained on does not ship
TASKS = {
    "demo": "The network that ships with ftlab, and dialogues that ship, too, to be summarised in a sentence.",
    "e2e": "{network}, and E2E: attributes of a restaurant to be put into a sentence. Validation and test records are "
    "carved out of its train.jsonl. The network's own training corpus does not ship, so that nothing is said of "
    "forgetting.",
}
PRETRAINING = {"stories260K": "trained on stories"}  # of networks of which it is known
# of a CPU, which multiplies float32 fastest, whatever the method's file says for GPUs
OPTIONS = {"qlora": ("--model.method.init_args.compute_dtype", "float32")}


@dataclass(frozen=True)
class Seeds(Study):
    """Methods with several seeds each."""

    kind: str = "study"

    def command(self, method: str, run: Run, steps: int, judged: int, rate: int | None) -> list[str]:
        return [*super().command(method, run, steps, judged, rate), *OPTIONS.get(method, ())]

    def seeded(self, method: str, rate: int | None, seed: int) -> Run:
        """The training to the end, with a seed."""
        return Run(self.root / self.name / (f"{method}-lr{in_digits(rate)}-seed{seed}" if rate is not None else method))


def train(study: Seeds, method: str, rate: int | None, seed: int) -> None:
    """Trains to the end, and scores test records and what must not be forgotten, where that has not been done."""
    run = study.seeded(method, rate, seed)
    command = [*study.command(method, run, study.steps, 2, rate), "--seed_everything", str(seed)]
    if study.task in RETENTION:
        command = ["-c", RETENTION[study.task], *command]
    give("fit", command)
    if "test_loss" not in scores(run):
        give("test", command)


class Progress:
    """Says of each piece of work that has ended how long it took, and when."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, what: str, began: float) -> None:
        now = time.monotonic()
        with self._lock:
            print(f"{(now - self._began) / 60:5.1f} min  {what}: {now - began:.0f} s", file=sys.stderr, flush=True)


def work(study: Seeds, seeds: int, jobs: int, call: Callable[..., Any] = in_own_process) -> dict[str, Losses]:
    """All runs, `jobs` at a time, each in a process of its own.

    Returns:
        Of each method that is trained, validation losses by learning rate.

    Raises:
        UserError: One was refused.
    """
    progress = Progress()

    def timed(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        began = time.monotonic()
        found = call(function, study, *arguments)
        progress(what, began)
        return found

    with ThreadPoolExecutor(jobs) as threads:
        try:
            trained = [method for method in METHODS if method != "zeroshot"]
            searches: dict[Future[Losses], str] = {
                threads.submit(timed, f"{method}, learning rates", losses_by_rate, method): method for method in trained
            }
            runs = [threads.submit(timed, "zeroshot", train, "zeroshot", None, 1)]
            for search in as_completed(searches):
                method, rate = searches[search], best_rate(search.result())
                runs += [
                    threads.submit(timed, f"{method}, rate {in_digits(rate)}, seed {seed}", train, method, rate, seed)
                    for seed in range(1, seeds + 1)
                ]
            for run in as_completed(runs):
                run.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return {method: search.result() for search, method in searches.items()}


def rates_table(losses: dict[str, Losses]) -> Table:
    """The validation losses by which rates were chosen."""
    tried = sorted({rate for found in losses.values() for rate in found})
    rows = [
        [
            METHODS[method],
            *(f"{found[rate]:.3f}" if rate in found else "" for rate in tried),
            in_digits(best_rate(found)),
        ]
        for method, found in losses.items()
    ]
    return Table("rates", ["val_loss at rate", *map(in_digits, tried), "chosen"], rows)


def words(study: Seeds, losses: dict[str, Losses], seeds: int, jobs: int, command: str) -> list[str]:
    """What the page says of the study beside the comparison's own sentences."""
    run = study.seeded("full", best_rate(losses["full"]), 1)
    tried = study.trial("full", best_rate(losses["full"]))
    config, record = read_config(run.config), run.record()
    rows, decoding = record["data"]["train_rows"], decoding_in_words(config["model"]["decoding"])
    first = in_a_row([in_digits(rate) for rate in FIRST_RATES])
    ended = [METHODS[method] for method, found in losses.items() if not is_bracketed(found)]
    return [
        TASKS[study.task].format(network=network_in_words(config, record["cost"]["parameters"])),
        f"made by: {command}",
        f"each method: {study.steps} steps of {config['data']['batch_size']} rows out of {rows:,}, {seeds} seeds; of "
        f"two validations, halfway and at the end, the better one's weights are scored; {decoding}",
        f"each learning rate is the best, by validation loss, of trainings of {study.steps // SHARE} steps with seed "
        f"{read_config(tried.config)['seed_everything']}: {first}, then half a decade to both sides of the best until "
        "both are worse"
        + (f"; of {in_a_row(ended)} the search ended before" if ended else "")
        + "; how many were tried: "
        + ", ".join(f"{METHODS[method]} {len(found)}" for method, found in losses.items()),
        f"all else is as experiments/method says, but QLoRA multiplies in float32; {jobs} runs at a time with one "
        "thread each, so that seconds compare loosely; memory is that of the process, Python and libraries included",
    ]


def network_in_words(config: Any, parameters: int) -> str:
    """Its directory's name, its size, and what is known of its training."""
    name = Path(os.path.abspath(config["model"]["network"]["path"])).name
    return f"{name}, a network of {parameters:,} parameters" + (f" {PRETRAINING[name]}" if name in PRETRAINING else "")


def decoding_in_words(decoding: Any) -> str:
    """How answers were found."""
    temperature, beams = decoding.get("temperature", 0), decoding.get("num_beams", 1)
    search = f"beam search of width {beams}" if beams > 1 else ""
    sampling = f"sampling at temperature {temperature:g}" if temperature else ""
    return " with ".join(filter(None, [search, sampling])) or "greedy decoding"


def in_a_row(words: list[str]) -> str:
    """One, two and three."""
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def write(out: Path, study: Seeds, losses: dict[str, Losses], seeds: int, jobs: int, command: str) -> Path:
    """Writes all that is kept of the study.

    Returns:
        The page of HTML.
    """
    named = [f"{METHODS['zeroshot']}={study.seeded('zeroshot', None, 1).directory}"]
    for method, found in losses.items():
        for seed in range(1, seeds + 1):
            named.append(f"{METHODS[method]}={study.seeded(method, best_rate(found), seed).directory}")
    comparison, groups = compare(find_runs(named), Options(baseline=METHODS["full"]))
    title = f"Zero-shot, full, LoRA and QLoRA: {study.task}"
    told, more = words(study, losses, seeds, jobs, command), [rates_table(losses)]
    figures = drawn(out, comparison, groups, ["png"])
    text = [f"# {title}", "\n".join(f"- {sentence}" for sentence in told)]
    text += [
        "[The page with figures and answers](comparison.html) is to be opened in a browser; all numbers in full are in "
        "[comparison.csv](comparison.csv) and [comparison.json](comparison.json)."
    ]
    text += [markdown(comparison, more).rstrip()]
    text += [f"![{figure.stem.replace('_', ' ')}]({figure.name})" for figure in figures]
    files = {
        "README.md": "\n\n".join(text) + "\n",
        "comparison.html": page(comparison, groups, title, told, more),
        "comparison.csv": csv_text(comparison),
        "comparison.json": json_text(comparison),
    }
    write_together(figures | {out / name: content.encode() for name, content in files.items()})
    return out / "comparison.html"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--network", type=Path, help="of e2e: directory of the pretrained network")
    parser.add_argument("--data", type=Path, help="of e2e: directory of train.jsonl")
    parser.add_argument("--seeds", type=int, help="of each method (default: 5 on the demo, 3 on E2E)")
    parser.add_argument("--steps", type=int, help="by default those of experiments/studies/methods_TASK.yaml")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, of one thread each")
    parser.add_argument("--root", type=Path, default=TOP / "runs" / "study", help="directory of the runs")
    parser.add_argument("--out", type=Path, help="directory of what is written (default: docs/results/TASK)")
    arguments = parser.parse_args()
    seeds = arguments.seeds or SEEDS[arguments.task]
    default = read_config(TOP / "experiments" / "studies" / f"methods_{arguments.task}.yaml")["trainer"]["max_steps"]
    steps = arguments.steps or default
    if steps < 1 or steps % (2 * SHARE):
        parser.error(f"--steps {steps}: give a multiple of {2 * SHARE}: a rate is tried for one step in {SHARE}")
    options: tuple[str, ...] = ()
    command = "make study"
    if arguments.task == "e2e":
        if not (arguments.network and arguments.data):
            parser.error("--task e2e needs --network DIR and --data DIR")
        options = ("--model.network.path", os.path.relpath(arguments.network, TOP))
        options += ("--data.path", os.path.relpath(arguments.data / "train.jsonl", TOP))
        command += " NETWORK=$NETWORK DATA=$DATA"
    changed = {"seeds": seeds != SEEDS[arguments.task], "steps": steps != default, "jobs": arguments.jobs != 2}
    said = {"seeds": seeds, "steps": steps, "jobs": arguments.jobs}
    if more := " ".join(f"--{name} {said[name]}" for name, is_changed in changed.items() if is_changed):
        command += f' STUDY="{more}"'
    root = arguments.root.resolve() / f"{steps}_steps"
    out = (arguments.out or TOP / "docs" / "results" / arguments.task).resolve()
    os.chdir(TOP)
    # networks this small are bound by calls, not by products: a second thread only waits for the first
    os.environ["OMP_NUM_THREADS"] = "1"
    study = Seeds(arguments.task, Path(os.path.relpath(root)), steps, options)
    try:
        losses = work(study, seeds, arguments.jobs)
        print(write(out, study, losses, seeds, arguments.jobs, command))
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    except UserError as error:
        print(f"study: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
