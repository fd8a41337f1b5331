"""Memory of one base with many adapters beside as many models, each measured in a process of its own.

    python scripts/adapter_memory.py --adapters 10

The network is made in place, with random weights: Llama in float32. The models are the adapters merged into it, each
on its own. RSS is read when all of them have answered and every weight has been read, since files are mapped and count
where they were touched. Prints the tables of docs/results/adapters.md; seconds are the least of five.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from ftlab.evaluation.generation import Decoding, generate_all
from ftlab.methods.adapters import Adapters

PROMPT = 32
ANSWER = 16
ROWS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--adapters", type=int, default=10)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        case, directory = options.measure
        print(json.dumps(CASES[case](Path(directory))))
        return
    with TemporaryDirectory() as place:
        make(Path(place), options)
        measured = {case: in_its_own_process(case, place) for case in CASES}
        disk = {kind: size(Path(place) / kind) / 1e6 for kind in ("base", "adapters", "models")}
    one, many, models = (measured[case]["tensors"] / 1e6 for case in ("base", "adapters", "models"))
    nothing = measured["nothing"]["rss"]
    print(f"\n{options.adapters} adapters of rank {options.rank}; torch {torch.__version__}, peft {peft.__version__}\n")
    print("| in memory | tensors, MB | RSS, MB | RSS above imports, MB | on disk, MB |")
    print("|---|---:|---:|---:|---:|")
    for case, title, tensors, files in (
        ("nothing", "nothing but imports", 0.0, 0.0),
        ("base", "the base", one, disk["base"]),
        ("adapters", f"the base with {options.adapters} adapters", many, disk["base"] + disk["adapters"]),
        ("models", f"{options.adapters} models", models, disk["models"]),
    ):
        rss = measured[case]["rss"]
        print(f"| {title} | {tensors:.1f} | {rss / 1e6:.0f} | {(rss - nothing) / 1e6:.0f} | {files:.1f} |")
    print(f"\n| {ROWS} prompts of {PROMPT} tokens, {ANSWER} new ones each, {ROWS} a batch | seconds |\n|---|---:|")
    for title, seconds in measured["adapters"]["seconds"].items():
        print(f"| {title} | {seconds:.2f} |")


def make(place: Path, options: argparse.Namespace) -> None:
    """A base, adapters on it, and the same adapters merged."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
    )
    LlamaForCausalLM(config).save_pretrained(place / "base")
    for number in range(options.adapters):
        lora = peft.LoraConfig(task_type="CAUSAL_LM", r=options.rank, target_modules="all-linear")
        adapted = peft.get_peft_model(opened(place / "base"), lora)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.02)
        adapted.save_pretrained(str(place / "adapters" / str(number)), save_embedding_layers=False)
        adapted.merge_and_unload().save_pretrained(place / "models" / str(number))


def in_its_own_process(case: str, place: str) -> dict:
    """What a fresh process measures of one case."""
    command = [sys.executable, __file__, "--measure", case, place]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def nothing(place: Path) -> dict:
    return facts([])


def base(place: Path) -> dict:
    network = opened(place / "base")
    answer(network, 1)
    return facts([network])


def adapters(place: Path) -> dict:
    directories = {path.name: path for path in sorted((place / "adapters").iterdir())}
    many = Adapters(opened(place / "base"), directories)
    for name in many.names:
        many.use(name)
        answer(many.network, 1)
    found = facts([many.network])
    rows = [many.names[n % len(many.names)] for n in range(ROWS)]

    def grouped() -> None:
        for name in many.names:
            many.use(name)
            answer(many.network, rows.count(name))

    seconds = {
        "all for one adapter": best_of_five(lambda: answer(many.network, ROWS)),
        f"for {len(directories)} adapters, mixed in one batch": best_of_five(
            lambda: answer(many.network, ROWS, many.rows(rows))
        ),
        f"for {len(directories)} adapters, a batch for each": best_of_five(grouped),
    }
    return found | {"seconds": seconds}


def best_of_five(work: Callable[[], None]) -> float:
    """Seconds: the least, as other work can only add."""
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def models(place: Path) -> dict:
    networks = [opened(path) for path in sorted((place / "models").iterdir())]
    for network in networks:
        answer(network, 1)
    return facts(networks)


CASES = {"nothing": nothing, "base": base, "adapters": adapters, "models": models}


def opened(directory: Path) -> PreTrainedModel:
    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def answer(network: nn.Module, rows: int, adapters: list[str] | None = None) -> None:
    prompts = torch.randint(3, 1000, (rows, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
    generate_all(network, prompts, Decoding(ANSWER), [], 0, rows, adapters)


def facts(networks: list[nn.Module]) -> dict:
    """Bytes of the tensors, each storage once, and resident memory once all of them were read."""
    tensors = [t for network in networks for t in (*network.parameters(), *network.buffers())]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    for tensor in tensors:
        tensor.sum()
    lines = Path("/proc/self/status").read_text().splitlines()
    rss = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    return {"tensors": sum(storages.values()), "rss": rss}


def size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
