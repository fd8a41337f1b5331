"""Optimisers through the module and its trainer: exact resume, the library used directly, and what states weigh."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import lightning.pytorch as pl
import pytest
import pytorch_optimizer
import torch
import yaml
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from ftlab.cli import main
from ftlab.errors import UserError
from ftlab.methods import Full, LoRA
from ftlab.modules import Cosine, FinetuneModule
from ftlab.modules.optimizers import APOLLO, GaLore, Muon, PagedAdamW, mark_hidden
from ftlab.networks import Network

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
Make = Callable[..., Any]

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw_8bit": lambda groups: bitsandbytes.optim.AdamW8bit(groups, lr=1e-3),
    "paged": lambda groups: PagedAdamW(groups, lr=1e-3),
    "galore": lambda groups: GaLore(groups, lr=1e-3, rank=8, update_proj_gap=2, weight_decay=0.1),
    "apollo": lambda groups: APOLLO(groups, lr=1e-3, rank=8, update_proj_gap=2, scale=4.0, weight_decay=0.1),
    "apollo_mini": lambda groups: APOLLO(groups, lr=1e-3, rank=1, update_proj_gap=2, scale=64.0, scale_type="tensor"),
    "muon": lambda groups: Muon(groups, lr=1e-3),
}


class SaveAt(pl.Callback):
    """Writes a checkpoint after one optimiser step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def trained(module: FinetuneModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_goes_on_exactly(name: str, make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path) -> None:
    """4 steps an epoch, stopped after the fifth of 8; low-rank projections change at every second step."""
    path = tmp_path / "step.ckpt"

    def module() -> FinetuneModule:
        return make_module(Full(), optimizer=OPTIMIZERS[name], schedule=Cosine())

    whole = module()
    make_trainer(max_steps=8, max_epochs=-1, callbacks=[SaveAt(5, path)]).fit(whole, make_data())
    torch.load(path, weights_only=True)
    resumed = module()
    torch.manual_seed(999)  # what another process may have drawn before
    make_trainer(max_steps=8, max_epochs=-1).fit(resumed, make_data(), ckpt_path=path)
    for key, weight in trained(whole).items():
        assert torch.equal(trained(resumed)[key], weight), key


def test_all_groups_keep_their_scale_and_their_schedule(make_module: Make, make_data: Make, make_trainer: Make) -> None:
    module = make_module(LoRA(r=4, ratio=8.0, modules_to_save=["lm_head"]), optimizer=OPTIMIZERS["muon"])
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, make_data())
    [optimizer] = trainer.optimizers
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in module.network.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == pytest.approx(8e-3 if "lora_B" in name else 1e-3), name
    kinds = {id(p): "momentum_buffer" in state for p, state in optimizer.state.items()}
    assert all(kinds[id(p)] == ("lora" in n) for n, p in module.network.named_parameters() if p.requires_grad)


# ---------------------------------------------------------------- against the library used directly


