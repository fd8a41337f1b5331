"""Time and memory of ftlab beside its peers: each arm in a process of its own, arms in turn, ratios within a turn.

    python scripts/benchmark.py suite short|long …    # all of PERFORMANCE's figures and goals: scripts/bench_suite.py
    python scripts/benchmark.py data                  # preparation, on what ships with ftlab
    python scripts/benchmark.py data --data FILE … --tokenizer DIR
    python scripts/benchmark.py training --network SHAPE|DIR …
    python scripts/benchmark.py head
    python scripts/benchmark.py packing --network DIR --data FILE
    python scripts/benchmark.py checkpoints
    python scripts/benchmark.py start [--before DIR]

Files have prompt and completion, dialogue and summary, or mr and ref. What each part does stands in the script of its
name. Peers come with `pip install '.[bench]'`. A figure is the median over the turns, with the smallest and the
largest; to tell differences of less than 30 % apart, give `--repeats 15`.
"""

import argparse
import json
import sys
from pathlib import Path

import bench_suite
import checkpoint_cost
import data_cost
import head_cost
import packed_against_padded
import start_cost
import training_cost
from benching import machine

PARTS = {
    "suite": (bench_suite, "the short form or the long one, held against goals"),
    "data": (data_cost, "preparation of data"),
    "training": (training_cost, "a step of training"),
    "head": (head_cost, "the loss, from hidden states on"),
    "packing": (packed_against_padded, "loss and gradients of packs beside padded batches"),
    "checkpoints": (checkpoint_cost, "what checkpoints cost"),
    "start": (start_cost, "the way to the first step"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, (module, told) in PARTS.items():
        part = parts.add_parser(name, help=told, description=module.__doc__)
        part.formatter_class = argparse.RawDescriptionHelpFormatter
        module.add_options(part)
        if name != "suite":
            part.add_argument("--repeats", type=int, default=5)
            part.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    print(machine())
    figures = PARTS[args.part][0].run(args)
    if args.part != "suite" and args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if any(isinstance(figure, dict) and "refused" in figure for figure in figures.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
