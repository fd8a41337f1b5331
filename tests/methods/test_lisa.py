"""LISA: which blocks move when, that a resumed run draws the same, and how it goes on two devices."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ftlab.errors import UserError
from ftlab.methods import LISA
from ftlab.modules import Cosine, FinetuneModule
from ftlab.networks import Network, decoder_blocks, frozen_tensors

Make = Callable[..., Any]
BLOCKS = 5


@pytest.fixture(scope="module")
def deep_network(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Network:
    """The tiny network with five blocks, so that there is something to draw from."""
    directory = tmp_path_factory.mktemp("deep")
    config = LlamaConfig.from_pretrained(network.path, num_hidden_layers=BLOCKS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    network.tokenizer().save_pretrained(directory)
    return Network(str(directory))


def adapted(method: LISA, network: Network, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return method.adapt(network.model())


def awake(network: Any) -> set[int]:
    """The numbers of the blocks that train, each of them whole."""
    blocks = decoder_blocks(network)
    found = [{p.requires_grad for p in block.parameters()} for block in blocks]
    assert all(len(one) == 1 for one in found)
    return {number for number, one in enumerate(found) if True in one}


def snapshot(module: FinetuneModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.network.named_parameters()}  # type: ignore[union-attr]


def of_block(name: str) -> int | None:
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return int(found[1]) if found else None


class Watch(pl.Callback):
    """Notes of each step which blocks were drawn, which had gradients, and which moved; may write a checkpoint."""

    def __init__(self, save_at: int = 0, path: Path | None = None) -> None:
        self.save_at = save_at
        self.path = path
        self.drawn: list[set[int]] = []
        self.moved: list[set[int | None]] = []
        self.graded: list[set[int | None]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.before = snapshot(pl_module)
        self.drawn.append(awake(pl_module.network))

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.graded.append({of_block(n) for n, p in pl_module.network.named_parameters() if p.grad is not None})

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        now = snapshot(pl_module)
        self.moved.append({of_block(name) for name in now if not torch.equal(now[name], self.before[name])})
        if self.path and trainer.global_step == self.save_at and not self.path.exists():
            trainer.save_checkpoint(self.path)


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)


class TestInTraining:
    @pytest.fixture
    def fit(self, deep_network: Network, make_module: Make, make_data: Make, make_trainer: Make) -> Make:
        """Trains 12 steps, 4 an epoch, with new blocks every 3; gives the module and what was watched."""

        def run(watch: Watch, path: Path | None = None, seed: int = 42, **options: Any) -> FinetuneModule:
            torch.manual_seed(999 if path else 7)  # what each process may have drawn before
            module = make_module(
                LISA(active=2, interval=3),
                network=deep_network,
                optimizer=adam,
                schedule=Cosine(),
                seed=seed,
                **options,
            )
            make_trainer(max_epochs=3, callbacks=[watch]).fit(module, make_data(network=deep_network), ckpt_path=path)
            return module

        return run

    def test_only_the_blocks_of_the_interval_move(self, fit: Make) -> None:
        watch = Watch()
        module = fit(watch)
        assert [len(drawn) for drawn in watch.drawn] == [2] * 12
        for step, drawn in enumerate(watch.drawn):
            assert drawn == watch.drawn[step - step % 3]
            assert watch.moved[step] == watch.graded[step] == {None, *drawn}  # None is all that is not a block
        assert len({tuple(sorted(drawn)) for drawn in watch.drawn}) > 2
        others = {name for name, _ in module.network.named_parameters() if of_block(name) is None}
        assert others == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}

    def test_another_seed_draws_others(self, fit: Make) -> None:
        first, again, other = Watch(), Watch(), Watch()
        for watch, seed in ((first, 42), (again, 42), (other, 43)):
            fit(watch, seed=seed)
        assert first.drawn == again.drawn != other.drawn

    @pytest.mark.parametrize("stop", [4, 6], ids=["within an interval", "between two"])
    def test_a_resumed_run_draws_and_ends_the_same(self, stop: int, fit: Make, tmp_path: Path) -> None:
        path = tmp_path / "step.ckpt"
        whole, rest = Watch(stop, path), Watch()
        expected = fit(whole)
        checkpoint = torch.load(path, weights_only=True)
        assert set(checkpoint["state_dict"]) == {f"network.{name}" for name in snapshot(expected)}
        resumed = fit(rest, path)
        assert rest.drawn == whole.drawn[stop:]
        for name, weight in snapshot(expected).items():
            assert torch.equal(snapshot(resumed)[name], weight), name

    def test_under_gradient_checkpointing_the_weights_are_the_same(self, fit: Make) -> None:
        plain, checkpointed = fit(Watch()), fit(Watch(), gradient_checkpointing=True)
        for name, weight in snapshot(plain).items():
            torch.testing.assert_close(snapshot(checkpointed)[name], weight, rtol=1e-5, atol=1e-6)

    def test_a_second_fit_has_all_blocks_to_draw_from(
        self, deep_network: Network, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        module = make_module(LISA(active=1, interval=1), network=deep_network)
        for _ in range(2):
            trainer = make_trainer(max_steps=2)
            trainer.fit(module, make_data(network=deep_network))
            held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
            assert held == {id(p) for p in module.network.parameters()}


def test_blocks_go_to_rest_without_gradients_and_keep_their_moments(
    deep_network: Network, batches: list[dict[str, Tensor]]
) -> None:
    method = LISA(active=2, interval=1)
    network = adapted(method, deep_network)
    optimizer = adam(method.param_groups(network))
    method.begin(network, 3)
    first, batch = awake(network), batches[0]
    network(**batch).loss.backward()
    optimizer.step()
    method.after_step(network, 1)
    resting = [p for n in first - awake(network) for p in decoder_blocks(network)[n].parameters()]  # type: ignore[arg-type]
    assert resting
    assert all(p.grad is None for p in resting)
    before = [(optimizer.state[p]["step"].clone(), optimizer.state[p]["exp_avg"].clone()) for p in resting]
    assert all(moment.any() for _, moment in before)
    network(**batch).loss.backward()
    optimizer.step()
    assert all(p.grad is None for p in resting)
    for p, (step, moment) in zip(resting, before, strict=True):
        assert torch.equal(optimizer.state[p]["step"], step)
        assert torch.equal(optimizer.state[p]["exp_avg"], moment)


def test_every_block_is_drawn_as_often_as_any(deep_network: Network) -> None:
    """2 of 5 blocks, 500 times: each 200 times, within four standard deviations of sqrt(500 * 0.4 * 0.6)."""
    method = LISA(active=2, interval=1)
    network = adapted(method, deep_network)
    drawn = torch.zeros(BLOCKS)
    for step in range(500):
        method.after_step(network, step)
        drawn[list(awake(network))] += 1
    assert drawn.sum() == 1000
    assert (drawn - 200).abs().max() < 44


def test_all_is_declared_as_trained_and_none_as_frozen(deep_network: Network) -> None:
    method = LISA()
    network = adapted(method, deep_network)
    assert awake(network) == set(range(BLOCKS))  # until training begins: DDP looks then
    method.begin(network, 100)
    assert len(awake(network)) == 2
    assert method.trained(network) == {name for name, _ in network.named_parameters()}
    assert not list(frozen_tensors(network, method.trained(network)))


def test_tied_embeddings_are_trained_once_and_stay_tied(
    tied_network: Network, train: Callable[..., set[str]], tmp_path: Path
) -> None:
    method = LISA(active=1, interval=1)
    network = adapted(method, tied_network)
    method.begin(network, 3)
    train(method, network)
    method.save(network, tmp_path)
    loaded: Any = method.load(tied_network.model(), tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert "lm_head.weight" not in method.trained(network)


class TestRefusals:
    def test_more_blocks_than_there_are(self, deep_network: Network) -> None:
        with pytest.raises(UserError, match=re.escape("method.active is 6: LlamaForCausalLM has 5 blocks")):
            LISA(active=6).adapt(deep_network.model())

    @pytest.mark.parametrize("options", [{"active": 0}, {"interval": 0}, {"interval": -3}], ids=str)
    def test_numbers_below_one(self, options: dict[str, int]) -> None:
        [(name, value)] = options.items()
        with pytest.raises(UserError, match=re.escape(f"method.{name} is {value}")):
            LISA(**options)


TRAIN = """
import sys
from pathlib import Path
import lightning.pytorch as pl
import torch
from ftlab.data import FinetuneData
from ftlab.methods import LISA
from ftlab.modules import Constant, FinetuneModule
from ftlab.networks import Network

