"""Every method of experiments/method on every base that there is, found by trying: docs/results/method_bases.md.

    python scripts/method_bases.py                          # writes the table
    python scripts/method_bases.py --methods lora,oft --output -
    python scripts/method_bases.py --base gptq=DIR          # a checkpoint of ftlab/assets/network, made elsewhere

A pair is tried also where the method does not declare the base, so that the table says what the refusal saves from.
torchao and HQQ checkpoints are made in place where these packages are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from jsonargparse import ArgumentParser
from method_bases_table import BASES, CHECKPOINTS, FAILS, IN_PLACE, REFUSED, UNTRIED, WORKS, Finding, page
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from ftlab.cli import quiet
from ftlab.errors import UserError
from ftlab.methods import LoRA, Method
from ftlab.networks import Network, Quantization, fingerprint, frozen_tensors

TOP = Path(__file__).resolve().parent.parent
METHODS = TOP / "experiments" / "method"
TABLE = TOP / "docs" / "results" / "method_bases.md"
NETWORK = TOP / "ftlab" / "assets" / "network"

NO_GPTQ = "gptqmodel 7.7.0, which writes and opens such checkpoints, needs torch 2.14.1 or later"

STEPS = 3
PLANNED = 1000
"""Steps that a method is told of, so that a budget that moves in training does not end within STEPS."""
EXACT = 1e-4
"""Largest relative difference of logits that float32 may make."""
EIGHT_BITS = 0.05
"""The same where LLM.int8() rounds activations to 8 bits: alone it makes 0.01 to 0.02."""


class Fault(AssertionError):  # noqa: N818
    """Something that a method owes is not so."""


@dataclass(frozen=True)
class Base:
    """One way to hold the weights.

    Args:
        kind: One of BASES.
        network: Where it is opened from.
        whole: The same network in full precision.
    """

    kind: str
    network: Network
    whole: Network

    @cached_property
    def batches(self) -> list[Tensor]:
        """Token ids (rows, length), a batch for each of STEPS; all but the last hold every token, so that a method that
        trains single ones is asked for them."""
        vocabulary, generator = self.whole.config().vocab_size, torch.Generator().manual_seed(0)
        shuffled = [torch.randperm(vocabulary, generator=generator) for _ in range(STEPS - 1)]
        every = [torch.cat([ids, ids[: -vocabulary % 32]]).reshape(-1, 32) for ids in shuffled]
        return [*every, torch.randint(vocabulary, (4, 16), generator=generator)]

    @property
    def tolerance(self) -> float:
        """Largest relative difference of logits that rounding may make."""
        return EIGHT_BITS if self.kind == "int8" else EXACT

    def open(self, method: Method) -> Any:
        """The network as the method wants it, but on this base, whether it declares that or not."""
        method.bases = frozenset(BASES)
        if self.kind in IN_PLACE:
            wanted = method.quantization or Quantization()
            kind: Any = self.kind
            method.quantization = None if kind == "full" else replace(wanted, kind=kind, compute_dtype="float32")
        return self.network.model(method.quantization)

    def dequantised(self, network: nn.Module) -> Any:
        """The weights that `network`, not adapted, stands for, in full precision."""
        plain = self.whole.model()
        for name, module in network.named_modules():
            if isinstance(plain.get_submodule(name), nn.Linear):
                plain.get_submodule(name).weight.data = dequantize_module_weight(module).detach().float()
        return plain


# ---------------------------------------------------------------- one method on one base


def find(make: Callable[[], Method], base: Base) -> Finding:
    """Tries a method on a base, though it may not declare it."""
    declared = True
    with tempfile.TemporaryDirectory() as directory:
        try:
            method = make()
            declared = base.kind in method.bases
            go_all_the_way(method, make, base, Path(directory))
        except UserError as error:
            return Finding(REFUSED, short(str(error).replace(base.network.path, "DIR").replace(directory, "DIR")))
        except Fault as fault:
            return Finding(FAILS if declared else REFUSED, str(fault))
        except Exception as error:  # whatever a method stops with
            reason = short(f"it stops with {type(error).__name__}: {error}")
            return Finding(FAILS if declared else REFUSED, reason)
    return Finding(WORKS) if declared else Finding(REFUSED, "the method does not declare it; no fault was found")


def go_all_the_way(method: Method, make: Callable[[], Method], base: Base, directory: Path) -> None:
    """Opens, adapts, trains, saves, loads, and compares with the same over the weights that the few bits stand for.

    Codes that are taken for weights show in that comparison, if nowhere else.

    Raises:
        Fault: Something is not as it should be.
    """
    expected = logits(base.open(method), base)
    network = adapted(method, base.open(method), base)
    trained, start = method.trained(network), logits(network, base)
    whole = None if base.kind == "full" else over_whole(make(), base)
    if method.identity_at_start and difference(start, expected) > base.tolerance:
        raise Fault("its start is not the base, as it declares")
    if whole is not None and difference(start, logits(whole, base)) > base.tolerance:
        raise Fault("its start is another than over the weights that the few bits stand for")
    frozen = fingerprint(frozen_tensors(network, trained))
    if method.trains:
        train(method, network, base)
    if fingerprint(frozen_tensors(network, trained)) != frozen:
        raise Fault("it changes the frozen base")
    end = logits(network, base)
    if not torch.isfinite(end).all():
        raise Fault("its answers are not finite")
    method.save(network, directory)
    again = make()
    if difference(logits(again.load(base.open(again), directory), base), end) > EXACT:
        raise Fault("saved, and loaded onto a fresh base, it answers otherwise")
    if whole is None:
        return
    for name in trained:
        # not copied into: a start from data may have shared the ranks out otherwise
        whole.get_parameter(name).data = network.get_parameter(name).data.clone()
    if difference(end, logits(whole, base)) > base.tolerance:
        raise Fault("it answers otherwise than over the weights that the few bits stand for")
    if method.trains and difference(*(gradient(n, trained, base) for n in (network, whole))) > 10 * base.tolerance:
        raise Fault("its gradient is another than over the weights that the few bits stand for")


def adapted(method: Method, network: Any, base: Base) -> nn.Module:
    """As the module adapts it, under a seed."""
    torch.manual_seed(0)
    seen = ({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids} for ids in base.batches)
    return method.adapt(network, seen if method.needs_batches else None)


def over_whole(method: Method, base: Base) -> nn.Module | None:
    """The same over the weights that the few bits stand for; None of a method that wants few bits."""
    plain = base.dequantised(base.open(method))
    method.quantization = None
    try:
        return adapted(method, plain, base)
    except UserError:
        return None


def train(method: Method, network: nn.Module, base: Base) -> None:
    """Some steps of AdamW, as the module takes them.

    Raises:
        Fault: A tensor that is trained at some step has no gradient at any.
    """
    network.train()
    optimizer = torch.optim.AdamW(method.param_groups(network), lr=1e-2)
    method.begin(network, PLANNED)
    asked, moved = set(), set()
    for step, ids in enumerate(base.batches, start=1):
        optimizer.zero_grad()
        penalty = method.penalty(network)
        mean = loss(network, ids)
        (mean if penalty is None else mean + penalty).backward()
        asked |= {name for name, p in network.named_parameters() if p.requires_grad}
        moved |= {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        method.after_step(network, step)
    if asked - moved:
        raise Fault("of what it trains, something gets no gradient")


def answers(network: nn.Module, ids: Tensor) -> Tensor:
    """Logits (rows, length, vocabulary), without the places of virtual tokens."""
    logits = network(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits[:, -ids.shape[1] :].float()


@torch.no_grad()
def logits(network: nn.Module, base: Base) -> Tensor:
    """What a network says to the last batch, in evaluation mode."""
    return answers(network.eval(), base.batches[-1])


def loss(network: nn.Module, ids: Tensor) -> Tensor:
    """The mean over a batch, in nats a token."""
    return functional.cross_entropy(answers(network, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def gradient(network: nn.Module, names: Iterable[str], base: Base) -> Tensor:
    """That of the named tensors on the last batch, in one row."""
    chosen = [network.get_parameter(name).requires_grad_(True) for name in sorted(names)]
    network.zero_grad()
    torch.manual_seed(0)  # dropout
    loss(network.train(), base.batches[-1]).backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in chosen])


def difference(one: Tensor, other: Tensor) -> float:
    """Of two tensors, relative to the second; infinite where it is not finite."""
    found = float((one - other).norm() / other.norm().clamp_min(1e-30))
    return found if math.isfinite(found) else math.inf


def short(sentence: str) -> str:
    """On one line, without what is the same for every method, and cut where a library goes into detail."""
    words = " ".join(sentence.split()).split("; its linear layers are")[0].split(", types=")[0]
    return words.rstrip(".: ") if len(words) <= 240 else words[:240].rsplit(" ", 1)[0] + " …"


# ---------------------------------------------------------------- all of them


def methods(chosen: Iterable[str] = ()) -> dict[str, Path]:
    """The files of experiments/method, by name."""
    files = {file.stem: file for file in sorted(METHODS.glob("*.yaml"))}
    if unknown := set(chosen) - set(files):
        raise SystemExit(f"experiments/method has no {min(unknown)}.yaml")
    return {name: file for name, file in files.items() if not chosen or name in chosen}


def made(file: Path, place: Path) -> Method:
    """The method of a YAML file; where it wants trained adapters, over two that are made under `place`.

    Raises:
        UserError: It refuses its options.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Method, "method")
    content = yaml.safe_load(file.read_text())["model"]["method"]
    if "adapters" in content.get("init_args", {}):
        content["init_args"]["adapters"] = [write_adapter(place / f"adapter{seed}", seed) for seed in (0, 1)]
    return parser.instantiate(parser.parse_object({"method": content})).method


