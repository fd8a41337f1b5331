"""What provenance.json says of an experiment before it runs: of its code, machine, network, data and seeds."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import ftlab
from ftlab.cli.experiment import Experiment
from ftlab.networks import Network
from ftlab.runs.checkpoint_files import step_of
from ftlab.runs.code import code, own_code
from ftlab.runs.files import digests
from ftlab.runs.machine import environment, hardware, packages
from ftlab.runs.redaction import redacted

_VERSIONS = ("python", "ftlab", "torch", "lightning", "transformers", "peft", "bitsandbytes", "datasets")


def facts(experiment: Experiment) -> dict[str, Any]:
    """What a run is known by beside its configuration; `experiment`'s data are set up."""
    installed = packages()
    config = experiment.config
    fingerprints = experiment.datamodule.fingerprints()
    return {
        "versions": {name: installed[name] for name in _VERSIONS if name in installed},
        "code": code(Path.cwd()),
        "ftlab": {"version": ftlab.__version__} | own_code(Path(ftlab.__file__).resolve().parent),
        "packages": installed,
        "hardware": hardware(),
        "environment": environment(),
        "fingerprints": {
            "network": network_fingerprint(experiment.model.pretrained),
            "tokenizer": fingerprints.pop("tokenizer"),
            "data": fingerprints,
        },
        "seeds": {
            "seed_everything": config.seed_everything,
            "model": config.model.seed,
            "dropout": config.model.dropout_seed,
            "data": config.data.seed,
        },
    }


def session(experiment: Experiment, begin: str | None) -> dict[str, Any]:
    """What holds for this start of the process.

    Args:
        experiment: What it works on.
        begin: The checkpoint that it goes on from.
    """
    trainer = experiment.trainer
    return {
        "command": [redacted(word) for word in sys.argv],
        "hostname": socket.gethostname(),
        "devices": {
            "kind": trainer.strategy.root_device.type,
            "number": trainer.world_size,
            "nodes": trainer.num_nodes,
        },
        "from_step": step_of(Path(begin).resolve()) if begin else 0,
    }


def network_fingerprint(network: Network) -> dict[str, str]:
    """The digest of each file of a network's directory, by its name; of one on the hub its commit there."""
    place = Path(network.path)
    if not place.is_dir():
        return {"commit": str(getattr(network.config(), "_commit_hash", None))}
    files = sorted(path for path in place.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path.name: found for path, found in zip(files, digests(files), strict=True)}
