"""Prompts in, new tokens out: batched decoding that leaves the network and the process as they were.

A scored answer must not depend on what else is in the batch, on the settings that happen to lie beside the
weights (generation_config.json), or on whether training is under way. `generate` sees to all three.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from ftlab.errors import UserError


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen.

    Args:
        max_new_tokens: Longest answer in tokens. A prompt that leaves less room in the network's context gets
            as many as fit.
        temperature: 0 takes the likeliest token (greedy, or beam search); above 0 samples, flatter as it grows.
        top_p: Sample among the likeliest tokens that together hold this share of the probability
            (Holtzman et al. 2020, arXiv 1904.09751); 1 keeps all.
        top_k: Sample among this many likeliest tokens; 0 keeps all.
        num_beams: Width of the beam search; 1 searches no further than the next token.
        repetition_penalty: Above 1 makes tokens that were already seen, the prompt's among them, less likely
            (Keskar et al. 2019, arXiv 1909.05858); 1 is off.
        seed: Sampling draws from this seed, so that the same batch gets the same answers.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, wrong, allowed in (
            ("max_new_tokens", self.max_new_tokens < 1, "at least 1"),
            ("temperature", not self.temperature >= 0, "0 (greedy) or more"),
            ("top_p", not 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k < 0, "0 (all tokens) or more"),
            ("num_beams", self.num_beams < 1, "at least 1"),
            ("repetition_penalty", not self.repetition_penalty > 0, "above 0 (1 is off)"),
        ):
            if wrong:
                raise UserError(f"decoding.{name} is {getattr(self, name)}: it must be {allowed}")
        if self.temperature == 0 and (self.top_p < 1 or self.top_k > 0):
            raise UserError("decoding.top_p and decoding.top_k only act on sampling: set decoding.temperature above 0")

    def config(self, max_new_tokens: int, stop_ids: Sequence[int], pad_id: int) -> GenerationConfig:
        """The same in transformers' words, for at most `max_new_tokens`."""
        # Every value that transformers would otherwise fill with a default of its own (top_k=50) is named here.
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=self.temperature > 0,
            num_beams=self.num_beams,
            repetition_penalty=self.repetition_penalty,
            use_cache=True,
            eos_token_id=list(stop_ids) or None,
            pad_token_id=pad_id,
            **(sampling if self.temperature > 0 else {}),
        )


