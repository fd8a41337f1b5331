"""The chat of `ftlab generate`: a conversation, its commands, and what it survives."""

import io
import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab.cli import main
from ftlab.cli.answers import _Pieces
from ftlab.networks import Network

SHORT = ("--decoding.max_new_tokens", 6)


@pytest.fixture
def chat(ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Types lines into a chat."""

    def type_in(lines: list[str], *words: object) -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        return ftlab("generate", *words)

    return type_in


@pytest.fixture
def save_adapter(workplace: Path) -> Callable[..., Path]:
    """Saves a LoRA with random values by peft alone."""

    def save(name: str, base: Network, seed: int = 0, rank: int = 4) -> Path:
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=rank, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(base.model(), config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += 0.2 * torch.randn_like(parameter)
        adapted.save_pretrained(name, save_embedding_layers=False)
        return Path(name)

    return save


def by_transformers(network: Network, adapter: Path, turns: list[str], new_tokens: int = 6) -> str:
    """What transformers and peft answer to a conversation of user and assistant, in turn."""
    tokenizer = AutoTokenizer.from_pretrained(network.path)
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(network.path), str(adapter)).eval()
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        answer = model.generate(input_ids=ids, max_new_tokens=new_tokens, do_sample=False)
    return tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_chat_is_a_conversation_until_it_is_reset(
    chat: Callable[..., Any], save_adapter: Callable[..., Path], network: Network
) -> None:
    adapter = save_adapter("one", network)
    first = by_transformers(network, adapter, ["Who?"])
    second = by_transformers(network, adapter, ["Who?", first, "Why?"])
    alone = by_transformers(network, adapter, ["Why?"])
    assert second != alone
    answer = chat(["Who?", "Why?", "/reset", "Why?", "/exit now", "no"], "--adapter", f"a={adapter}", *SHORT)
    assert (answer.code, answer.out, answer.err) == (0, f"{first}\n{second}\n{alone}\n", "")


def test_an_adapter_is_opened_and_goes_on_with_the_conversation(
    chat: Callable[..., Any], save_adapter: Callable[..., Path], network: Network
) -> None:
    one, two = save_adapter("one", network), save_adapter("two", network, seed=1, rank=2)
    first = by_transformers(network, one, ["Who?"])
    second = by_transformers(network, two, ["Who?", first, "Why?"])
    third = by_transformers(network, one, ["Who?", first, "Why?", second, "How?"])
    typed = ["Who?", "/adapter b=two", "Why?", "/adapter", "/adapter a", "How?"]
    answer = chat(typed, "--adapter", f"a={one}", *SHORT)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"{first}\n{second}\na, b\n{third}\n"


def test_what_cannot_be_done_is_said_and_the_chat_goes_on(
    chat: Callable[..., Any], save_adapter: Callable[..., Path], network: Network, tied_network: Network
) -> None:
    one, other = save_adapter("one", network), save_adapter("other", tied_network)
    torn = save_adapter("torn", network)
    (torn / "adapter_model.safetensors").write_bytes(b"no tensors")
    first = by_transformers(network, one, ["Who?"])
    second = by_transformers(network, one, ["Who?", first, "Why?"])
    typed = [
        "Who?",
        f"/adapter b={other}",
        "/adapter b=nowhere",
        "/adapter b=",
        "/adapter b=torn",
        "/adapter c",
        "/adapter a=one",
        "long " * 200,
        "/fly",
        "/set warmth 1",
        "/set top_p 2",
        "/set seed x",
        "Why?",
        "/adapter b=one",
        "/reset",
        "Who?",
    ]
    answer = chat(typed, "--adapter", f"a={one}", *SHORT)
    assert (answer.code, answer.out) == (0, f"{first}\n{second}\n{first}\n")
    said = answer.err.splitlines()
    assert all(line.startswith("ftlab: ") for line in said)
    expected = [
        "and one base serves all adapters: a chat of its own",
        "/adapter b: there is no directory nowhere",
        "/adapter is 'b=': give NAME=DIR",
        "torn",
        "there is no adapter 'c': there are a",
        "there is an adapter 'a' already",
        "leaves no room for an answer in the network's context of 128 tokens",
        "there is no /fly: /help lists",
        "there is no 'warmth' to set",
        "decoding.top_p is 2.0",
        "seed is 'x': give a number",
    ]
    assert len(said) == len(expected), said
    assert all(words in line for words, line in zip(expected, said, strict=True)), said
    assert "/reset begins a new conversation" in said[6]


def test_what_is_set_holds_for_adapters_that_come_later(
    chat: Callable[..., Any], save_adapter: Callable[..., Path], network: Network
) -> None:
    one, two = save_adapter("one", network), save_adapter("two", network)
    answer = chat(["/set max_new_tokens 2", f"/adapter b={two}", "/set"], "--adapter", f"a={one}", *SHORT)
    assert (answer.code, answer.err) == (0, "")
    assert "max_new_tokens 2" in answer.out.split(", ")


def test_bytes_that_are_no_text_cost_one_line(
    ftlab: Callable[..., Any], save_adapter: Callable[..., Path], network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter("one", network)
    first = by_transformers(network, adapter, ["Who?"])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9?\nWho?\n"), encoding="utf-8"))
    answer = ftlab("generate", "--adapter", f"a={adapter}", *SHORT)
    assert (answer.code, answer.out) == (0, f"{first}\n")
    assert answer.err == "ftlab: the prompt is no text: it holds bytes or halves of characters that UTF-8 has not\n"


def test_decoding_is_set_in_the_chat(
    chat: Callable[..., Any], save_adapter: Callable[..., Path], network: Network
) -> None:
    given = ("--adapter", f"a={save_adapter('one', network)}", *SHORT)
    whole = chat(["Who?"], *given).out
    answer = chat(["/set max_new_tokens 2", "Who?", "/set", "/help"], *given).out
    assert whole.startswith(answer.splitlines()[0])
    assert len(answer.splitlines()[0]) < len(whole) - 1
    assert "max_new_tokens 2, temperature 0.0" in answer
    assert "/adapter NAME=DIR" in answer
    sampled = [chat(["/set temperature 5", f"/set seed {seed}", "Who?"], *given).out for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_run_by_itself_takes_no_adapters_beside_it(chat: Callable[..., Any], finished: Callable[[str], Path]) -> None:
    answer = chat(["/adapter b=x", "Who?"], finished("lora"))
    assert "this is a run by itself: ftlab generate --adapter NAME=RUN" in answer.err
    assert answer.out.count("\n") == 1


def test_pieces_come_to_the_text_and_hold_no_half_character(network: Network) -> None:
    class Bytes:
        def decode(self, tokens: list[int]) -> str:
            return bytes(tokens).decode(errors="replace")

    said: list[str] = []
    pieces = _Pieces(Bytes(), said.append)  # type: ignore[arg-type]
    pieces.put(torch.tensor([[1, 2, 3]]))
    for byte in "aé€b".encode():
        pieces.put(torch.tensor([byte]))
    pieces.end()
    assert "".join(said) == "aé€b"
    assert said == ["a", "é", "€", "b", ""]


def test_a_chat_on_a_real_terminal(save_adapter: Callable[..., Path], network: Network) -> None:
    """Typed, answered, interrupted: exit code 130 and no trace."""
    adapter = save_adapter("one", network)
    expected = by_transformers(network, adapter, ["Who?"])
    pid, terminal = pty.fork()
    if pid == 0:
        code = 1
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115  # pytest's
        try:
            code = main(["generate", "--adapter", f"a={adapter}", *map(str, SHORT)])
        finally:
            os._exit(code)
    said = ""

    def until(text: str, typed: bytes = b"") -> None:
        """Typed again while nothing comes: readline misses a signal right before it begins to wait."""
        end = time.monotonic() + 60
        nonlocal said
        while text not in said:
            assert time.monotonic() < end, said
            os.write(terminal, typed)
            if select.select([terminal], [], [], 5)[0]:
                said += os.read(terminal, 1 << 16).decode()

    until("> ")
    os.write(terminal, b"Who?\n")
    until(expected.replace("\n", "\r\n") + "\r\n> ")
    until("ftlab: stopped by the user", typed=b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)  # not before: that would end it by SIGHUP
    assert os.waitstatus_to_exitcode(status) == 130
    assert "Traceback" not in said
