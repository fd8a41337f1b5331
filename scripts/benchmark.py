"""Time and memory of ftlab beside its peers: each arm in a process of its own, arms in turn, ratios within a turn.

    python scripts/benchmark.py data                                  # on what ships with ftlab
    python scripts/benchmark.py data --data FILE … --tokenizer DIR    # with prompt, completion or dialogue, summary
    python scripts/benchmark.py checkpoints                           # see scripts/checkpoint_cost.py
    python scripts/benchmark.py training --network SHAPE|DIR …        # see scripts/training_cost.py
    python scripts/benchmark.py head                                  # see scripts/head_cost.py
    python scripts/benchmark.py start [--before DIR]                  # see scripts/start_cost.py

`data` prepares the same rows by ftlab, by TRL's SFTTrainer (`pip install '.[bench]'`) and by `datasets.map` with the
tokenizer alone; then a second start, ten times the rows with one worker and with two, and packing.
A figure is the median over the turns, with the smallest and the largest; to tell differences of less than 30 % apart,
give `--repeats 15`.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benching import data_module, spread
from checkpoint_cost import benchmark_checkpoints
from head_cost import benchmark_head
from start_cost import benchmark_start
from training_cost import ARMS as TRAININGS
from training_cost import Work, benchmark_training, network_directory

ASSETS = Path(__file__).resolve().parents[1] / "ftlab" / "assets"
PACKED_LENGTHS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    data = parts.add_parser("data", help="preparation of data")
    data.add_argument("--data", type=Path, nargs="+", default=[ASSETS / "data" / "train.jsonl"], help="JSONL files")
    data.add_argument("--tokenizer", type=Path, default=ASSETS / "network", help="directory of a tokenizer")
    data.add_argument("--repeats", type=int, default=5)
    data.add_argument("--json", type=Path, help="file for the figures")
    data.add_argument("--arm", help=argparse.SUPPRESS)  # this process is one arm
    checkpoints = parts.add_parser("checkpoints", help="what checkpoints cost")
    checkpoints.add_argument("--repeats", type=int, default=5)
    checkpoints.add_argument("--json", type=Path, help="file for the figures")
    head = parts.add_parser("head", help="the loss, from hidden states on")
    head.add_argument("--repeats", type=int, default=5)
    head.add_argument("--json", type=Path, help="file for the figures")
    start = parts.add_parser("start", help="the way to the first step")
    start.add_argument("--before", type=Path, help="another checkout of ftlab, to take turns with this one")
    start.add_argument("--repeats", type=int, default=5)
    start.add_argument("--json", type=Path, help="file for the figures")
    training = parts.add_parser("training", help="a step of training")
    training.add_argument("--network", default=str(ASSETS / "network"), help="directory, or a shape of training_cost")
    training.add_argument("--tokenizer", type=Path, default=ASSETS / "network", help="of a shape")
    training.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()), help="where shapes are made")
    training.add_argument("--data", type=Path, default=ASSETS / "data" / "train.jsonl")
    training.add_argument("--arms", nargs="+", choices=TRAININGS, default=TRAININGS[:4])
    for name, kind in (("method", str), ("precision", str), ("attention", str)):
        training.add_argument(f"--{name}", type=kind, default=getattr(Work, name))
    for name in ("length", "batch_size", "warm", "steps"):
        training.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Work, name))
    for name in ("checkpointing", "profiled"):
        training.add_argument(f"--{name}", action="store_true")
    training.add_argument("--repeats", type=int, default=5)
    training.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    if args.part == "training":
        network = network_directory(args.network, args.tokenizer, args.place)
        said = {name: getattr(args, name) for name in Work.__dataclass_fields__ if name not in ("network", "data")}
        figures = benchmark_training(Work(str(network), str(args.data.resolve()), **said), args.arms, args.repeats)
    elif args.part == "head":
        figures = benchmark_head(args.repeats)
    elif args.part == "start":
        figures = benchmark_start(args.repeats, args.before and args.before.resolve())
    elif args.part == "checkpoints":
        figures = benchmark_checkpoints(args.repeats)
    elif args.arm:
        print(json.dumps(ARMS[args.arm](args.data[0], args.tokenizer)))
        return
    else:
        figures = benchmark_data(args)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if any("refused" in figure for figure in figures.values()):
        sys.exit(1)


def benchmark_data(args: argparse.Namespace) -> dict[str, Any]:
    """Prints a table for each file and returns the figures."""
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, {_versions()}")
    figures = {}
    for file in args.data:
        arms = ["tokenizer", "trl", "ftlab", "second_start", "tenfold", "two_workers", "packing"]
        turns = [{arm: _run(arm, file, args.tokenizer) for arm in arms} for _ in range(args.repeats)]
        rows = turns[0]["ftlab"]["rows"]
        for turn in turns:  # a figure counts only where the same work was done
            assert turn["tenfold"]["rows"] == turn["two_workers"]["rows"] == 10 * rows, turn
            assert turn["trl"]["rows"] == turn["ftlab"]["rows"] == rows, turn
        seconds = {arm: spread([turn[arm]["seconds"] for turn in turns]) for arm in arms}
        compared = {
            "ftlab over TRL, rows/s": ("trl", "ftlab", "seconds"),
            "ftlab over the tokenizer alone, rows/s": ("tokenizer", "ftlab", "seconds"),
            "two workers over one, tenfold rows/s": ("tenfold", "two_workers", "seconds"),
            "peak memory, tenfold over once": ("tenfold", "ftlab", "memory"),
        }
        ratios = {name: [t[a][what] / t[b][what] for t in turns] for name, (a, b, what) in compared.items()}
        figures[str(file)] = {
            "rows": rows,
            "seconds": seconds,
            "ratios": {name: spread(values) for name, values in ratios.items()},
            "waste": turns[0]["packing"]["waste"],
        }
        print(f"\n{file.parent.name}/{file.name}: {rows:,} rows, {args.repeats} turns: median (smallest to largest)")
        for arm, (median, low, high) in seconds.items():
            print(f"  {arm:<14}{median:9.3f} s   ({low:.3f} to {high:.3f})")
        for name, (median, low, high) in figures[str(file)]["ratios"].items():
            print(f"  {name:<40}{median:6.2f}   ({low:.2f} to {high:.2f})")
        for capacity, waste in figures[str(file)]["waste"].items():
            print(f"  padding of packs of {capacity:<20}{waste:7.2%}")
    return figures


def _run(arm: str, file: Path, tokenizer: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "data", "--arm", arm, "--data", str(file), "--tokenizer", str(tokenizer)]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"FTLAB_CACHE": cache, "HF_DATASETS_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        # on both sides one thread for each process, so that what is compared is the work and not the pool of threads
        environment["TOKENIZERS_PARALLELISM"] = "false"
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"arm {arm} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _measured(work: Callable[[], int]) -> dict[str, Any]:
    start = time.perf_counter()
    rows = work()
    seconds = time.perf_counter() - start
    # of this process and of the largest of its workers, in bytes
    memory = 1024 * sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": seconds, "rows": rows, "memory": memory}


def ftlab(file: Path, tokenizer: Path, workers: int = 1) -> dict[str, Any]:
    data = data_module(file, str(tokenizer), preparation_workers=workers)

    def work() -> int:
        data.setup("fit")
        return len(data.rows("train"))

    return _measured(work)


def second_start(file: Path, tokenizer: Path) -> dict[str, Any]:
    data_module(file, str(tokenizer), preparation_workers=1).setup("fit")
    return ftlab(file, tokenizer)


def tenfold(file: Path, tokenizer: Path, workers: int = 1) -> dict[str, Any]:
    """The same rows ten times over: a set large enough for workers to be worth their start."""
    with tempfile.TemporaryDirectory() as scratch:
        large = Path(scratch) / file.name
        large.write_bytes(b"".join([file.read_bytes().rstrip() + b"\n"] * 10))
        return ftlab(large, tokenizer, workers)


def tokenizer_alone(file: Path, tokenizer: Path) -> dict[str, Any]:
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()

    def work() -> int:
        encode = AutoTokenizer.from_pretrained(tokenizer)
        rows = datasets.load_dataset("json", data_files=str(file), split="train")
        ask, answer = _columns(rows.column_names)

        def batch(rows: dict[str, list[str]]) -> dict[str, Any]:
            return encode([a + b for a, b in zip(rows[ask], rows[answer], strict=True)])

        return len(rows.map(batch, batched=True, remove_columns=rows.column_names))

    return _measured(work)


def trl(file: Path, tokenizer: Path) -> dict[str, Any]:
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()

    class Preparation(SFTTrainer):
        def __init__(self, tokenizer: Any) -> None:  # nothing but what `_prepare_dataset` reads: no network is needed
            self._tokenizer = tokenizer
            self.completion_only_loss, self.chat_template = True, None

    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(scratch, max_length=None, bf16=False, use_cpu=True, report_to="none")

        def work() -> int:
            encode = AutoTokenizer.from_pretrained(tokenizer)
            rows = datasets.load_dataset("json", data_files=str(file), split="train")
            ask, answer = _columns(rows.column_names)
            rows = rows.select_columns([ask, answer])
            if (ask, answer) != ("prompt", "completion"):
                rows = rows.rename_columns({ask: "prompt", answer: "completion"})
            return len(Preparation(encode)._prepare_dataset(rows, encode, config, False, None, "train"))

        return _measured(work)


def _columns(names: list[str]) -> tuple[str, str]:
    return ("prompt", "completion") if "completion" in names else ("dialogue", "summary")


def packing(file: Path, tokenizer: Path) -> dict[str, Any]:
    """100,000 lengths drawn from the rows' own, and the padding of packing these at two capacities."""
    import numpy

    from ftlab.data.packing import best_fit, waste

    data = data_module(file, str(tokenizer), preparation_workers=1)
    lengths = data.rows("train").lengths
    drawn = numpy.random.default_rng(0).choice(lengths[lengths <= 2048], PACKED_LENGTHS)
    result = _measured(lambda: len(best_fit(drawn, 2048)))
    fitting = {capacity: lengths[lengths <= capacity] for capacity in (1024, 2048)}
    return result | {"waste": {c: waste(row, best_fit(row, c), c) for c, row in fitting.items()}}


ARMS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "tokenizer": tokenizer_alone,
    "trl": trl,
    "ftlab": ftlab,
    "second_start": second_start,
    "tenfold": tenfold,
    "two_workers": lambda file, tokenizer: tenfold(file, tokenizer, 2),
    "packing": packing,
}


def _versions() -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("ftlab", "trl", "datasets", "transformers", "tokenizers"))


if __name__ == "__main__":
    main()
