"""`ftlab generate`: a prompt, a file of prompts, a chat."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from ftlab.cli.generate import _decoded, _parser
from ftlab.cli.sentences import parse
from ftlab.evaluation.generation import Decoding, DecodingChanges
from ftlab.networks import Network


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "zeroshot"])
def test_a_file_is_answered_as_the_run_was_scored(
    method: str, finished: Callable[[str], Path], data_path: str, ftlab: Callable[..., Any]
) -> None:
    run = finished(method)
    assert ftlab("test", "-c", run / "config.yaml").code == 0
    answer = ftlab("generate", run, "--file", Path(data_path) / "test.jsonl")
    assert (answer.code, answer.err) == (0, "")
    scored = [json.loads(line) for line in (run / "predictions/test.jsonl").read_text().splitlines()]
    assert [json.loads(line) for line in answer.out.splitlines()] == [
        {"prompt": row["prompt"], "prediction": row["prediction"]} for row in scored
    ]


def test_one_prompt_a_text_file_and_a_chat_answer_alike(
    finished: Callable[[str], Path], workplace: Path, ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished("lora")
    prompts = ["Who cleans the rope?", "Why?"]
    alone = [ftlab("generate", run, "--prompt", prompt).out for prompt in prompts]
    (workplace / "prompts.txt").write_text("\n".join(prompts) + "\n")
    of_file = ftlab("generate", run, "--file", "prompts.txt", "--batch_size", 1).out
    assert [json.loads(line)["prediction"] for line in of_file.splitlines()] == [text[:-1] for text in alone]
    typed = [prompts[0], "/reset", prompts[1], "/quit", "not asked"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed)))
    assert ftlab("generate", run).out == "".join(alone)
    monkeypatch.setattr("sys.stdin", io.StringIO(prompts[0]))
    assert ftlab("generate", run, "--prompt", "-").out == alone[0]


def test_decoding_can_be_chosen(finished: Callable[[str], Path], ftlab: Callable[..., Any]) -> None:
    run = finished("full")
    short, long = (
        ftlab("generate", run, "--prompt", "Go on.", "--decoding.max_new_tokens", length).out for length in (1, 12)
    )
    assert len(short) < len(long)


def test_what_is_said_of_decoding_leaves_the_rest_as_it_was() -> None:
    assert [field.name for field in fields(DecodingChanges)] == [field.name for field in fields(Decoding)]
    own = Decoding(max_new_tokens=256, temperature=0.7, top_p=0.9, seed=3)
    for words, expected in (
        ([], own),
        (["--decoding.temperature", "1.5"], replace(own, temperature=1.5)),
        (["--decoding.top_p=0.5"], replace(own, top_p=0.5)),
        (["--decoding.temperature=0", "--decoding.seed=1"], Decoding(max_new_tokens=256, seed=1)),
        (["--decoding", '{"max_new_tokens": 9}'], replace(own, max_new_tokens=9)),
    ):
        assert _decoded(parse(_parser("generate"), ["run", *words]), own) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--file", "gone.txt"], "gone.txt cannot be read"),
        (["--file", "empty.txt"], "empty.txt holds no prompts"),
        (["--prompt", "a", "--to", "b"], "--to is for the answers to --file"),
        (["--file", "one.txt", "--to", "empty.txt"], "--to: empty.txt exists"),
        (["--file", "one.txt", "--batch_size", 0], "--batch_size is 0"),
        (["--decoding.max_new_tokens", "0"], "decoding.max_new_tokens is 0"),
        (["--promt", "a"], "there is no option --promt: did you mean --prompt?"),
    ],
)
def test_refusals(
    options: list[str], said: str, finished: Callable[[str], Path], workplace: Path, refused: Callable[..., str]
) -> None:
    (workplace / "empty.txt").write_text("\n")
    (workplace / "one.txt").write_text("a")
    assert said in refused("generate", finished("lora"), *options)


def test_a_run_is_needed(workplace: Path, refused: Callable[..., str]) -> None:
    assert "there is no run at nowhere" in refused("generate", "nowhere", "--prompt", "a")
    assert refused("generate").startswith("run is missing: give the directory of a finished run, or adapters")


# ---------------------------------------------------------------- adapters

PROMPTS = ["Who cleans the rope?", "Why?", "Go on."]


@pytest.fixture
def bare(workplace: Path, network: Network) -> Callable[..., Path]:
    """Saves an adapter with random values, with peft alone: no run, no tokenizer."""

    def write(name: str, config: peft.PeftConfig | None = None, seed: int = 0) -> Path:
        torch.manual_seed(seed)
        config = config or peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(network.model(), config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += 0.2 * torch.randn_like(parameter)
        adapted.save_pretrained(name, save_embedding_layers=False)
        return Path(name)

    return write


def greedy(network: Network, adapter: Path, prompt: str, new_tokens: int = 4) -> str:
    """What the adapter answers on a base of its own: a token at a time, no batch, no cache."""
    tokenizer = AutoTokenizer.from_pretrained(network.path)
    alone = peft.PeftModel.from_pretrained(network.model(), str(adapter)).eval()
    tokens = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    tokens = list(tokens["input_ids"])
    start, stop = len(tokens), tokenizer.eos_token_id
    for _ in range(new_tokens):
        with torch.no_grad():
            token = alone(input_ids=torch.tensor([tokens])).logits[0, -1].argmax().item()
        if token == stop:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[start:], skip_special_tokens=True)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


SHORT = ("--decoding.max_new_tokens", 4)


def test_each_row_of_a_file_is_answered_by_its_adapter_as_by_it_alone(
    finished: Callable[[str], Path],
    bare: Callable[..., Path],
    network: Network,
    ftlab: Callable[..., Any],
    write_lines: Callable[..., Path],
) -> None:
    run, other = finished("lora"), bare("other")
    names = ["a", "b", "a", "b", None]
    file = write_lines(
        Path("prompts.jsonl"), [{"prompt": PROMPTS[n % 3], "adapter": name} for n, name in enumerate(names)]
    )
    answer = ftlab("generate", "--adapter", f"a={run}", "--adapter", f"b={other}", "--file", file, *SHORT)
    assert (answer.code, answer.err) == (0, "")
    expected = [
        {"prompt": PROMPTS[n % 3], "adapter": name, "prediction": greedy(network, where[name], PROMPTS[n % 3])}
        for where in ({"a": run / "model", "b": other},)
        for n, name in enumerate([*names[:4], "a", "b"])  # the last row names none: each answers
        for n in [min(n, 4)]
    ]
    assert lines(answer.out) == expected
    assert expected[0]["prediction"] != expected[3]["prediction"]
    # the run's model/ is the run, and its own decoding is that of the run: four tokens
    for place in (run, run / "model"):
        alone = ftlab("generate", "--adapter", f"a={place}", "--prompt", PROMPTS[0])
        assert alone.out == ftlab("generate", run, "--prompt", PROMPTS[0]).out
    # one decodes otherwise than the others: grouped, and in order
    own = ftlab("generate", "--adapter", f"a={run}", "--adapter", f"b={other}", "--file", file)
    assert [row["prediction"] for row in lines(own.out) if row["adapter"] == "a"] == [
        row["prediction"] for row in expected if row["adapter"] == "a"
    ]
    assert len(lines(own.out)[1]["prediction"]) > len(expected[1]["prediction"])


def test_one_prompt_is_answered_by_each_or_by_the_one_in_use(
    bare: Callable[..., Path], network: Network, ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--adapter", f"a={bare('one')}", "--adapter", f"b={bare('two', seed=1)}", *SHORT]
    a, b = (greedy(network, Path(name), PROMPTS[0]) for name in ("one", "two"))
    assert a != b
    assert ftlab("generate", *given, "--prompt", PROMPTS[0]).out == f"a: {a}\nb: {b}\n"
    assert ftlab("generate", *given, "--prompt", PROMPTS[0], "--use", "b").out == f"{b}\n"
    typed = [PROMPTS[0], "/adapter", "/reset", "/adapter b", PROMPTS[0], "/adapter c", "/quit"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed)))
    answer = ftlab("generate", *given)
    assert answer.out == f"a: {a}\nb: {b}\na, b\n{b}\n"
    assert answer.err == "ftlab: there is no adapter 'c': there are a, b\n"


def test_adapters_that_cannot_be_mixed_are_answered_one_after_the_other(
    bare: Callable[..., Path], network: Network, ftlab: Callable[..., Any], write_lines: Callable[..., Path]
) -> None:
    config = peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    )
    directories = {"a": bare("one", config), "b": bare("two", config, seed=1)}
    rows = [{"prompt": prompt, "adapter": name} for prompt in PROMPTS for name in directories]
    answer = ftlab(
        "generate",
        *(word for name, where in directories.items() for word in ("--adapter", f"{name}={where}")),
        *("--file", write_lines(Path("prompts.jsonl"), rows), *SHORT),
    )
    assert lines(answer.out) == [
        row | {"prediction": greedy(network, directories[row["adapter"]], row["prompt"])} for row in rows
    ]


def test_a_quantised_base_serves_its_runs_and_what_is_said_to_belong_to_it(
    finished: Callable[[str], Path], bare: Callable[..., Path], ftlab: Callable[..., Any], refused: Callable[..., str]
) -> None:
    run = finished("qlora")
    given = ["--adapter", f"a={run}", "--adapter", f"b={bare('other')}", "--prompt", PROMPTS[0]]
    said = refused("generate", *given)
    assert "double nf4 (computed in bfloat16, the rest in float32) for a and float32 for b" in said
    alone = [
        ftlab("generate", run, "--prompt", PROMPTS[0]).out,
        ftlab("generate", *given[2:], "--quantization.kind", "nf4", *SHORT).out,
    ]
    answer = ftlab("generate", *given, "--quantization.kind", "nf4", *SHORT)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"a: {alone[0]}b: {alone[1]}"


def test_a_combination_answers_and_is_saved(
    finished: Callable[[str], Path], bare: Callable[..., Path], network: Network, ftlab: Callable[..., Any]
) -> None:
    given = ["--adapter", f"a={finished('lora')}", "--adapter", f"b={bare('other')}", *SHORT]
    answer = ftlab("generate", *given, "--combine", "mix=a:0.7,b:0.3", "--save", "mixed", "--prompt", PROMPTS[0])
    assert (answer.code, answer.err) == (0, "")
    expected = greedy(network, Path("mixed"), PROMPTS[0])
    assert answer.out.splitlines()[2] == f"mix: {expected}"
    assert json.loads(Path("mixed/adapter_config.json").read_text())["r"] == 16 + 4
    # it is an adapter like others, and brings its tokenizer
    assert ftlab("generate", "--adapter", "m=mixed", "--prompt", PROMPTS[0], *SHORT).out == f"{expected}\n"
    assert AutoTokenizer.from_pretrained("mixed").get_vocab() == network.tokenizer().get_vocab()
    # to save alone asks nothing; another way of combining is another adapter
    again = ftlab(
        *("generate", "--adapter", "a=other", "--adapter", "b=other", "--combine", "mix=a:0.5,b:0.5"),
        *("--combination", "dare_linear", "--density", 0.5, "--save", "dare"),
    )
    assert (again.code, again.out) == (0, "")
    one, other = (load_file(Path(name) / "adapter_model.safetensors") for name in ("other", "dare"))
    assert set(one) == set(other)
    assert all(one[name].shape == other[name].shape for name in one)


def test_the_base_may_have_moved(
    bare: Callable[..., Path], network: Network, workplace: Path, ftlab: Callable[..., Any], refused: Callable[..., str]
) -> None:
    one = bare("one")
    config = json.loads((one / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(workplace / "old")}
    (one / "adapter_config.json").write_text(json.dumps(config))
    assert "--base says where" in refused("generate", "--adapter", "a=one", "--prompt", "a")
    shutil.copytree(network.path, "old")
    given = ["--adapter", "a=one", "--adapter", f"b={bare('two')}", "--prompt", PROMPTS[0], *SHORT]
    said = refused("generate", *given)
    assert f"the base is {(workplace / 'old').resolve()} for a and {Path(network.path).resolve()} for b" in said
    answer = ftlab("generate", *given, "--base", network.path)
    assert (answer.code, answer.err) == (0, "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["runs/tiny/lora", "--use", "a"], "--use is about adapters"),
        (["runs/tiny/lora", "--template", "plain"], "--template is about adapters"),
        (["runs/tiny/lora", "--trust_remote_code", "true"], "--trust_remote_code is about adapters"),
        (["runs/tiny/lora", "--adapter", "a=one"], "runs/tiny/lora and --adapter are given"),
        (["--adapter", "one"], "--adapter is 'one': give NAME=DIR"),
        (["--adapter", "a:b=one"], "--adapter is 'a:b=one': give NAME=DIR"),
        (["--adapter", "a=one", "--adapter", "a=one"], "'a' is given twice"),
        (["--adapter", "a=nowhere"], "--adapter a: there is no directory nowhere"),
        (["--adapter", "a=runs"], "--adapter a: runs holds no adapter"),
        (["--adapter", "a=runs/tiny/full"], "--adapter a: runs/tiny/full/model holds no adapter"),
        (["--adapter", "a=runs/tiny/lora", "--dtype", "bfloat16"], "every adapter is of a run, which says them itself"),
        (
            ["--adapter", "a=runs/tiny/lora", "--trust_remote_code", "true"],
            "every adapter is of a run, which says them",
        ),
        (["--adapter", "a=one", "--use", "b"], "--use: there is no adapter 'b': there are a"),
        (["--adapter", "a=one", "--combine", "mix=a"], "--combine is 'mix=a': give NAME=ADAPTER:WEIGHT"),
        (["--adapter", "a=one", "--combine", "mix=a:nan"], "--combine is 'mix=a:nan'"),
        (["--adapter", "a=one", "--combine", "mix=b:1"], "no adapter 'b' to combine: there are a"),
        (["--adapter", "a=one", "--combine", "a=a:1"], "'a' has the name of an adapter"),
        (["--adapter", "a=one", "--save", "new"], "--save, --density and --combination are about a combination"),
        (["--adapter", "a=one", "--combine", "mix=a:1", "--save", "one"], "--save: one exists"),
        (["--adapter", "a=one", "--combine", "m=a:1", "--combination", "tie"], "combination is tie: it must be one of"),
    ],
)
def test_adapters_that_are_refused(
    options: list[str],
    said: str,
    finished: Callable[[str], Path],
    bare: Callable[..., Path],
    refused: Callable[..., str],
) -> None:
    finished("lora"), finished("full"), bare("one")
    assert said in refused("generate", *options, "--prompt", "x")
