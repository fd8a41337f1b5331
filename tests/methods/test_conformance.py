"""Every method that ships keeps what ftlab relies on: the conformance suite over ours, on the demo's network."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest

from ftlab.cli.experiment import Experiment
from ftlab.errors import UserError
from ftlab.methods import LISA, AdaLoRA, Full, LoRA, Method, Peft, QLoRA, ZeroShot
from ftlab.testing import check_method, examine

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
CHOICES = sorted(path.stem for path in (EXPERIMENTS / "method").glob("*.yaml"))
TRAINED = ["resume", "checkpointing", "bf16-mixed", "instances"]


@dataclass(frozen=True)
class Case:
    """A method, the base it is tried on, how many parameters it trains by hand, and what it does not do.

    The demo's network has 4 layers of width 128 with an inner width of 384, and 1,423 tokens in one matrix.
    """

    make: Callable[[], Method]
    parameters: int
    base: str = "full"
    without: tuple[str, ...] = ()


# of one layer, the inputs and outputs of its seven linear layers
SHAPES = [(128, 128)] * 4 + [(128, 384)] * 2 + [(384, 128)]
WHOLE = 1423 * 128 + 4 * (sum(a * b for a, b in SHAPES) + 2 * 128) + 128


def ranks(r: int) -> int:
    """Parameters of A and B of that rank on all linear layers."""
    return 4 * sum(r * (a + b) for a, b in SHAPES)


DAILY = {
    "zero_shot": Case(ZeroShot, 0, without=("gradient", *TRAINED)),
    "full": Case(Full, WHOLE),
    "lora": Case(lambda: LoRA(r=4, dropout=0.1), ranks(4)),
    "qlora": Case(lambda: QLoRA(r=4), ranks(4), base="nf4"),
    "adalora": Case(lambda: AdaLoRA(init_r=4, target_r=2), ranks(4) + 4 * 7 * 4),
    "ia3": Case(lambda: Peft(peft.IA3Config()), 4 * (128 + 128 + 384)),
    "prompt_tuning": Case(
        lambda: Peft(peft.PromptTuningConfig(num_virtual_tokens=8)), 8 * 128, without=("identity", "merge", "packing")
    ),
    "lisa": Case(lambda: LISA(active=1, interval=1), WHOLE),
}


@pytest.mark.parametrize("name", DAILY)
def test_a_method_of_ours_passes(name: str) -> None:
    case = DAILY[name]
    report = check_method(case.make, bases=[case.base], parameters=case.parameters)
    assert tuple(outcome.check for outcome in report.outcomes if outcome.status != "passed") == case.without


@pytest.mark.slow
@pytest.mark.parametrize("name", DAILY)
def test_it_passes_in_other_processes_too(name: str) -> None:
    case = DAILY[name]
    report = check_method(case.make(), bases=[case.base], processes=True)
    left_out = {outcome.check for outcome in report.outcomes if outcome.status != "passed"}
    assert left_out - set(case.without) == (set() if case.make().trains else {"two devices"})


# What the demo's network and records cannot show, and the words in which it is said.
ELSEWHERE = {
    "alora": "but its gradient was zero at every step",  # the tokens that call it are in none of the records
    "bitfit": "LlamaForCausalLM has none",
    "xlora": "give directories of LoRA adapters",
}


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_that_ships_passes_on_every_base_that_it_declares(choice: str) -> None:
    files = ["base.yaml", "network/demo.yaml", "data/demo.yaml", f"method/{choice}.yaml"]
    try:
        experiment = Experiment([word for file in files for word in ("-c", str(EXPERIMENTS / file))])
        said = [str(outcome) for outcome in examine(experiment.model.method).failures]
    except UserError as error:
        said = [str(error)]
    assert [sentence for sentence in said if ELSEWHERE.get(choice, "\n") not in sentence] == []
