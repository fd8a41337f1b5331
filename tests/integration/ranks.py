"""Several processes of a distributed training, forked from this one: they have imported torch already."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PATIENCE = 300
"""Seconds until they are given up."""


def on_ranks(world_size: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns in each of so many processes, by rank.

    Lightning finds them started, as by torchrun; `work` makes the trainer.

    Raises:
        AssertionError: One of them failed, with what it said, or did not end.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory() as place:
        answers = [Path(place) / str(rank) for rank in range(world_size)]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size), "NODE_RANK": "0"}
        pids = [_forked(shared | {"LOCAL_RANK": str(rank)}, work, answers[rank]) for rank in range(world_size)]
        left, until = set(pids), time.monotonic() + PATIENCE
        try:
            while left and time.monotonic() < until:
                for pid in list(left):
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        left.discard(pid)
                        assert status == 0, answers[pids.index(pid)].read_bytes().decode()
                time.sleep(0.01)
            assert not left, f"{len(left)} of {world_size} processes had not ended after {PATIENCE} s"
        finally:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        return [pickle.loads(answer.read_bytes()) for answer in answers]


def _free_port() -> str:
    """A free one, below those that the system gives to connections, of which one could take it until it is bound."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)  # whatever a test has seeded
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return str(port)


def _forked(environment: dict[str, str], work: Callable[[], Any], answer: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ |= environment
        # makes torch's pool anew, of which a fork has no threads: threads that open a network would race to do it
        torch.set_num_threads(1)
        answer.write_bytes(pickle.dumps(work()))
        code = 0
    except BaseException:
        answer.write_text(traceback.format_exc())
    finally:
        os._exit(code)
