"""Methods that put tokens of their own before the text: room for them, packing, and activations computed again."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch

from ftlab.errors import UserError
from ftlab.methods import Peft

Make = Callable[..., Any]
CAUSAL = {"task_type": "CAUSAL_LM"}


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-2)


@pytest.mark.parametrize(
    "config",
    [peft.PromptTuningConfig(num_virtual_tokens=5, **CAUSAL), peft.PrefixTuningConfig(num_virtual_tokens=5, **CAUSAL)],
    ids=["prompt_tuning", "prefix_tuning"],
)
class TestVirtualTokens:
    def test_train_and_answer(
        self, config: peft.PeftConfig, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        module, data = make_module(Peft(config), optimizer=adam), make_data()
        make_trainer(max_steps=2).fit(module, data)
        data.answers_in_validation = True
        make_trainer(limit_val_batches=1.0).validate(module, data, verbose=False)
        assert len(module.tally.predictions) == 5

    def test_must_fit_into_the_context_with_the_longest_row(
        self, config: peft.PeftConfig, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        config = type(config)(num_virtual_tokens=120, **CAUSAL)  # of 128
        with pytest.raises(UserError, match=r"context is 128: set data\.max_length to 8"):
            make_trainer(max_steps=1).fit(make_module(Peft(config)), make_data())

    def test_packing_is_refused(
        self, config: peft.PeftConfig, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        with pytest.raises(UserError, match=r"set data\.batching to bucket"):
            make_trainer(max_steps=1).fit(make_module(Peft(config)), make_data(batching="pack", max_length=64))


def test_a_prefix_cannot_be_computed_again(make_module: Make, make_data: Make, make_trainer: Make) -> None:
    method = Peft(peft.PrefixTuningConfig(num_virtual_tokens=5, **CAUSAL))
    with pytest.raises(UserError, match="checkpointing"):
        make_trainer(max_steps=1).fit(make_module(method, gradient_checkpointing=True), make_data())