def descend(network: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids = torch.randint(8, 1400, (2, 12), generator=generator)
        network(input_ids=ids, labels=ids).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return dict(network.named_parameters())


def ours(network: Network, make: Callable[[Any], torch.optim.Optimizer]) -> dict[str, Tensor]:
    model = Full().adapt(network.model())
    mark_hidden(model)
    return descend(model, [make(Full().param_groups(model))])


def by_name(model: nn.Module, weight_decay: float) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Matrices of the layers, and the rest with no decay of norms."""
    names = dict(model.named_parameters())
    inside = {name: p for name, p in names.items() if ".layers." in name and p.ndim == 2}
    rest = [p for name, p in names.items() if name not in inside and p.ndim == 2]
    norms = [p for p in names.values() if p.ndim == 1]
    assert (len(inside), len(rest), len(norms)) == (14, 2, 5)
    groups = [{"params": rest, "weight_decay": weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return list(inside.values()), groups


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], start: nn.Module) -> None:
    for name, parameter in start.named_parameters():
        assert not torch.equal(parameter, one[name]), name
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


def test_muon_is_torchs(network: Network) -> None:
    model = network.model()
    matrices, rest = by_name(model, weight_decay=0.1)
    muon = torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    direct = descend(model, [muon, torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.95), fused=True)])
    assert_same(ours(network, lambda groups: Muon(groups, lr=1e-3)), direct, network.model())


def test_galore_is_pytorch_optimizers(network: Network) -> None:
    model = network.model()
    matrices, rest = by_name(model, weight_decay=0.1)
    low_rank = {"rank": 8, "update_proj_gap": 2, "scale": 4.0, "projection_type": "std"}
    galore = pytorch_optimizer.GaLore([{"params": matrices, **low_rank}], lr=1e-3, weight_decay=0.1)
    direct = descend(model, [galore, torch.optim.AdamW(rest, lr=1e-3, fused=True)])
    assert_same(ours(network, OPTIMIZERS["galore"]), direct, network.model())


def test_8_bits_hold_the_states_in_8_bits(network: Network) -> None:
    """Of matrices: bitsandbytes keeps what has fewer than 4,096 elements in 32."""
    optimizer = bitsandbytes.optim.AdamW8bit(Full().param_groups(network.model()), lr=1e-3, weight_decay=0.1)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = {parameter.numel() >= 4096: state["state1"].dtype for parameter, state in optimizer.state.items()}
    assert held == {True: torch.uint8, False: torch.float32}


def test_paged_is_torchs_adamw_on_the_cpu() -> None:
    weight = torch.zeros(64, 64, requires_grad=True)
    optimizer = PagedAdamW([{"params": [weight]}], lr=1e-3, weight_decay=0.1)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["fused"]
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("scale_type", ["channel", "tensor"])
@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_apollo_is_the_papers(shape: tuple[int, int], scale_type: str) -> None:
    """Algorithm 1 of arXiv 2412.05270 in float64, with the limiter of its appendix; the projection changes once."""
    rows, columns = shape
    rank, lr, decay, scale, eps = 3, 0.02, 0.1, 4.0, 1e-6
    torch.manual_seed(0)
    start = torch.randn(shape, dtype=torch.float64)
    gradients = [torch.randn(shape, dtype=torch.float64) * (1 + step) for step in range(5)]

    weight = start.clone()
    wide = weight if rows < columns else weight.T  # channels are columns
    m = v = torch.zeros(rank, max(shape), dtype=torch.float64)
    before = None
    for step, gradient in enumerate(gradients, start=1):
        generator = torch.Generator().manual_seed(1 + ((step - 1) // 3 << 32))
        drawn = (rows, rank) if rows < columns else (rank, columns)
        projection = torch.randn(drawn, generator=generator, dtype=torch.float64) / math.sqrt(rank)
        low = projection.T @ gradient if rows < columns else projection @ gradient.T
        m, v = 0.9 * m + 0.1 * low, 0.999 * v + 0.001 * low**2
        adam = m / (v.sqrt() + eps)
        if scale_type == "channel":
            factors = torch.stack([adam[:, c].norm() / (low[:, c].norm() + 1e-8) for c in range(max(shape))])
        else:
            factors = adam.norm() / (low.norm() + 1e-8)
        scaled = (gradient if rows < columns else gradient.T) * factors
        if before is not None and scaled.norm() > 1.01 * before:
            scaled = scaled * 1.01 * before / scaled.norm()
        before = scaled.norm()
        rate = lr * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        wide -= rate * math.sqrt(scale) * scaled
        wide *= 1 - lr * decay

    parameter = nn.Parameter(start.clone())
    mark_hidden(nn.ParameterList([parameter]))
    options = {"lr": lr, "weight_decay": decay, "eps": eps}
    optimizer = APOLLO(
        [{"params": [parameter]}], **options, rank=rank, update_proj_gap=3, scale=scale, scale_type=scale_type
    )
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(parameter.data, weight, rtol=1e-7, atol=1e-9)


# ---------------------------------------------------------------- which matrices, and what states weigh


def elements(optimizer: torch.optim.Optimizer, parameter: Tensor) -> int:
    held = optimizer.state[parameter]
    if "projector" in held:
        held = held | {"ortho_matrix": held["projector"].ortho_matrix}
    return sum(tensor.numel() for key, tensor in held.items() if isinstance(tensor, Tensor) and key != "step")


def test_states_in_elements(network: Network) -> None:
    """For a matrix (m, n), m the longer side: 2mn for AdamW, 2mr + rn for GaLore, 2mr + 1 for APOLLO, mn for Muon."""
    rank = 8
    sizes = {
        "galore": lambda m, n: 2 * m * rank + rank * n,
        "apollo": lambda m, n: 2 * m * rank + 1,
        "apollo_mini": lambda m, n: 2 * m + 1,
        "muon": lambda m, n: m * n,
    }
    for name, size in sizes.items():
        model = network.model()
        mark_hidden(model)
        optimizer = OPTIMIZERS[name](Full().param_groups(model))
        descend(model, [optimizer], steps=1)
        for key, parameter in model.named_parameters():
            hidden = ".layers." in key and parameter.ndim == 2
            expected = size(max(parameter.shape), min(parameter.shape)) if hidden else 2 * parameter.numel()
            assert elements(optimizer, parameter) == expected, (name, key)


def test_states_in_8_bits_on_the_cpu(network: Network) -> None:
    """From 4,096 elements on; each block of 256 has a scale, each state a table of 256 values."""
    model = network.model()
    optimizer = OPTIMIZERS["adamw_8bit"](Full().param_groups(model))
    descend(model, [optimizer], steps=1)
    for key, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        size = parameter.numel()
        held = sum(value.nbytes for value in state.values() if isinstance(value, Tensor))
        assert held == (2 * (size + 4 * math.ceil(size / 256) + 1024) if size >= 4096 else 8 * size), key


def test_hidden_are_the_matrices_of_layers(network: Network, tied_network: Network) -> None:
    def hidden(model: nn.Module) -> set[str]:
        mark_hidden(model)
        return {name for name, parameter in model.named_parameters() if parameter.hidden}  # type: ignore[attr-defined]

    for each in (network, tied_network):
        model = each.model()
        assert hidden(model) == {name for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}
    adapted = LoRA(r=2, targets=["q_proj", "embed_tokens"], modules_to_save=["lm_head"]).adapt(network.model())
    assert {name for name in hidden(adapted) if "lora" in name} == {
        name for name, _ in adapted.named_parameters() if "q_proj.lora" in name
    }
    assert not any("lm_head" in name or "embed" in name for name in hidden(adapted))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=48, n_embd=16, n_layer=1, n_head=2))
    assert hidden(gpt2) == {name for name, p in gpt2.named_parameters() if ".h." in name and p.ndim == 2}


def test_refuses_parameters_that_do_not_say(network: Network) -> None:
    with pytest.raises(UserError, match=r"mark_hidden\(network\)"):
        Muon(Full().param_groups(network.model()))


def test_refuses_parameters_without_groups(network: Network) -> None:
    with pytest.raises(UserError, match=r"Muon wants groups of parameters, as method.param_groups\(network\) gives"):
        Muon(network.model().parameters())


@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_refuses_a_rank_that_no_matrix_exceeds(
    name: str, make_module: Make, make_data: Make, make_trainer: Make
) -> None:
    module = make_module(LoRA(r=4), optimizer=OPTIMIZERS[name])
    with pytest.raises(UserError, match=r"more than 8 rows and columns.*lower its rank"):
        make_trainer(max_steps=1).fit(module, make_data())


def test_refuses_muon_without_matrices(make_module: Make, make_data: Make, make_trainer: Make) -> None:
    module = make_module(Full(["*norm*"]), optimizer=OPTIMIZERS["muon"])
    with pytest.raises(UserError, match=r"Muon is for matrices.*give torch.optim.AdamW"):
        make_trainer(max_steps=1).fit(module, make_data())


def test_says_what_to_install(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UserError, match="pip install pytorch_optimizer"):
        GaLore(Full().param_groups(network.model()))


# ---------------------------------------------------------------- the files that ship


@pytest.mark.parametrize("choice", sorted(path.stem for path in (EXPERIMENTS / "optimizer").glob("*.yaml")))
def test_each_file_trains(choice: str, network: Network, data_path: str, tmp_path: Path) -> None:
    """Two steps; where the file's rank is above the tiny network's sides, with a lower one."""
    files = ["base.yaml", "method/full.yaml", f"optimizer/{choice}.yaml"]
    options = [word for file in files for word in ("-c", str(EXPERIMENTS / file))]
    options += ["--model.network.path", network.path, "--data.path", data_path, "--data.template", "plain"]
    options += ["--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]
    options += ["--run.root", f"{tmp_path}", "--run.name", choice, "--model.decoding.max_new_tokens", "2"]
    options += ["--model.optimizer.rank", "8"] if choice == "apollo" else []
    assert main(["fit", *options]) == 0
    config = yaml.safe_load(next(tmp_path.glob(f"*/{choice}/config.yaml")).read_text())
    chosen = yaml.safe_load((EXPERIMENTS / "optimizer" / f"{choice}.yaml").read_text())["model"]["optimizer"]
    assert config["model"]["optimizer"]["class_path"] == chosen["class_path"]


# ---------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is paged between a GPU and its host")
def test_states_are_paged_on_a_gpu_and_go_on(
    make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    path, options = tmp_path / "step.ckpt", {"max_steps": 6, "max_epochs": -1, "accelerator": "gpu"}
    whole = make_module(Full(), optimizer=OPTIMIZERS["paged"])
    trainer = make_trainer(**options, callbacks=[SaveAt(3, path)])
    trainer.fit(whole, make_data())
    [optimizer] = trainer.optimizers
    assert isinstance(optimizer, bitsandbytes.optim.PagedAdamW8bit)
    resumed = make_module(Full(), optimizer=OPTIMIZERS["paged"])
    make_trainer(**options).fit(resumed, make_data(), ckpt_path=path)
    for key, weight in trained(whole).items():
        torch.testing.assert_close(trained(resumed)[key], weight, rtol=1e-3, atol=1e-5)
