"""Methods, optimisers and networks that do not go with shards (FSDP2): refused before the first step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import peft
import pytest
from ranks import on_ranks
from trainings import adamw, make_data, make_module

from ftlab.errors import UserError
from ftlab.methods import LISA, AdaLoRA, LoRA, Method, Peft, QLoRA
from ftlab.modules.optimizers import Muon
from ftlab.networks import Network

Make = Callable[..., Any]


def refused(method: Callable[[], Method], optimizer: Any, network: Network, data_path: str, make_trainer: Make) -> str:
    """What training says that is refused before its first step."""
    module = make_module(method(), network, optimizer=optimizer)
    with pytest.raises(UserError) as caught:
        make_trainer(strategy="fsdp2", max_steps=1).fit(module, make_data(network, data_path, 1))
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "optimizer", "says"),
    [
        (lambda: QLoRA(r=2), adamw, "trainer.strategy fsdp2: a base in nf4 comes out of it damaged"),
        (lambda: AdaLoRA(init_r=4, target_r=2), adamw, "trainer.strategy fsdp2: AdaLoRA looks at weights"),
        (
            lambda: LISA(),
            adamw,
            "trainer.strategy fsdp2: LISA looks at weights between steps (begin, after_step), of which a process has "
            "its part alone: take ddp (ddp_find_unused_parameters_true where weights rest) or another method",
        ),
        (lambda: LoRA(r=2), Muon, "model.optimizer: Muon is not known to go value by value"),
        (
            lambda: Peft(peft.PromptTuningConfig(num_virtual_tokens=2)),
            adamw,
            "trainer.strategy fsdp2: prompt_encoder.default.embedding.weight is trained and cannot be sharded",
        ),
        (
            lambda: Peft(peft.VBLoRAConfig(r=2, num_vectors=16, vector_length=16, topk=2, target_modules=["q_proj"])),
            adamw,
            "trainer.strategy fsdp2: model.layers.0.self_attn.q_proj.vblora_vector_bank.default is a tensor of several",
        ),
        (
            lambda: Peft(peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=2)),
            adamw,
            "trainer.strategy fsdp2: AdaptionPromptModel calls the network past the hooks",
        ),
        (
            lambda: Peft(peft.OSFConfig(target_modules=["q_proj"])),
            adamw,
            "trainer.strategy fsdp2: the method changes the gradient of base_model.model.model.layers.0.self_attn",
        ),
    ],
    ids=[
        "quantised",
        "penalty",
        "resting blocks",
        "whole matrices",
        "outside",
        "shared by blocks",
        "past the hooks",
        "gradients",
    ],
)
def test_what_does_not_go_with_shards_is_refused(
    method: Callable[[], Method], optimizer: Any, says: str, network: Network, data_path: str, make_trainer: Make
) -> None:
    said = on_ranks(1, partial(refused, method, optimizer, network, data_path, make_trainer))
    assert said[0].startswith(says)
