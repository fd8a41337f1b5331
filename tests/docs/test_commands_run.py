"""Every command of the documentation does what it says, on small data: those of a page one after the other.

Left out are those that want a cluster, more devices than there are or a package apart (NOT_HERE); that they are
understood is in test_commands.py. Networks and data of the hub are the small ones of the package here.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pages import NETWORK, PAGES, ROOT, commands, filled_in, name, named_files

pytestmark = pytest.mark.slow

NOT_HERE = {
    r"--on slurm(?!.*--dry-run)": "a cluster: tests marked slurm",
    r"--trainer\.devices 8": "eight devices",
    r"--harness": "lm-evaluation-harness, a package apart: tests/evaluation",
    r"data/SET\.yaml": "the real data sets, each with a page of results",
    r"wikitext2": "a set of the hub",
    r"offloaded": "a GPU: tests/gpu",
}
PAGES_RUN = [page for page in PAGES if commands(page) and page.name != "tutorial.md"]
SHORT = "--trainer.max_steps 2 --trainer.limit_val_batches 1 --trainer.accelerator cpu"
"""Of every `fit` that does not go on with a run. Where the page gives the run no name, it lies apart: what a page
compares are the runs that it takes for granted."""
FEW = "--trainer.limit_test_batches 2"
RUNS = {
    "demo_lora": ("demo_lora/NAME", "demo/a1b2c3d4", "e2e/a1b2c3d4", "e2e/b2c3d4e5", "my_lora/RUN"),
    "demo_full": ("demo_full/one", "my_full/one"),
    "demo_qlora": ("demo_qlora/one",),
    "e2e_lora": ("e2e_lora/1f2e3d4c", "e2e_lora/seed1"),
}
"""Runs that pages take for granted, by the experiment of each."""
TYPED = {"generate": "Who cleans the rope?\n"}


def run(place: Path, command: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command, comments=True)
    words, out = (words[:-2], words[-1]) if words[-2:-1] == [">"] else (words, None)
    done = subprocess.run(
        [sys.executable, "-m", "ftlab", *words],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "FTLAB_CACHE": str(place / "cache")},
        input=TYPED.get(words[0], ""),
        capture_output=True,
        text=True,
    )
    if out:
        (place / out).write_text(done.stdout)
    return done


def must_run(place: Path, command: str) -> str:
    done = run(place, command)
    assert done.returncode == 0, f"ftlab {command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def small(path: Path) -> None:
    """Has a sweep try two trials of two steps, and a study every method at two rates with one seed."""
    sweep = yaml.safe_load(path.read_text())
    tried = sweep["parameters"]
    tried |= {"trainer.max_steps": {"value": 2}, "trainer.val_check_interval": {"value": 2}}
    if "config" in tried:
        tried |= {"seed_everything": {"value": 1}, "model.optimizer.lr": {"values": [0.001, 0.01]}}
        path.write_text(yaml.safe_dump(sweep))
    else:
        path.write_text(yaml.safe_dump(sweep | {"run_cap": 2}))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's experiments, small data of the shapes that they read, and runs."""
    place = tmp_path_factory.mktemp("world") / "it"
    shutil.copytree(ROOT / "experiments", place / "experiments")
    for linked in ("ftlab", "slurm"):
        (place / linked).symlink_to(ROOT / linked)
    for example in (ROOT / "docs/examples").glob("*.py"):
        shutil.copy(example, place)
    for network in (place / "experiments/network").glob("*.yaml"):
        network.write_text(yaml.safe_dump({"model": {"network": {"path": str(NETWORK)}}}))
    for sweep in [*(place / "experiments/sweeps").glob("*.yaml"), *(place / "experiments/studies").glob("demo_*.yaml")]:
        small(sweep)
    lines = (ROOT / "ftlab/assets/data/train.jsonl").read_text().splitlines()[:80]
    rows = [json.loads(line) for line in lines]
    shapes = {
        "my_data/train": rows,
        "data/e2e/train": [{"mr": row["dialogue"][:60], "ref": row["summary"]} for row in rows[:60]],
        "data/e2e/dev": [{"mr": row["dialogue"][-60:], "ref": row["summary"]} for row in rows[60:]],
        "dialogsum/train": rows[:60],
        "dialogsum/dev": rows[60:],
        "prompts": [{"prompt": row["dialogue"]} for row in rows[:3]],
        "pairs": [{"prompt": row["dialogue"], "completion": row["summary"]} for row in rows],
    }
    for file, written in shapes.items():
        path = place / f"{file}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in written))
    with (place / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("review", "summary"), *((row["dialogue"], row["summary"]) for row in rows)])
    data = place / "experiments/data/dialogsum.yaml"
    text = data.read_text().replace("knkarthick/dialogsum", "dialogsum")
    data.write_text(text.replace("max_length: 1024", "max_length: 512"))  # the small network's context
    for experiment, names in RUNS.items():
        for named in names:
            parent, own = named.split("/")
            seed = f"--seed_everything {own.removeprefix('seed')}" if own.startswith("seed") else ""
            its = f"--run.experiment {parent} --run.name {own} {seed}"
            must_run(place, f"fit -c experiments/{experiment}.yaml {SHORT} {its}")
            must_run(place, f"test -c runs/{named}/config.yaml {FEW}")
    must_run(place, "export runs/e2e/a1b2c3d4 exports/long")
    return place


def prepared(command: str) -> str:
    """A command of a page as it is run here."""
    command = re.sub(r"\$DATA", "data/e2e", command)
    command = re.sub(r"(?<==)(?:DIR|somewhere)\b", "exports/long", filled_in(command))
    if command.startswith("fit ") and " -c runs/" not in command and "help" not in command:
        command = f"{command} {SHORT}" + ("" if "--run.name" in command else " --run.root made")
    if command.startswith("test "):
        command = f"{command} {FEW}"
    return f"{command} --yes" if command.startswith("rm ") else command


@pytest.mark.parametrize("page", PAGES_RUN, ids=name)
def test_commands_do_what_they_say(page: Path, world: Path, tmp_path: Path) -> None:
    place = tmp_path / "it"
    shutil.copytree(world, place, symlinks=True)
    for file, text in named_files(page).items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(text.replace("$NETWORK", str(NETWORK)))
        if "sweeps/" in file:
            small(place / file)
    wrong: dict[str, str] = {}
    printed: list[str] = []
    for command in dict.fromkeys(commands(page)):
        if any(re.search(pattern, command) for pattern in NOT_HERE):
            continue
        runs = [line for line in printed if line.startswith("runs/")]  # which xargs puts in the place of FILE
        for told in [command.replace("FILE", line) for line in runs] if "FILE" in command and runs else [command]:
            done = run(place, prepared(told))
            if done.returncode:
                wrong[told] = f"{done.stdout[-500:]}{done.stderr[-1500:]}"
            printed = done.stdout.splitlines()
    assert not wrong, "\n".join(f"ftlab {command}\n{said}" for command, said in wrong.items())
