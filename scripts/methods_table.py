"""The table of scripts/methods.py: a row a method, as Markdown and as CSV."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftlab.cli.compose import read_config
from ftlab.runs import Run

HEAD = """\
# Methods side by side

One table a task, written by `scripts/methods.py`: every method with the same steps, batches and seed, and with the same
search for its learning rate. The rate is chosen on the validation loss of trainings of a quarter of the steps: 0.001,
0.01 and 0.1, then half a decade to both sides of the best so far until both are worse. All else is as
`experiments/method/METHOD.yaml` says, but for blocks that do not divide a network's layers (`BLOCKS` in the script).

`share` is of all parameters, the method's own included; `model/` holds the tokenizer, too. Peak memory is that of the
process, Python and its libraries included. A run has one thread and several run at a time: seconds compare loosely.
Validation loss is the better of two, halfway and at the end; the weights that had it are scored. One seed a method:
small differences between rows mean nothing.
"""


@dataclass
class Row:
    """What one method came to."""

    method: str
    trained: int
    share: float
    model_bytes: int
    peak_memory_bytes: int
    seconds_a_step: float | None
    """None of a method that trains nothing."""
    rate: str
    """The learning rate chosen, in digits; empty of a method that trains nothing."""
    rates_tried: int
    rate_bracketed: bool
    """Whether lower and higher rates were tried and found worse."""
    val_loss: float
    test_loss: float
    rouge_l: float


@dataclass
class Failure:
    """Why one method came to nothing, in a sentence."""

    method: str
    failure: str


COLUMNS: dict[str, Callable[[Row], str]] = {
    "method": lambda row: row.method,
    "trained": lambda row: f"{row.trained:,}",
    "share": lambda row: f"{row.share:.2%}",
    "`model/`": lambda row: f"{row.model_bytes / 1e6:.2f} MB",
    "peak memory": lambda row: f"{row.peak_memory_bytes / 1e6:,.0f} MB",
    "s a step": lambda row: f"{row.seconds_a_step:.3f}" if row.seconds_a_step is not None else "",
    "lr": lambda row: row.rate if row.rate_bracketed else f"{row.rate}*",
    "rates tried": lambda row: f"{row.rates_tried}",
    "val loss": lambda row: f"{row.val_loss:.3f}",
    "test loss": lambda row: f"{row.test_loss:.3f}",
    "ROUGE-L": lambda row: f"{row.rouge_l:.1f}",
}


def table(results: Sequence[Row | Failure]) -> str:
    """Markdown: a line a method, and below the table those that failed."""
    rows = [result for result in results if isinstance(result, Row)]
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(show(row) for show in COLUMNS.values())} |" for row in rows]
    if not all(row.rate_bracketed for row in rows):
        lines += ["", "\\* The outermost rate tried was still the best: a better one may lie beyond it."]
    failed = [f"- `{result.method}`: {result.failure}" for result in results if isinstance(result, Failure)]
    return "\n".join(lines + (["", "Failed:", "", *failed] if failed else [])) + "\n"


def setting(runs: list[Run]) -> str:
    """On what the runs, of which there is one at least, trained, were judged and ran."""
    config, records = read_config(runs[0].config), [run.record() for run in runs]
    rows = records[0]["data"]["train_rows"]
    with runs[0].predictions("test").open(encoding="utf-8") as lines:
        prompts = sum(1 for _ in lines)
    packages = ", ".join(f"{package} {version}" for package, version in records[0]["versions"].items())
    return (
        f"{config['trainer']['max_steps']} steps of batch {config['data']['batch_size']} out of {rows:,} rows, seed "
        f"{config['seed_everything']}; {prompts} test prompts, greedy decoding.\n\n"
        f"{max(record['ended'] for record in records)[:10]}, {machine()}; {packages}."
    )


def machine() -> str:
    """The processor and how many of its cores there are."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text() if cpuinfo.is_file() else "", re.MULTILINE)
    return f"{model[1] if model else 'unknown processor'}, {os.cpu_count()} cores"


def write(out: Path, task: str, results: Sequence[Row | Failure], runs: list[Run], command: str) -> Path:
    """Writes the task's section of methods.md, whose other sections stay, and methods_TASK.csv.

    Returns:
        The path of methods.md.
    """
    out.mkdir(parents=True, exist_ok=True)
    columns = [field.name for kind in (Row, Failure) for field in dataclasses.fields(kind)]
    with (out / f"methods_{task}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(columns)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(result) for result in results)
    page = out / "methods.md"
    before = page.read_text(encoding="utf-8").split("\n## ")[1:] if page.is_file() else []
    sections = dict(text.split("\n", 1) for text in before)
    parts = [f"    {command}", *([setting(runs)] if runs else []), table(results)]
    sections[f"Task {task}"] = "\n" + "\n\n".join(parts)
    text = HEAD + "".join(f"\n## {title}\n{body.rstrip()}\n" for title, body in sections.items())
    page.write_text(text, encoding="utf-8")
    return page