def write_adapter(directory: Path, seed: int) -> str:
    """A LoRA adapter with random weights; gives its directory."""
    method = LoRA(r=4)
    torch.manual_seed(seed)
    network = method.adapt(Network(str(NETWORK)).model())
    for name in method.trained(network):
        nn.init.normal_(network.get_parameter(name), std=0.02)
    method.save(network, directory)
    return str(directory)


def bases(place: Path, given: dict[str, Path]) -> dict[str, Base | Finding]:
    """Each base, or why it cannot be tried. Checkpoints are made under `place`, or are those given by kind."""
    whole = Network(str(NETWORK))
    makers = {"torchao": write_torchao, "hqq": write_hqq}
    there: dict[str, Base | Finding] = {kind: Base(kind, whole, whole) for kind in IN_PLACE}
    for kind in CHECKPOINTS:
        if kind not in given and kind in makers and importlib.util.find_spec(kind):
            given = given | {kind: place / kind}
            makers[kind](place / kind)
        if kind in given:
            there[kind] = opened_once(Base(kind, Network(str(given[kind])), whole))
        else:
            there[kind] = Finding(UNTRIED, f"{kind} is not installed" if kind in makers else NO_GPTQ)
    return there


def opened_once(base: Base) -> Base | Finding:
    """The base; or what is said of it where no method could open it."""
    try:
        base.network.model()
    except UserError as error:
        return Finding(REFUSED, short(str(error).replace(base.network.path, "DIR")))
    return base


