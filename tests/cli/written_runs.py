"""Runs that no training has made, written by ftlab.runs, of which a test chooses every number."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import yaml

from ftlab.runs import Run

COST = {
    "trainable_parameters": 250,
    "parameters": 1000,
    "model_bytes": 2_000_000,
    "seconds": 1800.0,
    "training_seconds": 100.0,
    "peak_memory_bytes": 3_000_000_000,
    "supervised_tokens": 4_000,
    "total_tokens": 50_000,
}
FINGERPRINTS = {
    "network": {"model.safetensors": "n1"},
    "tokenizer": "t1",
    "data": {"rows": "r1", "train": "d1", "test": "d3"},
}
CURVES = """step,train_loss,total_tokens,tokens_per_second,val_loss
10,3.0,10000,1000,
20,2.0,20000,500,1.5
90,0.6,40000,400,
100,0.4,50000,500,0.7
"""  # 10 s, 20 s, 50 s and 20 s


def write_run(
    directory: Path,
    scores: Sequence[float],
    seed: int = 1,
    method: str = "ftlab.methods.LoRA",
    rate: float = 0.01,
    config: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    cost: Mapping[str, Any] | None = None,
    curves: str = CURVES,
    more_scores: Mapping[str, float] | None = None,
    state: str = "finished",
    judged: bool = True,
) -> Path:
    """Writes a run.

    Args:
        directory: Where.
        scores: rougeL of each test record.
        seed: seed_everything.
        method: Class path.
        rate: Of the optimiser.
        config: Dotted keys of the configuration that are otherwise.
        record: Keys of provenance.json that are otherwise.
        cost: Of its cost.
        curves: metrics.csv.
        more_scores: Beside test_rougeL, test_loss and val_loss.
        state: How it ended.
        judged: Whether it was scored.
    """
    said: dict[str, Any] = {
        "seed_everything": seed,
        "trainer": {"max_steps": 100},
        "model": {
            "method": {"class_path": method, "init_args": {"r": 8}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": rate}},
            "network": {"path": "net", "random_weights": False},
            "decoding": {"max_new_tokens": 8, "temperature": 0.0, "seed": 0},
        },
        "data": {"path": "data", "validation_limit": None},
        "seeds": {"order": None, "weights": None, "dropout": None},
        "run": {"name": directory.name},
    }
    for key, value in (config or {}).items():
        *above, last = key.split(".")
        place = said
        for name in above:
            place = place.setdefault(name, {})
        place[last] = value
    run = Run(directory)
    directory.mkdir(parents=True)
    run.config.write_text(yaml.safe_dump(said))
    run.metrics.write_text(curves)
    rows = {f"{split}_{what}": 10 for split in ("validation", "test") for what in ("rows", "tokens", "target_tokens")}
    facts = {"fingerprints": FINGERPRINTS, "hardware": {"cpu": "x", "gpus": None}, "steps": 100} | dict(record or {})
    run.begin(facts, {"devices": {"kind": "cpu", "number": 1, "nodes": 1}})
    run.end(state, cost=COST | dict(cost or {}), data=rows)
    run.add_scores({"val_loss": 1.0})
    if judged:
        run.add_scores({"test_loss": 1.2, "test_rougeL": float(numpy.mean(scores)), **(more_scores or {})})
        run.write_predictions("test", predictions(scores))
    return directory


def predictions(scores: Sequence[float]) -> list[dict[str, Any]]:
    """A line a record."""
    return [
        {"prompt": f"p{n}", "references": [f"r{n}"], "prediction": "a", "scores": {"rougeL": float(score)}}
        for n, score in enumerate(scores)
    ]


def write_method(
    place: Path, middle: float, seeds: int = 3, records: int = 40, spread: float = 1.0, begin: int = 1, **options: Any
) -> list[Path]:
    """Writes runs of several seeds.

    Args:
        place: Directory of the runs.
        middle: The score that the method comes to.
        seeds: How many runs.
        records: Of each.
        spread: Standard deviation among seeds.
        begin: The first seed.
        options: For `write_run`.
    """
    hard = numpy.random.default_rng(0).normal(0, 10, records)
    hard -= hard.mean()
    runs = []
    for seed in range(begin, begin + seeds):
        own = numpy.random.default_rng([seed, int(middle * 10)])
        scores = middle + hard + own.normal(0, spread) + own.normal(0, 3, records)
        runs.append(write_run(place / f"s{seed}", scores.tolist(), seed=seed, **options))
    return runs
