"""What the tests' sweeps run: val_loss is x squared, at each of `steps` validations a little nearer.

It leaves what a run of ftlab leaves, without torch, so that it takes milliseconds.

It goes on where it stopped, as ftlab does: a second start continues metrics.csv. At SIGTERM it exits with 75.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))

parser = argparse.ArgumentParser()
for name in ("root", "experiment", "name"):
    parser.add_argument(f"--run.{name}", dest=name)
parser.add_argument("--x", type=float)
parser.add_argument("--steps", type=int, default=3)
parser.add_argument("--seconds", type=float, default=0.0, help="each step")
parser.add_argument("--fails_above", type=float, default=float("inf"))
parser.add_argument("--needs", type=Path, help="fails where this file is not there")
parser.add_argument("--waits_for", type=Path, help="file that must be there before the second step")
options = parser.parse_args()

run = Path(options.root, options.experiment, options.name)
run.mkdir(parents=True, exist_ok=True)
with (run / "starts").open("a") as file:
    file.write(f"{os.getpid()}\n")
if options.x > options.fails_above:
    print("a line before", file=sys.stderr)
    sys.exit(f"x is {options.x}: that is too much")
if options.needs and not options.needs.exists():
    sys.exit(f"there is no {options.needs}")

curve = run / "metrics.csv"
lines = curve.read_text().splitlines() if curve.is_file() else ["step,val_loss"]
for step in range(len(lines), options.steps + 1):
    time.sleep(options.seconds)
    while step > 1 and options.waits_for and not (told or options.waits_for.exists()):
        time.sleep(0.02)
    lines.append(f"{10 * step},{options.x**2 + 1 / step - 1 / options.steps}")
    new = run / f".metrics.csv.{os.getpid()}"
    new.write_text("\n".join(lines) + "\n")
    new.replace(curve)
    if told and step < options.steps:
        sys.exit(75)
(run / "config.yaml").write_text(f"x: {options.x}\nrun: {{name: {options.name}}}\n")
(run / "provenance.json").write_text(json.dumps({"state": "finished"}))
(run / "scores.json").write_text(json.dumps({"val_loss": options.x**2}))