def write_torchao(directory: Path) -> None:
    """The network with weights of 8 bits, by torchao through transformers."""
    from torchao.quantization import Int8WeightOnlyConfig

    few_bits = transformers.TorchAoConfig(Int8WeightOnlyConfig())
    AutoModelForCausalLM.from_pretrained(NETWORK, quantization_config=few_bits).save_pretrained(directory)


def write_hqq(directory: Path) -> None:
    """The network with weights of 4 bits, by HQQ alone, in the layout of transformers 4: transformers 5 writes none."""
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    model = AutoModelForCausalLM.from_pretrained(NETWORK)
    how: dict[str, Any] = {"nbits": 4, "group_size": 32, "axis": 1}
    AutoHQQHFModel.quantize_model(model, BaseQuantizeConfig(**how), compute_dtype=torch.float32, device="cpu")
    model.config.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq", **transformers.HqqConfig(**how).to_dict()}
    (directory / "config.json").write_text(json.dumps(config, default=str))
    tensors = {name: value.contiguous().clone() for name, value in model.state_dict().items() if torch.is_tensor(value)}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def survey(chosen: Iterable[str], there: dict[str, Base | Finding], place: Path) -> dict[str, dict[str, Finding]]:
    """The finding for every method and base."""
    found: dict[str, dict[str, Finding]] = {}
    for name, file in methods(chosen).items():
        make = partial(made, file, place)
        found[name] = {kind: base if isinstance(base, Finding) else find(make, base) for kind, base in there.items()}
        print(f"{name:<24}" + "  ".join(f"{kind} {finding.word}" for kind, finding in found[name].items()), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[], help="names, with commas; all")
    parser.add_argument("--base", action="append", default=[], metavar="KIND=DIR", help="a quantised checkpoint")
    parser.add_argument("--output", default=str(TABLE), help="file; - prints")
    args = parser.parse_args()
    given = {kind: Path(directory) for kind, directory in (text.split("=", 1) for text in args.base)}
    quiet.silence()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        found = survey(args.methods, bases(Path(place), given), Path(place))
    if args.output == "-":
        print("\n" + page(found))
    else:
        Path(args.output).write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
