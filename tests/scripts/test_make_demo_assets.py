"""What ships in ftlab/assets: made by the script, split without leaks, and really pretrained."""

import importlib
import itertools
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab.data import FinetuneData
from ftlab.data.retention import RetentionSet
from ftlab.networks import Network

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "ftlab" / "assets"
NETWORK = ASSETS / "network"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module("make_demo_assets")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def world(script):
    return sys.modules["small_world"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(NETWORK)


@pytest.fixture(scope="module")
def splits():
    return {
        split: [json.loads(line) for line in (ASSETS / "data" / f"{split}.jsonl").read_text("utf-8").splitlines()]
        for split in ("train", "dev", "test")
    }


@pytest.fixture(scope="module")
def corpus(world):
    """The text of the first documents of both parts of the corpus that the network was pretrained on."""
    parts = (world.documents("0 worker 0"), world.later_documents("0 worker 0"))
    documents = itertools.chain.from_iterable(itertools.islice(part, 3_000) for part in parts)
    return "\n".join(d if isinstance(d, str) else "\n".join(m["content"] for m in d) for d in documents)


def names_in(world, records):
    words = {word for record in records for word in re.findall(r"\w+", record["dialogue"] + " " + record["summary"])}
    return words & set(world.NAMES)


def combinations_in(records):
    """What is done with what, and where, read off the summaries."""
    errand = re.compile(r" to (\w+) the \w+ (\w+) (?:to|at|from) the (\w+) ")
    return {errand.search(record["summary"]).groups() for record in records}


def test_data_is_the_same_bytes_for_the_seed(script, tmp_path):
    script.write_data(tmp_path, seed=0)
    for split in script.SPLIT_SIZES:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (ASSETS / "data" / f"{split}.jsonl").read_bytes()


def test_tokenizer_is_the_same_bytes_for_the_seed(script, tmp_path):
    script.write_tokenizer(tmp_path / "tokenizer", seed=0)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "tokenizer" / name).read_bytes() == (NETWORK / name).read_bytes()


def test_splits_are_large_enough_and_hold_nothing_twice(script, splits):
    assert {split: len(records) for split, records in splits.items()} == script.SPLIT_SIZES
    for column in ("dialogue", "summary"):
        values = [record[column] for records in splits.values() for record in records]
        assert len(values) == len(set(values))


def test_train_has_neither_the_names_nor_the_combinations_of_test(world, splits):
    assert names_in(world, splits["test"]) == set(world.TEST_NAMES)
    for split in ("train", "dev"):
        assert names_in(world, splits[split]) == set(world.TRAIN_NAMES)
        assert not combinations_in(splits[split]) & combinations_in(splits["test"])


def test_pretraining_saw_the_names_of_test_but_no_summary(world, splits, corpus):
    counts = {name: len(re.findall(rf" {name}\b", corpus)) for name in world.TEST_NAMES}
    assert min(counts.values()) > 300
    sentences = set(re.findall(r"On \w+ \w+, [^.\n]*\.", corpus))
    assert not sentences & {record["summary"] for records in splits.values() for record in records}
    assert not re.search(r"On \w+ \w+, \w+ (asked|promised) ", corpus)


def test_dialogues_and_summaries_are_short(tokenizer, splits):
    for records in splits.values():
        dialogues, summaries = (
            [len(ids) for ids in tokenizer([record[column] for record in records], add_special_tokens=False).input_ids]
            for column in ("dialogue", "summary")
        )
        assert min(dialogues) >= 40
        assert max(dialogues) <= 130
        assert min(summaries) >= 15
        assert max(summaries) <= 30


def test_words_of_the_world_are_single_tokens(world, tokenizer):
    for name in world.NAMES:
        assert len(tokenizer(f" {name}", add_special_tokens=False).input_ids) == 1


def test_text_of_any_kind_survives_the_tokenizer(tokenizer):
    text = "Ünknown wörds, 数字 123\n\ttabs  and two spaces"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_chat_template_begins_once_and_masks_what_the_assistant_says(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "- Mara: Hello, Ivo.\nWhere?"},
        {"role": "assistant", "content": "At the mill."},
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "On Friday."},
    ]
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids = encoded["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    said = [token for token, masked in zip(ids, encoded["assistant_masks"], strict=True) if masked]
    assert tokenizer.decode(said) == "At the mill.<|end|>On Friday.<|end|>"

    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert prompt == ids[: len(prompt)]
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    with pytest.raises(Exception, match="critic"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "No."}])


def test_network_is_small_and_really_pretrained(script, world, tokenizer):
    assert (NETWORK / "model.safetensors").stat().st_size <= 8e6
    pretrained = AutoModelForCausalLM.from_pretrained(NETWORK)
    assert {p.dtype for p in pretrained.parameters()} == {torch.float32}
    assert pretrained.config.vocab_size == len(tokenizer)
    assert pretrained.generation_config.eos_token_id == tokenizer.eos_token_id

    ids = next(script.batches(tokenizer, world.documents("held out"), 4096))
    with torch.no_grad():
        losses = [
            script.next_token_losses(network, ids, tokenizer.pad_token_id).mean().item()
            for network in (pretrained, script.new_network(tokenizer, seed=0))
        ]
    assert losses[0] < losses[1] / 3
    assert script.answer_accuracy(pretrained, tokenizer, conversations=30) > 0.9


def test_what_is_kept_of_the_corpus_is_what_the_script_writes(script, tokenizer, tmp_path):
    script.write_held_out(tmp_path, tokenizer)
    there = (ASSETS / "retention" / "corpus.jsonl").read_bytes()
    assert (tmp_path / "corpus.jsonl").read_bytes() == there
    assert len(there.splitlines()) == 2 * script.HELD_OUT


def test_the_network_has_not_seen_it_and_the_task_does_not_train_on_it(corpus):
    lines = (ASSETS / "retention" / "corpus.jsonl").read_text("utf-8").splitlines()
    texts = [re.split(r"<\|\w+\|>", json.loads(line)["text"]) for line in lines]
    told = [max(parts, key=len) for parts in texts]  # without the questions that many share
    assert not any(text in corpus for text in told)
    data = FinetuneData(
        Network(str(NETWORK)),
        str(ASSETS / "data"),
        prompt="{dialogue}",
        response="{summary}",
        retention=[RetentionSet("demo", str(ASSETS / "retention" / "corpus.jsonl"))],
    )
    assert data.prepared.size("train") == 3000  # or it would have been refused
