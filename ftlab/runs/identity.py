"""Which configurations are the same run, and in what two differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

# What says where results go, how they are shown, how fast they come or what is allowed: it does not make another run.
_NOT_PART_OF_A_RUN = (
    "config",
    "run",
    "wandb",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "model.network.trust_remote_code",
    "model.network.pickled_weights",
    "data.retention",
    "data.workers",
    "data.preparation_workers",
    "data.cache",
)
# Keys that came later, and the values by which nothing is other than before: runs without them are the same runs.
_AS_BEFORE = {"model.compile": False, "data.micro_batch": None, "data.micro_batch_memory": None}
# But this: it says which weights are kept.
_PART_OF_A_RUN = ("run.checkpoints.best_by", "run.checkpoints.best_is")


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration flattened to dotted keys, without what does not change the results."""
    return {
        key: value
        for key, value in flat(config).items()
        if not (key in _AS_BEFORE and value == _AS_BEFORE[key])
        and (key in _PART_OF_A_RUN or not any(key == name or key.startswith(f"{name}.") for name in _NOT_PART_OF_A_RUN))
    }


def short_hash(config: Mapping[str, Any]) -> str:
    """Eight hex digits of the configuration's identity."""
    text = json.dumps(identity(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys of two flat mappings whose values differ, each with the value there and here; None where it is missing."""
    keys = {**theirs, **ours}
    return {key: (theirs.get(key), ours.get(key)) for key in keys if theirs.get(key) != ours.get(key)}


def flat(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of mappings with dotted keys."""
    return dict(_flatten(mapping))


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
