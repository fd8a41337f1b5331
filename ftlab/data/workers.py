"""Processes that put batches together, beside the main one."""

from __future__ import annotations

import os
import sys
from functools import cache

import torch


def default_workers() -> int:
    """None on a CPU, whose cores are busy training; on a GPU some, of those that this process may use."""
    return min(4, max(1, len(os.sched_getaffinity(0)) - 1)) if torch.cuda.is_available() else 0


@cache
def say_if_too_many(workers: int) -> None:
    """Tells of more workers than cores, as torch does at each loader, but once in a process, and by the key."""
    cores = len(os.sched_getaffinity(0))
    if workers > cores:
        print(f"ftlab: data.workers is {workers}, with {cores} cores for it: fewer are faster", file=sys.stderr)