@dataclass(frozen=True)
class DecodingChanges:
    __doc__ = Decoding.__doc__  # which the command line shows

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    def of(self, decoding: Decoding) -> Decoding:
        """A decoding with what is given here in its place; greedy decoding takes no `top_p` and `top_k` over."""
        changes: dict[str, Any] = {key: value for key, value in vars(self).items() if value is not None}
        greedy = {"top_p": 1.0, "top_k": 0} if self.temperature == 0 else {}
        return replace(decoding, **greedy | changes)


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (batch, longest prompt), with the padding in front."""
    length = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), length), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        start = length - len(prompt)
        input_ids[row, start:] = torch.tensor(prompt, dtype=torch.long)
        attention_mask[row, start:] = 1
    return input_ids, attention_mask


def generate(
    network: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    decoding: Decoding,
    stop_ids: Sequence[int],
    pad_id: int,
    adapters: Sequence[str] | None = None,
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """Answers a batch of left-padded prompts with the new tokens of each, cut before its stop token.

    Train and evaluation modes, checkpointing, the network's own generation_config and the random state of the
    process are afterwards what they were.

    Args:
        network: A transformers causal language model, or a peft.PeftModel around one.
        input_ids: Prompts, (batch, length), padding in front.
        attention_mask: 1 for the tokens of a prompt, 0 for padding, (batch, length).
        decoding: How the next token is chosen.
        stop_ids: Tokens any of which ends an answer; none means that every answer has full length.
        pad_id: Token that fills the rows that ended before the others.
        adapters: The adapter of a peft.PeftModel that each row is for; by default the one in use is for all.
        streamer: Is given the tokens of a single prompt, then each new token as it comes; not of a beam search.

    Raises:
        UserError: A prompt fills the network's context, or the network cannot generate.
        ValueError: A prompt is empty or padded at its end.
    """
    if not hasattr(network, "generate"):
        raise UserError(f"{type(network).__name__} has no generate(): only a causal language model answers prompts")
    if not attention_mask[:, -1].all():
        raise ValueError("prompts must be left-padded and hold at least one token")
    device = next(network.parameters()).device
    input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
    answers: list[list[int]] = [[]] * len(input_ids)
    with _without_gradients(network), evaluating(network), _seeded(decoding.seed, device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported")  # PEFT's, of prompt tuning: see _calls
        for new_tokens, rows in _calls(network, attention_mask, decoding.max_new_tokens):
            length = int(attention_mask[rows].sum(dim=1).max())
            # a beam is a row of its own
            each = [adapters[row] for row in rows for _ in range(decoding.num_beams)] if adapters else None
            output: Tensor = network.generate(  # type: ignore[operator]
                input_ids=input_ids[rows, -length:],
                attention_mask=attention_mask[rows, -length:],
                generation_config=decoding.config(new_tokens, stop_ids, pad_id),
                synced_gpus=False,  # of a network in shards: its processes wait for each other at every forward already
                **({"adapter_names": each} if each else {}),
                **({"streamer": streamer} if streamer else {}),
            )
            for row, tokens in zip(rows, output[:, length:].tolist(), strict=True):
                answers[row] = _until(tokens, stop_ids)
    return answers


def generate_all(
    network: nn.Module,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    stop_ids: Sequence[int],
    pad_id: int,
    batch_size: int,
    adapters: Sequence[str] | None = None,
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """Answers any number of prompts, `batch_size` of similar length at a time; answers in the prompts' order.

    Args are those of `generate`, and `adapters` one for each prompt.

    Raises:
        UserError: As `generate`.
    """
    # The longest first: if memory does not suffice, that shows at once.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    answers: list[list[int]] = [[]] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        input_ids, attention_mask = left_pad([prompts[i] for i in rows], pad_id)
        # A seed of its own for every batch, or else the same noise would choose the tokens of each.
        batch_decoding = replace(decoding, seed=decoding.seed + start)
        each = [adapters[i] for i in rows] if adapters else None
        batch = generate(network, input_ids, attention_mask, batch_decoding, stop_ids, pad_id, each, streamer)
        for i, answer in zip(rows, batch, strict=True):
            answers[i] = answer
    return answers


def virtual_tokens(network: nn.Module) -> int:
    """Tokens that a prompt method (prompt tuning and its kin) puts before each text; 0 without one."""
    return getattr(getattr(network, "active_peft_config", None), "num_virtual_tokens", None) or 0


def context_of(network: nn.Module) -> int:
    """Tokens that a prompt and its answer may have together."""
    context = getattr(network.config.get_text_config(decoder=True), "max_position_embeddings", None)  # type: ignore
    return sys.maxsize if context is None else context - virtual_tokens(network)


def no_room(length: int, context: int) -> str:
    """What is said of a prompt that fills the context."""
    return (
        f"a prompt of {length} tokens leaves no room for an answer in the network's context of {context} tokens: "
        "shorten the prompt or take a network with a longer context"
    )


def _calls(network: nn.Module, attention_mask: Tensor, max_new_tokens: int) -> list[tuple[int, list[int]]]:
    """Rows that are decoded together, and the number of new tokens that each of them may have: one group as a rule.

    Rows whose prompts leave less room in the context go apart: cutting all answers to what the longest prompt leaves
    would shorten them for the company they are in.
    """
    context = context_of(network)
    # Prompt tuning and its kin put tokens of their own before the prompt. PEFT puts them before the padding too and
    # then counts positions from the first of them, so that padding moves the prompt: rows of one length go together.
    virtual = virtual_tokens(network)
    rows: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, length in enumerate(attention_mask.sum(dim=1).tolist()):
        room = context - length
        if room < 1:
            raise UserError(no_room(length, context))
        rows[min(room, max_new_tokens), length if virtual else 0].append(row)
    return [(new_tokens, group) for (new_tokens, _), group in rows.items()]


def _until(tokens: list[int], stop_ids: Sequence[int]) -> list[int]:
    """The tokens before the first stop token."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens))]


def _without_gradients(network: nn.Module) -> AbstractContextManager[object]:
    """Inference mode; not for a network in shards: torch keeps what it gathers a block into, and could not train it."""
    sharded = any(isinstance(parameter, DTensor) for parameter in network.parameters())
    return torch.no_grad() if sharded else torch.inference_mode()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient checkpointing and without the network's own generation_config.

    Each module's attributes are set and set back one by one, because a frozen or adapted network need not be in one
    mode throughout, and because a method's train() may do more than switch a flag.
    """
    # transformers fills what our configuration leaves open from the network's own; PeftModel holds a copy.
    meanwhile = {"training": False, "gradient_checkpointing": False, "generation_config": GenerationConfig()}
    before = [
        (module, name, vars(module)[name]) for module in network.modules() for name in meanwhile if name in vars(module)
    ]
    try:
        for module, name, _ in before:
            setattr(module, name, meanwhile[name])
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers from `seed` on the CPU and on `device`; both generators are set back afterwards."""
    # transformers samples from the global generators and accepts no other; torch.manual_seed would reseed
    # every other device of the process too.
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
