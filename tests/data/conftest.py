"""Tokenizers of every kind that matters, a network without weights, and files of rows."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from character_tokenizers import CHATML, character_tokenizer
from transformers import LlamaConfig, PreTrainedTokenizerFast

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