def main():
    path, data_path, directory, strategy = sys.argv[1:]
    devices = 2 if strategy.startswith("ddp") else 1
    network = Network(path, dtype="float64")
    module = FinetuneModule(
        LISA(active=1, interval=1), network, lambda groups: torch.optim.SGD(groups, lr=0.1), Constant(), metrics=[]
    )
    data = FinetuneData(network, data_path, template="plain", batch_size=4 // devices)
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, max_epochs=2, accumulate_grad_batches=2, logger=False,
        num_sanity_val_steps=0, limit_val_batches=0, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=directory,
    )
    trainer.fit(module, data)
    torch.save(module.network.state_dict(), Path(directory) / f"{strategy}{trainer.global_rank}.pt")

main()
"""


@pytest.fixture
def train_in(deep_network: Network, data_path: str, tmp_path: Path) -> Callable[[str, int], list[str]]:
    """Trains 4 steps of 8 rows in processes of their own; what they said, where one of them failed."""

    def start(strategy: str, devices: int) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(devices), "NODE_RANK": "0"}
        shared = os.environ | (ranks if devices > 1 else {})
        command = [sys.executable, "-c", TRAIN, deep_network.path, data_path, str(tmp_path), strategy]
        processes = [
            subprocess.Popen(
                command,
                env=shared | ({"LOCAL_RANK": str(rank)} if devices > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(devices)
        ]
        said = [process.communicate(timeout=300)[0] for process in processes]
        return said if any(process.returncode for process in processes) else []

    return start


@pytest.mark.slow
def test_two_devices_train_what_one_trains(train_in: Callable[[str, int], list[str]], tmp_path: Path) -> None:
    assert train_in("auto", 1) == []
    assert train_in("ddp_find_unused_parameters_true", 2) == []
    one, first, second = (
        torch.load(tmp_path / f"{name}.pt")
        for name in ("auto0", "ddp_find_unused_parameters_true0", "ddp_find_unused_parameters_true1")
    )
    for name in one:
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], one[name], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_ddp_that_waits_for_resting_blocks_says_what_to_give(train_in: Callable[[str, int], list[str]]) -> None:
    assert any("ddp_find_unused_parameters_true" in said for said in train_in("ddp", 2))
