"""Tables on pages, out of the files that measurements have left under docs/results: nothing is typed twice."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

METHODS = ("zeroshot", "full", "lora", "qlora")


def _rows(file: Path) -> dict[str, dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return {row["method"]: row for row in csv.DictReader(opened)}


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def methods(results: Path) -> str:
    """What the usual methods train, keep and reach, on both tasks on which all methods were tried."""
    rows = []
    for task, name in {"demo": "the demo, 1.0 M parameters", "e2e": "E2E, 0.26 M parameters"}.items():
        measured = _rows(results / f"methods_{task}.csv")
        for method in METHODS:
            row = measured[method]
            rows.append(
                [
                    f"{method}, {name}",
                    f"{int(row['trained']):,}",
                    f"{float(row['share']):.1%}",
                    f"{int(row['model_bytes']) / 1e6:.2f} MB",
                    f"{int(row['peak_memory_bytes']) / 1e6:,.0f} MB",
                    f"{float(row['test_loss']):.3f}",
                    f"{float(row['rouge_l']):.1f}",
                ]
            )
    return _table(["", "trained", "share", "on disk", "memory of the process", "test loss", "ROUGE-L"], rows)


def gpu_memory(results: Path) -> str:
    """Peak memory on a GPU, by method, of two networks."""
    lines = (results / "gpu_memory.jsonl").read_text(encoding="utf-8").splitlines()
    measured: dict[tuple[str, str, str], dict[tuple[int, bool], float]] = {}
    for line in map(json.loads, lines):
        key = (line["network"], line["method"], line["precision"])
        measured.setdefault(key, {})[line["length"], line["checkpointing"]] = line["memory"] / 1e9
    columns = sorted({column for found in measured.values() for column in found})
    head = ["", *(f"{length:,} tokens{', checkpointing' if again else ''}" for length, again in columns)]
    rows = [
        [
            f"{network}, {method}, {precision}",
            *(f"{found[column]:.1f} GB" if column in found else "not measured" for column in columns),
        ]
        for (network, method, precision), found in sorted(measured.items())
    ]
    return _table(head, rows)


def _ratio(file: Path, network: str, method: str, other: str, **options: Any) -> float:
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    options = {"network": network, "precision": "bf16-mixed"} | options
    found = {
        line["method"]: line["memory"] for line in lines if all(line[key] == value for key, value in options.items())
    }
    return found[method] / found[other]


def memory_in_words(results: Path) -> str:
    """How much less an adapter takes on a GPU."""
    before, now = results / "gpu_memory_all_logits.jsonl", results / "gpu_memory.jsonl"
    lora = _ratio(before, "llama-3.2-1b", "lora", "full", length=512, checkpointing=True)
    long = _ratio(before, "llama-3.2-1b", "lora", "full", length=2048, checkpointing=False)
    qlora, kept = (
        _ratio(now, "llama-3.1-8b", "qlora", "lora", length=2048, checkpointing=again) for again in (True, False)
    )
    return (
        f"Of Llama 3.1 8B, QLoRA took {qlora:.0%} of what LoRA took at 2 rows of 2,048 tokens with checkpointing, and "
        f"{kept:.0%} without: the more of it are activations, the less is saved. Of Llama 3.2 1B, LoRA took {lora:.0%} "
        f"of what full fine-tuning took at 2 rows of 512 tokens with checkpointing, and {long:.0%} at 2 rows of 2,048 "
        "without; that was before the loss did without all logits."
    )


def study(results: Path) -> str:
    """What the study of the demo says of scores over seeds, and of what was forgotten."""
    comparison = json.loads((results / "demo" / "comparison.json").read_text(encoding="utf-8"))
    rows = []
    for row in comparison["rows"]:
        score, between, cost = row["score"], row["score"]["over_both"], row["cost"]
        rows.append(
            [
                row["name"],
                f"{int(cost['parameters']):,}",
                f"{cost['bytes'] / 1e6:.2f} MB",
                str(len(row["seeds"])) if row["drawn"] else "none",
                f"{score['value']:.1f}",
                f"{between['low']:.1f} to {between['high']:.1f}",
                _verdict(row["versus"]),
                *(f"{_middle(change):+.2f}" for change in row["forgetting"].values()),
            ]
        )
    head = ["", "trained", "on disk", "seeds", "ROUGE-L", "95 % interval", f"beside {comparison['baseline']}"]
    return _table([*head, "forgetting, nats a token"], rows)


def _verdict(versus: dict[str, Any] | None) -> str:
    if not versus:
        return ""
    p = versus["p"]
    return f"{versus['verdict']}, p {'< 0.001' if p < 0.001 else f'{p:.2g}'}"


def _middle(change: Any) -> float:
    """Of a change that has an interval, or none."""
    return change["value"] if isinstance(change, dict) else change


FIGURES: dict[str, Callable[[Path], str]] = {
    "methods": methods,
    "gpu_memory": gpu_memory,
    "memory_in_words": memory_in_words,
    "study": study,
}
