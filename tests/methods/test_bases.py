"""Methods on quantised bases: the daily ones here, all of them under `slow`, against the table in docs/results."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest

from ftlab.errors import UserError
from ftlab.methods import AdaLoRA, Full, LoRA, Method, Peft, QLoRA, ZeroShot
from ftlab.networks import Network, Quantization

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "results" / "method_bases.md"
TARGETS = ["q_proj", "v_proj", "up_proj"]

DAILY: dict[str, Callable[[], Method]] = {
    "lora": lambda: LoRA(r=4),
    "qlora": lambda: QLoRA(r=4),
    "dora": lambda: LoRA(r=4, dora=True),
    "adalora": lambda: AdaLoRA(init_r=6, target_r=4),
    "ia3": lambda: Peft(peft.IA3Config()),
    "oft": lambda: Peft(peft.OFTConfig(oft_block_size=8, target_modules=TARGETS)),
    "vera": lambda: Peft(peft.VeraConfig(r=4, target_modules=TARGETS)),
    "prompt_tuning": lambda: Peft(peft.PromptTuningConfig(num_virtual_tokens=4)),
    "full": Full,
}
NOT_ON = {("dora", "int8"), ("full", "nf4"), ("full", "int8")}

# what peft takes without a word, each with what it does to the answers or to the training
SILENT: dict[str, tuple[Callable[[], Any], str, str]] = {
    "hra": (lambda: peft.HRAConfig(r=4, target_modules=TARGETS), "int8", "its start"),
    "deft": (lambda: peft.DeftConfig(r=4, target_modules=TARGETS), "int8", "its start"),
    "peanut": (lambda: peft.PeanutConfig(r=4, target_modules=TARGETS), "int8", "it answers otherwise"),
    "unilora": (lambda: peft.UniLoraConfig(r=4, target_modules=TARGETS), "nf4", "its start"),
}


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module("method_bases")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def tables(script: ModuleType) -> ModuleType:
    return sys.modules["method_bases_table"]


@pytest.mark.parametrize("kind", ["full", "nf4", "int8"])
@pytest.mark.parametrize("name", DAILY)
def test_a_daily_method_works_on_the_bases_that_it_declares(
    name: str, kind: str, script: ModuleType, network: Network
) -> None:
    found = script.find(DAILY[name], script.Base(kind, network, network))
    assert (found.word, found.why) == ("works", "") if (name, kind) not in NOT_ON else found.word == "refused"


@pytest.mark.parametrize("name", SILENT)
def test_codes_that_are_taken_for_weights_are_seen_and_refused(name: str, script: ModuleType, network: Network) -> None:
    config, kind, why = SILENT[name]
    found = script.find(lambda: Peft(config()), script.Base(kind, network, network))
    assert why in found.why
    with pytest.raises(UserError, match=f"base in {kind}"):
        Peft(config(), Quantization(kind))  # type: ignore[arg-type]


def test_the_baseline_is_tried_too(script: ModuleType, network: Network) -> None:
    assert script.find(ZeroShot, script.Base("full", network, network)).word == "works"


def test_a_fault_of_a_method_is_found(script: ModuleType, network: Network) -> None:
    class Careless(LoRA):
        """Moves the base, too."""

        def after_step(self, network: Any, step: int) -> None:
            network.get_parameter("base_model.model.model.norm.weight").data += 1

    found = script.find(lambda: Careless(r=4), script.Base("nf4", network, network))
    assert (found.word, found.why) == ("fails", "it changes the frozen base")


def test_the_table_is_read_back_as_it_was_written(tables: ModuleType) -> None:
    works, fails = tables.Finding("works"), tables.Finding("fails", "it stops with ValueError: 1. of (2)")
    untried, refused = tables.Finding("not tried", "no such package"), tables.Finding("refused", fails.why)
    found = {
        "one": dict.fromkeys(tables.BASES, works) | {"awq": untried},
        "two_more": dict.fromkeys(tables.BASES, fails) | {"int8": refused},
    }
    assert tables.read_table(tables.table(found)) == found
    assert tables.read_table(tables.page(found)) == found


def test_the_table_has_a_row_for_every_method(script: ModuleType, tables: ModuleType) -> None:
    rows = tables.read_table(TABLE.read_text())
    assert set(rows) == set(script.methods()), "run scripts/method_bases.py"
    assert all(found.word != "fails" for row in rows.values() for found in row.values())


@pytest.mark.slow
def test_the_table_is_what_is_found_by_trying(script: ModuleType, tables: ModuleType, tmp_path: Path) -> None:
    """On the bases that this machine can open: torchao and HQQ only where they are installed."""
    written = tables.read_table(TABLE.read_text())
    there = {k: base for k, base in script.bases(tmp_path, {}).items() if base.__class__ is not tables.Finding}
    found = script.survey([], there, tmp_path)
    assert {name: {kind: written[name][kind] for kind in there} for name in written} == found
