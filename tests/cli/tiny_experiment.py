"""The experiment that tests of the command line run, small and as `fit -c tiny.yaml` finds it; and what it leaves."""

import hashlib
from pathlib import Path

import yaml

from ftlab.networks import Network


def write_experiment(
    place: Path,
    network: Network,
    data_path: str,
    method: str = "ftlab.methods.LoRA",
    steps: int = 4,
    validate: int = 2,
    checkpoint: int | None = None,
) -> None:
    """Writes tiny.yaml.

    Args:
        place: The directory.
        network: The base.
        data_path: Records.
        method: Class of the method.
        steps: Optimiser steps.
        validate: Steps between validations.
        checkpoint: Steps between checkpoints; None for those at the ends of epochs.
    """
    experiment = {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": steps,
            "val_check_interval": validate,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "model": {
            "method": {"class_path": method},
            "network": {"path": network.path},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}},
            "decoding": {"max_new_tokens": 4},
        },
        "data": {"path": data_path, "batch_size": 4, "batching": "pad"},
        "run": {"checkpoints": {"every_n_steps": checkpoint}},
    }
    (place / "tiny.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))


def curves(run: Path) -> list[list[str]]:
    """The cells of metrics.csv, header first, without what no two runs share: times and memory."""
    header, *rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    kept = [place for place, name in enumerate(header) if name not in ("tokens_per_second", "peak_memory")]
    return [[row[place] for place in kept] for row in [header, *rows]]


def results(run: Path) -> dict[str, str | list[list[str]]]:
    """What must not depend on how often a run was stopped, or by what: the digest of the weights and the curves."""
    # no bytes: pytest would look for hours for the smallest difference of two files
    (file,) = (run / "model").glob("*model.safetensors")
    weights = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"weights": weights, "curves": curves(run)}
