"""Forgetting, measured by several processes: each its share of a text's windows, whole or in shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loops import utilities
from ranks import on_ranks
from trainings import METHODS, make_data, make_module

from ftlab.callbacks import FrozenBase
from ftlab.data.retention import RetentionSet
from ftlab.modules.retention import measure, measure_base
from ftlab.networks import Network

Make = Callable[..., Any]


def forgotten(
    method: str, strategy: str, world: int, network: Network, data_path: str, sets: list[RetentionSet], make: Make
) -> Any:
    """What base and trained network come to, as one process sees it, and the base once more."""
    utilities._distributed_is_initialized = lambda: False  # type: ignore[attr-defined]  # as over nccl
    module = make_module(METHODS[method](), network)
    data = make_data(network, data_path, 4 // world, retention=sets)
    data.room = 4
    trainer = make(devices=world, strategy=strategy, max_steps=3, callbacks=[FrozenBase()], limit_val_batches=1.0)
    before = measure_base(trainer, module, data.retained)
    trainer.fit(module, data)
    return before, measure(trainer, module, data.retained)


@pytest.mark.parametrize(("method", "strategy"), [("lora", "ddp"), ("lora", "fsdp"), ("full", "fsdp2")])
def test_processes_come_to_what_one_comes_to(
    method: str, strategy: str, network: Network, data_path: str, make_trainer: Make, tmp_path: Path
) -> None:
    texts, tasks = tmp_path / "known.jsonl", tmp_path / "task.jsonl"
    texts.write_text("".join(json.dumps({"text": f"Zeno asks Ralf {n} " * (n + 2)}) + "\n" for n in range(5)))
    rows = [{"prompt": f"Who is {n}?", "completion": f"It is {n}."} for n in range(3)]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [RetentionSet("known", str(texts), window=8), RetentionSet("task", str(tasks), score=True)]
    wide = Network(network.path, dtype="float64")
    work = partial(forgotten, method, network=wide, data_path=data_path, sets=sets, make=make_trainer)
    ((alone_before, alone_after),) = on_ranks(1, partial(work, "auto", 1))
    for before, after in on_ranks(2, partial(work, strategy, 2)):
        for found, alone in ((before, alone_before), (after, alone_after)):
            for name in ("known", "task"):
                ours, theirs = found[name].documents, alone[name].documents
                assert [(d.source, d.tokens, d.prediction) for d in ours] == [
                    (d.source, d.tokens, d.prediction) for d in theirs
                ]
                assert [d.nats for d in ours] == pytest.approx([d.nats for d in theirs], rel=1e-6)
        assert abs(after["known"].loss - before["known"].loss) > 1e-3
