"""Pages of the reference: verbs as their help says, keys as the schema says, Python as docstrings say."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

from ftlab.cli import VERBS, main

PARTS = {
    "methods": "How a network becomes trainable, and what is kept of it.",
    "networks": "Pretrained networks and their tokenizers.",
    "data": "Records in, batches out.",
    "modules": "The LightningModule: loss, step, what a checkpoint holds; schedules, optimisers, shards.",
    "callbacks": "Checkpoints, curves, throughput, proofs, NEFTune.",
    "evaluation": "Generation, scores of texts, statistics, forgetting.",
    "runs": "The run directory.",
    "cluster": "SLURM: profiles, scripts, jobs.",
    "sweeps": "Sweep files, the study, workers.",
    "planning": "Memory, time and disk before a run.",
    "reports": "Comparisons, the data card, the model card.",
    "testing": "What any method must keep.",
}
_EXPERIMENTS = ("fit", "validate", "test", "predict", "prepare")
"""Verbs whose options are the keys of a configuration."""

_PARTS_OF_KEYS = ("model", "data", "trainer", "run", "seeds", "wandb")
_CLASSES = {
    "Methods": "ftlab.methods.",
    "Schedules": "ftlab.modules.",
    "Optimisers": "ftlab.modules.optimizers.",
    "Held by keys": ("ftlab.evaluation.", "ftlab.data.", "ftlab.networks."),
}
_NO_KEYS = {"ftlab.modules.FinetuneModule", "ftlab.data.Batch", "ftlab.data.PromptBatch"}


_VERBS = """# Verbs

What `ftlab VERB --help` prints. The options of `fit`, `validate`, `test`, `predict` and `prepare` are the keys of a
[configuration](configuration.md): `--trainer.max_steps 100` on the command line is `trainer: {max_steps: 100}` in
a file."""

_CONFIGURATION = """# Configuration

Every key of an experiment, with its type and its default. A key stands in a YAML file, or on the command line with
dots: `--data.batch_size 16`. A class is named by its path, or where it is one of ftlab's or torch's by its bare name,
and takes its arguments under `init_args`. A misspelt key is refused. The same as a
[JSON Schema](experiment.schema.json), for [editors](../how-to/editor.md).
"""


def schema() -> dict[str, Any]:
    """The schema of configurations."""
    from ftlab.cli.schema import schema  # with torch and Lightning, when libraries have been told to be quiet

    return schema()


# ---------------------------------------------------------------- verbs


def verbs() -> str:
    """The help of every verb, as it prints it; of those that take a configuration, what is beside its keys."""
    from ftlab.cli.sweep import _WORDS

    lines = [_VERBS]
    for verb, does in VERBS.items():
        lines += ["", f"## {verb}", "", f"{does[0].upper()}{does[1:]}.", ""]
        said = _said([verb, "--help"])
        if verb in _EXPERIMENTS:
            said = f"usage: ftlab {verb} -c FILE [-c FILE ...] [--KEY VALUE ...]\n\n{_description(said)}"
        lines += ["```text", said.rstrip(), "```"]
        if verb == "sweep":
            for word in _WORDS:
                lines += ["", f"### sweep {word}", "", "```text", _said([verb, word, "--help"]).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _said(words: list[str]) -> str:
    """What a command prints, 90 columns wide."""
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "90"
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            main(words)
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return out.getvalue()


def _description(said: str) -> str:
    """Of a help: what stands between the usage and the options."""
    return said.partition("\n\n")[2].partition("\noptions:")[0]


# ---------------------------------------------------------------- keys


def configuration(schema: dict[str, Any]) -> str:
    """Every key: its type, its default, its meaning."""
    lines = [
        _CONFIGURATION,
        "## At the top",
        "",
        *_table({key: schema["properties"][key] for key in ("include", "seed_everything")}),
    ]
    for part in _PARTS_OF_KEYS:
        lines += ["", f"## {part}", "", *_table(_flat(schema["properties"][part], f"{part}."))]
    for title, prefix in _CLASSES.items():
        lines += ["", f"## {title}"]
        for name, definition in schema["$defs"].items():
            own = name.startswith(prefix) and name not in _NO_KEYS and not _deeper(name, prefix)
            if own and "properties" in definition:
                lines += ["", f"### {name}", "", _markdown(definition.get("description", "")), ""]
                lines += _table(_flat(definition, "")) if definition["properties"] else ["It has no options."]
    return "\n".join(lines) + "\n"


def _deeper(name: str, prefix: str | tuple[str, ...]) -> bool:
    """Whether a class belongs to another section: ftlab.modules.optimizers is below ftlab.modules."""
    return isinstance(prefix, str) and "." in name.removeprefix(prefix)


def _flat(mapping: dict[str, Any], above: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, key in mapping["properties"].items():
        if name.endswith("+"):
            continue
        if "properties" in key:
            found |= _flat(key, f"{above}{name}.")
        else:
            found[above + name] = key
    return found


def _table(keys: dict[str, Any]) -> list[str]:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, key in keys.items():
        default = f"`{json_text(key['default'])}`" if "default" in key else ""
        rows.append(f"| `{name}` | {in_words(key)} | {default} | {_markdown(key.get('description', ''))} |")
    return rows


def json_text(value: Any) -> str:
    """A default as YAML has it on one line."""
    return json.dumps(value, ensure_ascii=False).replace("|", "\\|")


def in_words(key: dict[str, Any]) -> str:
    """What a key takes."""
    if "$ref" in key:
        name = key["$ref"].removeprefix("#/$defs/").replace("%20", " ")
        short = name.rpartition(".")[2]
        return f"a class: {short}" if name.startswith("one of ") else short
    if "anyOf" in key:
        return ", or ".join(dict.fromkeys(in_words(one) for one in key["anyOf"]))
    if "enum" in key:
        return ", ".join(f"`{json_text(value)}`" for value in key["enum"]).replace('"', "")
    if key.get("type") == "array":
        return f"list of {in_words(key.get('items', {}))}"
    said = key.get("type", "anything")
    return said if isinstance(said, str) else ", or ".join(said)


def _markdown(text: str) -> str:
    """A docstring in one cell of a table: roles of Sphinx and its double backticks become plain."""
    text = re.sub(r":(?:\w+:)?\w+:`~?\.?([^`]+)`", lambda found: f"`{found[1].rpartition('.')[2]}`", text)
    text = text.replace("``", "`").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(text.split())


# ---------------------------------------------------------------- Python


def python(part: str, root: Path) -> str:
    """The docstrings of a part's modules."""
    place = root / "ftlab" / part
    modules = [part] if not place.is_dir() else [part, *_modules(place, part)]
    shown = "\n\n".join(f"::: ftlab.{name}" for name in modules)
    return f"# ftlab.{part}\n\n{PARTS[part]}\n\n{shown}\n"


def _modules(place: Path, above: str) -> list[str]:
    found = []
    for file in sorted(place.iterdir()):
        if file.is_dir() and (file / "__init__.py").is_file():
            found += [f"{above}.{file.name}", *_modules(file, f"{above}.{file.name}")]
        elif file.suffix == ".py" and not file.stem.startswith("_"):
            found.append(f"{above}.{file.stem}")
    return found
