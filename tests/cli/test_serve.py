"""`ftlab serve`: the commands, what is refused, and a real server of transformers that answers as `ftlab generate`."""

import json
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from ftlab.networks import Network


@pytest.fixture
def save_adapter(workplace: Path, network: Network) -> Callable[..., Path]:
    """Saves a LoRA by peft alone."""

    def save(name: str, rank: int = 4, base: Network = network, **options: Any) -> Path:
        options = {"target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"} | options
        peft.get_peft_model(base.model(), peft.LoraConfig(r=rank, **options)).save_pretrained(name)
        return Path(name)

    return save


@pytest.fixture
def whole(workplace: Path, network: Network) -> Path:
    """A network as an export with --merge has it."""
    return Path(shutil.copytree(network.path, "merged"))


def test_adapters_are_served_by_vllm_on_their_base(
    save_adapter: Callable[..., Path], network: Network, ftlab: Callable[..., Any]
) -> None:
    one, two = save_adapter("one"), save_adapter("two", rank=20)
    answer = ftlab("serve", one, f"b={two}", "--port", 9000)
    assert answer.code == 0
    assert answer.out == (
        f"vllm serve {network.path} --enable-lora --max-lora-rank 32 --max-loras 2 --lora-modules one=one b=two "
        "--host localhost --port 9000\n"
    )
    assert answer.err == "ftlab: vLLM is not installed here: the command is for where it is\n"
    said = json.loads(ftlab("serve", one, "--json").out)
    assert said["command"] == [*shlex.split(f"vllm serve {network.path} --enable-lora --lora-modules one=one"), *HERE]


HERE = ["--host", "localhost", "--port", "8000"]


def test_a_run_and_a_whole_network(finished: Callable[[str], Path], whole: Path, ftlab: Callable[..., Any]) -> None:
    run = finished("lora")
    assert f"--lora-modules lora={run}/model" in ftlab("serve", run).out
    full = finished("full")
    assert ftlab("serve", full).out == f"vllm serve {full}/model --host localhost --port 8000\n"
    answer = ftlab("serve", whole, "--engine", "transformers")
    assert answer.out == "transformers serve merged --host localhost --port 8000\n"
    assert "trained beside a base in nf4" in ftlab("serve", finished("qlora")).err


def test_what_cannot_be_served(
    save_adapter: Callable[..., Path],
    whole: Path,
    tied_network: Network,
    refused: Callable[..., str],
) -> None:
    one = save_adapter("one")
    assert "transformers serve takes whole networks alone" in refused("serve", one, "--engine", "transformers")
    with pytest.raises(ValueError, match=r"config\.json"):  # what transformers serve does first with it
        AutoConfig.from_pretrained(one)
    assert "vLLM takes no DoRA" in refused("serve", save_adapter("dora", use_dora=True))
    assert "vLLM takes ranks up to 512" in refused("serve", save_adapter("large", rank=600))
    other = save_adapter("other", base=tied_network)
    assert f"and {Path(tied_network.path).resolve()} for other" in refused("serve", one, other)
    Path("empty").mkdir()
    config = json.loads((whole / "config.json").read_text())
    narrow = Path(shutil.copytree(whole, "narrow"))
    LlamaForCausalLM(LlamaConfig(**(config | {"hidden_size": 32, "head_dim": 8}))).save_pretrained(narrow)
    said = refused("serve", one, "--base", narrow)
    assert "one is no adapter of narrow: model.layers.0" in said
    assert "the base /gone is not there" in refused("serve", one, "--base", "/gone")
    assert "'x' names two adapters" in refused("serve", f"x={one}", f"x={one}")
    assert "a server serves one network" in refused("serve", whole, one)
    assert "there is no directory nowhere" in refused("serve", "nowhere")
    assert "holds neither an adapter nor a network" in refused("serve", "empty")
    (whole / "model.safetensors").unlink()
    assert "merged lacks model.safetensors" in refused("serve", whole)
    (whole / "model.safetensors.index.json").write_text("{")
    assert "model.safetensors.index.json is damaged" in refused("serve", whole)


@pytest.mark.slow
def test_transformers_serves_an_export_which_answers_as_generate_does(
    finished: Callable[[str], Path], ftlab: Callable[..., Any]
) -> None:
    run = finished("lora")
    assert ftlab("export", run, "merged", "--merge", "--records", 0).code == 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = shlex.split(ftlab("serve", "merged", "--engine", "transformers", "--port", port).out)
    command[0] = str(Path(sys.executable).with_name(command[0]))
    expected = ftlab("generate", run, "--prompt", "Who cleans the rope?", "--decoding.max_new_tokens", 12).out

    def ask(path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"http://localhost:{port}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    with open("said", "wb") as said:
        server = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        for _ in range(120):
            try:
                ask("/health")
                break
            except OSError:
                assert server.poll() is None, Path("said").read_text()
                time.sleep(1)
        answer = ask(
            "/v1/chat/completions",
            {
                "model": str(Path("merged")),
                "messages": [{"role": "user", "content": "Who cleans the rope?"}],
                "temperature": 0,
                "max_tokens": 12,
            },
        )
    finally:
        server.terminate()
        server.wait(30)
    assert answer["choices"][0]["message"]["content"] == expected.removesuffix("\n")
