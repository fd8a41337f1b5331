"""Tokenizers of every kind that matters, a network without weights, and files of rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from character_tokenizers import CHATML, character_tokenizer
from transformers import LlamaConfig, PreTrainedTokenizerFast

from ftlab.data import FinetuneData
from ftlab.networks import Network


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """Sets <s> before every text, as Llama's does."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return character_tokenizer(["<unk>", "<s>", "</s>", "<pad>"], "<s> $A", **names)


@pytest.fixture(scope="session")
def closing_tokenizer() -> PreTrainedTokenizerFast:
    """Sets <s> before and </s> after every text; has no pad."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return character_tokenizer(["<unk>", "<s>", "</s>"], "<s> $A </s>", **names)


@pytest.fixture(scope="session")
def bare_tokenizer() -> PreTrainedTokenizerFast:
    """Only an end of text, as GPT-2's: no pad, no unk, and a beginning that is never used."""
    return character_tokenizer(["</s>"], bos_token="</s>", eos_token="</s>")


@pytest.fixture(scope="session")
def endless_tokenizer() -> PreTrainedTokenizerFast:
    """No end of text."""
    return character_tokenizer(["<unk>"], unk_token="<unk>")


@pytest.fixture
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """ChatML, as Qwen's; made anew for each test, since tests change its template."""
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = character_tokenizer(["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"], **names)
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory, plain_tokenizer: PreTrainedTokenizerFast) -> Network:
    """The plain tokenizer and a context of 64 tokens."""
    directory = tmp_path_factory.mktemp("network")
    plain_tokenizer.save_pretrained(directory)
    LlamaConfig(max_position_embeddings=64, vocab_size=128).save_pretrained(directory)
    return Network(str(directory))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as JSONL under a name and gives the path of the file."""

    def write_rows(name: str, rows: list[dict]) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write_rows


@pytest.fixture
def directory(write: Callable[..., str], tmp_path: Path) -> str:
    """23 rows to train on, 9 on 5 prompts to validate, 4 on 3 prompts to test."""
    write("set/train.jsonl", [{"mr": f"m{place}", "ref": "r" * (place % 5 + 1)} for place in range(23)])
    write("set/dev.jsonl", [{"mr": f"v{place // 2}", "ref": f"r{place}"} for place in range(9)])
    write("set/test.jsonl", [{"mr": mr, "ref": ref} for mr, ref in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")]])
    return str(tmp_path / "set")


@pytest.fixture
def make(network: Network, directory: str) -> Callable[..., FinetuneData]:
    """Data over the directory's columns."""

    def make_data(**options: Any) -> FinetuneData:
        return FinetuneData(
            **({"network": network, "path": directory, "prompt": "{mr}\n", "response": "{ref}"} | options)
        )

    return make_data
