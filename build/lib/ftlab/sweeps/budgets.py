"""When a sweep has had enough: trials, hours, GPU-hours, or a value of the metric."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from ftlab.sweeps.ledger import Ledger

if TYPE_CHECKING:
    from ftlab.sweeps.study import Study


def spent(study: Study, ledger: Ledger) -> str | None:
    """Which budget is spent, so that nothing more is trained, in words; None where there is something left.

    `run_cap` is not among them: trials that have begun go on to their end.
    """
    given = study.directory.budgets()
    if time.time() > given.get("deadline", float("inf")):
        return f"{given['hours']:g} hours are over"
    if "gpu_hours" in given and gpu_hours(study, ledger) >= given["gpu_hours"]:
        return f"{given['gpu_hours']:g} GPU-hours are spent"
    best = ledger.best
    if "target" in given and best and best.value is not None and not study.file.better(given["target"], best.value):
        return f"{study.file.metric} has come to {given['target']:g}"
    return None


def gpu_hours(study: Study, ledger: Ledger) -> float:
    """Hours that all trials have taken, times the devices of each; those that are running count so far."""
    seconds = ledger.seconds
    for lease in study.directory.leases.glob("[!.]*"):
        try:
            seconds += max(0.0, lease.stat().st_mtime - json.loads(lease.read_text())["since"])
        except (FileNotFoundError, ValueError):  # given back, or taken, just now
            continue
    return seconds * study.devices / 3600
