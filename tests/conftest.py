"""Tiny networks and data, made anew for every session, and the parts that train them."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
os.environ["WANDB_MODE"] = "disabled"
os.environ["OMP_NUM_THREADS"] = "1"  # networks this small only wait for a second thread

import hypothesis
import lightning.pytorch as pl
import pytest
import terminals
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from terminals import Terminal
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import ftlab
from ftlab import progress
from ftlab.data import FinetuneData
from ftlab.evaluation.generation import Decoding
from ftlab.methods import Full, Method
from ftlab.modules import Constant, FinetuneModule
from ftlab.networks import Network
from ftlab.runs import Run

# What holds does not depend on how fast the machine is, or on what else it does.
hypothesis.settings.register_profile("ftlab", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("ftlab")

ASSETS = Path(ftlab.__file__).parent / "assets"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the session's own, for this process and those that it starts."""
    os.environ["FTLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return Path(os.environ["FTLAB_CACHE"])


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """Two Llama layers with random weights and the demo's tokenizer; input and output embeddings apart."""
    return _write_network(tmp_path_factory.mktemp("network"), tied=False)


@pytest.fixture(scope="session")
def tied_network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """The same with one matrix for input and output embeddings."""
    return _write_network(tmp_path_factory.mktemp("tied"), tied=True)


def _write_network(directory: Path, tied: bool) -> Network:
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "network")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.1,  # the default 0.02 answers almost the same to everything
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Network(str(directory))


@pytest.fixture(scope="session")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """15 rows to train on, 5 to validate and 4 to test, with answers of very different lengths."""
    directory = tmp_path_factory.mktemp("data")
    sentence = "Zeno asks Ralf to clean fifty tiny ropes at the bridge because the guard is late"
    words = sentence.split()
    for split, size in {"train": 15, "dev": 5, "test": 4}.items():
        rows = [
            {"prompt": f"{words[n % 11]} {split} {n}", "completion": " ".join(words[n % 5 : n % 5 + 1 + 3 * (n % 4)])}
            for n in range(size)
        ]
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(directory)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run directory that is not there yet."""
    return Run(tmp_path / "runs" / "experiment" / "run")


class Curves(Logger):
    """What was logged, by step, in memory."""

    name = "curves"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.setdefault(step or 0, {}).update(metrics)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def curve(self, name: str) -> list[float]:
        """The values of one metric in the order of the steps."""
        return [row[name] for _, row in sorted(self.rows.items()) if name in row]


@pytest.fixture
def curves() -> Curves:
    return Curves()


@pytest.fixture
def make_data(network: Network, data_path: str) -> Callable[..., FinetuneData]:
    """Data in plain template, so that sequences stay short."""

    def make(**options: Any) -> FinetuneData:
        return FinetuneData(**({"network": network, "path": data_path, "template": "plain", "batch_size": 4} | options))

    return make


@pytest.fixture
def make_module(network: Network) -> Callable[..., FinetuneModule]:
    """A module that trains by plain gradient descent at a constant rate, so that steps can be computed by hand."""

    def make(method: Method | None = None, **options: Any) -> FinetuneModule:
        defaults = {
            "network": network,
            "optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1),
            "schedule": Constant(),
            "decoding": Decoding(max_new_tokens=8),
            "metrics": ["rougeL", "chrf", "exact_match"],
        }
        return FinetuneModule(method or Full(), **(defaults | options))

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    """A quiet trainer on the CPU, which logs every step."""

    def make(**options: Any) -> pl.Trainer:
        defaults = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "enable_checkpointing": any(isinstance(c, Checkpoint) for c in options.get("callbacks", [])),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "default_root_dir": tmp_path,
        }
        return pl.Trainer(**(defaults | options))

    return make


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Is standard error, to bars: pytest puts its own back between a fixture and the test."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with terminals.opened() as opened:
        monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=opened.file))
        yield opened


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars are drawn from the beginning on, at every step."""
    monkeypatch.setattr(progress, "_SOON", 0.0)
    monkeypatch.setattr(progress, "_AGAIN", 0.0)
    monkeypatch.setattr(threading.Timer, "start", lambda timer: timer.function())
    monkeypatch.setattr(threading.Timer, "join", lambda timer: None)
