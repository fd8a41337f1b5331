"""The model card of an export: what it is, what it was made of and how, what it scores, what it may be used for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ftlab.methods import adapter_bits, serving
from ftlab.networks import Network
from ftlab.runs import Run

_TRAINER = ("max_steps", "max_epochs", "precision", "accumulate_grad_batches", "gradient_clip_val")
_DATA = ("template", "learn", "max_length", "overflow", "batching", "batch_size", "batch_tokens")


def model_card(
    run: Run,
    network: Network,
    directory: Path,
    *,
    held: str,
    checked: Sequence[Sequence[str]],
    license: str | None = None,
) -> str:
    """The README.md of an export.

    Args:
        run: The finished run; its configuration, provenance and scores are told.
        network: The base.
        directory: The export.
        held: How the base was held in training.
        checked: Header and lines of the table that compares it with the run.
        license: Of the model; by default the base's, where its own card states it.

    Returns:
        Markdown with a YAML head as the hub reads it.
    """
    config, record = yaml.safe_load(run.config.read_text(encoding="utf-8")), run.record()
    method = str(config["model"]["method"]["class_path"]).rpartition(".")[2]
    name = f"{run.directory.parent.name}/{run.directory.name}"
    adapter = (directory / "adapter_config.json").is_file()
    license = license or _license_of(network)
    scores = json.loads(run.scores.read_text(encoding="utf-8")) if run.scores.is_file() else {}
    head = ModelCardData(
        base_model=network.path if _on_hub(network) else None,
        base_model_relation="adapter" if adapter else "finetune",
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        license=license,
        tags=["ftlab", method],
        model_name=name,
        eval_results=list(_results(scores, _data_name(config))) or None,
    )
    sections = {
        "Use": _use(network, held, directory, adapter),
        "Base": _facts(_base(network, held, record)),
        "Data": _facts(_data(config, record)),
        "Training": _yaml(_training(config)),
        "Scores": _table([["score", "value"], *([key, f"{value:.4f}"] for key, value in scores.items())]),
        "Compared with the run": _table(checked),
        "Provenance": _facts(_provenance(record)),
        "Licence": license or "Not stated: ask whose network and data these are.",
    }
    trained, total = (record["cost"][key] for key in ("trainable_parameters", "parameters"))
    lines = [
        "---",
        head.to_yaml(),
        "---",
        f"# {name}",
        "",
        f"{network.path}, fine-tuned on {_data_name(config)} by {method}: {trained:,} of {total:,} parameters were "
        f"trained ({trained / total:.2%}). Made by ftlab {record['versions']['ftlab']}.",
    ]
    for title, text in sections.items():
        lines += ["", f"## {title}", "", text]
    return "\n".join(lines) + "\n"


def _use(network: Network, held: str, directory: Path, adapter: bool) -> str:
    if (directory / adapter_bits.FILE).is_file():
        return (
            "The adapter is stored in few bits. `ftlab generate --adapter a=DIR` takes it as it is; `ftlab export DIR "
            "PLAIN` makes a plain adapter of it, for peft."
        )
    base = f'"{network.path}"' + (f', revision="{network.revision}"' if network.revision else "")
    if adapter:
        opening = [
            f"base = AutoModelForCausalLM.from_pretrained({base})",
            'model = peft.PeftModel.from_pretrained(base, "DIR")',
        ]
        served = _served(network, held, directory)
    elif (directory / "config.json").is_file():
        opening = ['model = AutoModelForCausalLM.from_pretrained("DIR")']
        served = "Served by vLLM: `vllm serve DIR`."
    else:  # nothing was trained: the base is the model
        opening = [f"model = AutoModelForCausalLM.from_pretrained({base})"]
        served = f"Served by vLLM: `vllm serve {_named(network)}`."
    imports = [
        *(["import peft"] if adapter else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
    ]
    code = "\n".join(["```python", *imports, *opening, 'tokenizer = AutoTokenizer.from_pretrained("DIR")', "```"])
    return f"{code}\n\n{served}"


def _served(network: Network, held: str, directory: Path) -> str:
    """Whether vLLM puts the adapter onto its base, and how."""
    if why_not := serving.why_not_vllm(directory):
        return f"Not by vLLM: {why_not}."
    rank = serving.vllm_rank(directory)
    more = f" --max-lora-rank {rank}" if rank > 16 else ""  # vLLM's default
    said = f"Served by vLLM: `vllm serve {_named(network)} --enable-lora{more} --lora-modules name=DIR`"
    if held in ("float32", "bfloat16", "float16"):
        return f"{said}."
    return f"{said}, which is on the base in full precision; it was trained on one in {held}."


def _named(network: Network) -> str:
    """The base, as vLLM's command line names it."""
    return network.path + (f" --revision {network.revision}" if network.revision else "")


