"""Every file under experiments/method as it stands: its method trains, and what it saves answers as it did."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from ftlab.errors import UserError
from ftlab.methods import Method
from ftlab.networks import Network, fingerprint, frozen_tensors

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
FILES = sorted(path.stem for path in (EXPERIMENTS / "method").glob("*.yaml"))


@dataclass(frozen=True)
class Row:
    """What docs/how-to/methods.md says of a file."""

    merge: str
    few_bits: str


def guide() -> dict[str, Row]:
    """The rows of its tables that begin with a file."""
    lines = (EXPERIMENTS.parent / "docs/how-to/methods.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): Row(row[4], row[5]) for row in cells}


GUIDE = guide()
ELSEWHERE = {
    "bitfit": "the network has no biases",
    "xlora": "its adapters are the user's",
    "zeroshot": "trains nothing",
}
INVOCATION = 5  # alora.yaml: <|assistant|>


@pytest.fixture(scope="module")
def answered() -> list[dict[str, Tensor]]:
    """Two batches of eight rows, ten tokens of a prompt and ten of an answer: enough tokens for EVA at rank 16."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(2):
        ids = torch.randint(8, 1400, (8, 20), generator=generator)
        ids[:, 9] = INVOCATION
        labels = ids.clone()
        labels[:, :10] = -100
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return made


def method_of(name: str) -> Method:
    """The method of a file, built as the command line builds it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Method, "method")
    config = yaml.safe_load((EXPERIMENTS / "method" / f"{name}.yaml").read_text())["model"]
    return parser.instantiate(parser.parse_object({"method": config["method"]})).method


@pytest.mark.parametrize("name", [name for name in FILES if name not in ELSEWHERE])
def test_trains_and_opens_again(
    name: str,
    answered: list[dict[str, Tensor]],
    network: Network,
    tmp_path: Path,
) -> None:
    def logits(of: nn.Module) -> Tensor:
        """Of the first batch, without virtual tokens."""
        with torch.no_grad():
            return forward(of.eval(), answered[0])

    method = method_of(name)
    base = network.model(method.quantization)
    before = logits(base)
    torch.manual_seed(0)
    # of one batch, on which EVA comes to rest at once
    adapted = method.adapt(base, iter(answered[:1]) if method.needs_batches else None)
    if method.identity_at_start:
        torch.testing.assert_close(logits(adapted), before, rtol=0, atol=0)
    trained = method.trained(adapted)
    frozen = fingerprint(frozen_tensors(adapted, trained))

    reached = train(method, adapted, answered)

    assert reached == trained
    assert fingerprint(frozen_tensors(adapted, trained)) == frozen
    end = logits(adapted)
    assert not torch.allclose(end, before)
    method.save(adapted, tmp_path)
    torch.manual_seed(1)  # nothing of it may be drawn again
    opened = method_of(name).load(network.model(method.quantization), tmp_path)
    torch.testing.assert_close(logits(opened), end, rtol=1e-5, atol=1e-5)
    if GUIDE[name].merge == "no":
        with pytest.raises(UserError, match="export the adapter"):
            method.merge(opened)
    elif not method.quantization:  # what few bits stand for is test_every_method's
        torch.testing.assert_close(logits(method.merge(opened)), end, rtol=1e-3, atol=1e-3)


def forward(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits of the batch's own tokens, (batch, length, vocabulary): virtual tokens stand before them."""
    output = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return output.logits[:, -batch["input_ids"].shape[1] :].float()


def train(method: Method, network: nn.Module, batches: list[dict[str, Tensor]]) -> set[str]:
    """Two steps on a loss from the logits, as ftlab computes it; gives the names of what got a gradient."""
    optimizer = torch.optim.AdamW(method.param_groups(network), lr=1e-2)
    method.begin(network, steps=20)  # of which two are made: AdaLoRA lays its budget over more
    reached: set[str] = set()
    network.train()
    for step, batch in enumerate(batches, start=1):
        optimizer.zero_grad()
        predicted, targets = forward(network, batch)[:, :-1], batch["labels"][:, 1:]
        loss = nn.functional.cross_entropy(predicted.flatten(0, 1), targets.flatten())
        penalty = method.penalty(network)
        (loss if penalty is None else loss + penalty).backward()
        reached |= {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        method.after_step(network, step)
    return reached


def test_each_says_what_it_is_and_where_it_comes_from() -> None:
    for name in FILES:
        first = (EXPERIMENTS / "method" / f"{name}.yaml").read_text().split("\nmodel:")[0]
        assert first.startswith("# "), name
        # a paper, or peft's or our own words for what has none
        assert re.search(r"\d{4}\.\d{5}|20\d\d|peft", first) or name in ("full", "trainable_tokens", "zeroshot"), name


def test_the_guide_tells_of_each_and_names_the_bases_that_it_works_on() -> None:
    assert set(GUIDE) == set(FILES)
    kinds = {"4": {"nf4", "fp4"}, "8": {"int8"}}
    for name in FILES:
        if name not in ("xlora", "zeroshot"):  # the one is not built without its adapters, the other asks for no bits
            said = set().union(*(kinds[number] for number in GUIDE[name].few_bits.split(", ") if number))
            bases = method_of(name).bases & {"nf4", "fp4", "int8"}
            assert said == bases, name
