"""Configurations of peft that would train or keep something else than they say are refused, each with its reason."""

from typing import Any

import peft
import pytest
from peft.tuners.boft.layer import get_fbd_cuda
from peft.tuners.lora.config import CordaConfig

from ftlab.errors import UserError
from ftlab.methods import Peft

CPT_TOKENS = {"cpt_token_ids": [5, 6], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 1], "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lambda: peft.AdaLoraConfig(total_step=10), "use that"),
        (lambda: peft.PolyConfig(), "task number"),
        (lambda: peft.MultitaskPromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "task number"),
        (lambda: peft.XLoraConfig(hidden_size=64, adapters={"0": "somewhere"}), "router"),
        (lambda: peft.ShadowConfig(), "a part of its loss"),
        (lambda: peft.CPTConfig(**CPT_TOKENS, opt_weighted_loss_type="decay"), "opt_weighted_loss_type"),
        (lambda: peft.AdamssConfig(use_asa=True), "use_asa"),
        (lambda: peft.LoraConfig(init_lora_weights="loftq", loftq_config={"loftq_bits": 4}), "QLoRA with init loftq"),
        (lambda: peft.LoraConfig(eva_config=peft.EvaConfig()), "eva_config acts with init_lora_weights eva alone"),
        (lambda: peft.LoraConfig(corda_config=CordaConfig()), "corda_config acts with init_lora_weights corda alone"),
        (lambda: peft.BOFTConfig(boft_n_butterfly_factor=2), "set boft_n_butterfly_factor to 1"),
    ],
)
def test_refused_with_a_reason(config: Any, said: str) -> None:
    if said == "use_asa":
        pytest.importorskip("sklearn")  # without it peft does not even build the configuration
    if "boft" in said and get_fbd_cuda() is not None:
        pytest.skip("peft's CUDA extension is there")
    with pytest.raises(UserError, match=said) as caught:
        Peft(config())
    assert "\n" not in str(caught.value)


def test_a_subclass_of_somebody_is_refused_the_same() -> None:
    class Mine(Peft):
        """Sees to nothing itself."""

    with pytest.raises(UserError, match="task number"):
        Mine(peft.PolyConfig())


def test_one_that_sees_to_it_is_not() -> None:
    class Mine(Peft):
        """Carries the task number in some way of its own."""

        sees_to = frozenset({"PolyConfig"})

    assert isinstance(Mine(peft.PolyConfig()).config, peft.PolyConfig)