def _base(network: Network, held: str, record: Mapping[str, Any]) -> Iterator[list[str]]:
    yield ["network", network.path]
    if network.revision:
        yield ["revision", network.revision]
    yield ["held in training in", held]
    if "frozen_base" in record:
        yield ["digest of the weights that stayed", str(record["frozen_base"])]


def _data(config: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[list[str]]:
    yield ["source", _data_name(config)]
    for split in ("train", "validation", "test"):
        if record["data"].get(f"{split}_rows"):
            rows, targets = (record["data"][f"{split}_{what}"] for what in ("rows", "target_tokens"))
            yield [split, f"{rows:,} rows, {targets:,} tokens learned or predicted"]
    for rule, count in record["data"].get("dropped", {}).items():
        yield [f"left out: {rule}", f"{count:,}"]


def _data_name(config: Mapping[str, Any]) -> str:
    data = config["data"]
    return data["path"] or ", ".join(str(source["path"]) for source in data["sources"])


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of the configuration decides the result, without what was left at None."""
    model, trainer, data = config["model"], config["trainer"], config["data"]
    return {
        "seed_everything": config["seed_everything"],
        "trainer": {key: trainer[key] for key in _TRAINER if trainer.get(key) is not None},
        "model": {key: model[key] for key in ("method", "optimizer", "schedule") if model.get(key) is not None},
        "data": {key: data[key] for key in _DATA if data.get(key) is not None},
    }


def _provenance(record: Mapping[str, Any]) -> Iterator[list[str]]:
    yield ["command", f"`{shlex.join(record['command'])}`"]
    yield ["trained", f"{record['started']} to {record['ended']}"]
    cost = record["cost"]
    yield ["seconds of training", f"{cost['training_seconds']:,.0f}"]
    yield ["peak memory", f"{cost['peak_memory_bytes'] / 1e9:.2f} GB"]
    yield ["tokens learned", f"{cost['supervised_tokens']:,}"]
    yield ["versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())]


def _results(scores: Mapping[str, float], data: str) -> Iterator[EvalResult]:
    for name, value in scores.items():
        split, _, metric = name.partition("_")
        yield EvalResult(
            task_type="text-generation",
            dataset_type=data,
            dataset_name=data,
            dataset_split={"val": "validation"}.get(split, split),
            metric_type=metric,
            metric_value=round(value, 6),
        )


def _on_hub(network: Network) -> bool:
    """Whether the base's path can be a name on the hub, which the head of a card must give."""
    try:
        validate_repo_id(network.path)
    except HFValidationError:
        return False
    return not Path(network.path).exists()


def _license_of(network: Network) -> str | None:
    """The licence that the base's own card states."""
    path = Path(network.path, "README.md")
    if _on_hub(network):
        cached = try_to_load_from_cache(network.path, "README.md", revision=network.revision)
        path = Path(cached) if isinstance(cached, str) else path
    return ModelCard.load(path).data.get("license") if path.is_file() else None


def _table(rows: Iterable[Sequence[str]], rule: str = "---:") -> str:
    header, *others = rows
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in others]
    return "\n".join([f"| {' | '.join(header)} |", "|---|" + f"{rule}|" * (len(header) - 1), *lines])


def _facts(facts: Iterable[Sequence[str]]) -> str:
    return _table([["", ""], *facts], rule="---")


def _yaml(data: Mapping[str, Any]) -> str:
    return f"```yaml\n{yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)}```"
