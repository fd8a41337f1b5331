"""What preparation of data costs: the same rows by ftlab, by TRL's SFTTrainer and by `datasets.map` with the tokenizer
alone; then a second start, ten times the rows with one worker and with two, and packing.

`scripts/benchmark.py data` runs it. Each arm is a process of its own with an empty cache; arms take turns, and ratios
are within a turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benching import ASSETS, data_module, spread

PACKED_LENGTHS = 100_000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, nargs="+", default=[ASSETS / "data" / "train.jsonl"], help="JSONL files")
    parser.add_argument("--tokenizer", type=Path, default=ASSETS / "network", help="directory of a tokenizer")


def run(args: argparse.Namespace) -> dict[str, Any]:
    return benchmark_data(args.data, args.tokenizer, args.repeats)


def benchmark_data(files: list[Path], tokenizer: Path, repeats: int) -> dict[str, Any]:
    """Prints a table for each file and returns the figures."""
    figures = {}
    for file in files:
        arms = list(ARMS)
        turns = [{arm: _run(arm, file, tokenizer) for arm in arms} for _ in range(repeats)]
        rows = turns[0]["ftlab"]["rows"]
        for turn in turns:  # a figure counts only where the same work was done
            done = {arm: turn[arm]["rows"] for arm in arms if arm != "packing"}
            if any(number != rows * (10 if arm in TENFOLD else 1) for arm, number in done.items()):
                sys.exit(f"{file}: arms prepared different numbers of rows: {done}")
        seconds = {arm: spread([turn[arm]["seconds"] for turn in turns]) for arm in arms}
        compared = {
            "ftlab over TRL, rows/s": ("trl", "ftlab", "seconds"),
            "ftlab over the tokenizer alone, rows/s": ("tokenizer", "ftlab", "seconds"),
            "two workers over one, tenfold rows/s": ("tenfold", "two_workers", "seconds"),
            "peak memory, tenfold over once": ("tenfold", "ftlab", "memory"),
        }
        ratios = {name: [t[a][what] / t[b][what] for t in turns] for name, (a, b, what) in compared.items()}
        name = f"{file.parent.name}/{file.name}"
        figures[name] = {
            "rows": rows,
            "seconds": seconds,
            "ratios": {name: spread(values) for name, values in ratios.items()},
            "waste": turns[0]["packing"]["waste"],
            "turns": ratios | {arm: [turn[arm]["seconds"] for turn in turns] for arm in arms},
        }
        print(f"\n{name}: {rows:,} rows, {repeats} turns: median (smallest to largest)")
        for arm, (median, low, high) in seconds.items():
            print(f"  {arm:<14}{median:9.3f} s   ({low:.3f} to {high:.3f})")
        for what, (median, low, high) in figures[name]["ratios"].items():
            print(f"  {what:<40}{median:6.2f}   ({low:.2f} to {high:.2f})")
        for layout, waste in figures[name]["waste"].items():
            print(f"  padding of {layout:<29}{waste:7.2%}")
    return figures


def _run(arm: str, file: Path, tokenizer: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, arm, str(file), str(tokenizer)]
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
    """100,000 lengths drawn from the rows' own; and the padding of packs of the rows, of buckets and of rows at
    random, in batches of 8."""
    import numpy

    from ftlab.data.layout import padding_waste
    from ftlab.data.packing import best_fit, waste

    data = data_module(file, str(tokenizer), preparation_workers=1)
    lengths = data.rows("train").lengths
    drawn = numpy.random.default_rng(0).choice(lengths[lengths <= 2048], PACKED_LENGTHS)
    result = _measured(lambda: len(best_fit(drawn, 2048)))
    fitting = {capacity: lengths[lengths <= capacity] for capacity in (1024, 2048)}
    wastes = {f"packs of {c}": waste(row, best_fit(row, c), c) for c, row in fitting.items()}
    for layout in ("bucket", "pad"):
        wastes[f"batches of 8, {layout}"] = padding_waste(lengths, layout, 8, None, int(lengths.max()))
    return result | {"waste": wastes}


ARMS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "tokenizer": tokenizer_alone,
    "trl": trl,
    "ftlab": ftlab,
    "second_start": second_start,
    "tenfold": tenfold,
    "two_workers": lambda file, tokenizer: tenfold(file, tokenizer, 2),
    "packing": packing,
}
TENFOLD = ("tenfold", "two_workers")


if __name__ == "__main__":
    arm, file, tokenizer = sys.argv[1:]
    print(json.dumps(ARMS[arm](Path(file), Path(tokenizer))))
