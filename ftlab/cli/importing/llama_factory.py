"""What `llamafactory-cli train` reads: its model, data, fine-tuning and generating arguments, and HF Trainer's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftlab.cli.importing import adapters, training
from ftlab.cli.importing.foreign import Foreign, Part, asset
from ftlab.yaml_files import read_mapping

_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
_MESSAGES = {"sharegpt": ("conversations", "from", "value"), "openai": ("messages", "role", "content")}
"""The column of a conversation, and in it who speaks and what is said."""
_READ_ANYWAY = {("system", "system"), ("tools", "tools")}
"""Columns that every format has, by the name that ftlab looks for."""
_TAGS = {"user_tag": ("human", "user"), "assistant_tag": ("gpt", "assistant"), "system_tag": ("system",)}
"""Who speaks, as ftlab reads it, too."""


def translate(foreign: Foreign) -> None:
    """Puts what it says into ftlab's words."""
    stage = foreign.take("stage")
    if stage not in ("sft", "pt"):
        raise foreign.refuse(
            f"stage {stage} has an objective that ftlab has not: it learns answers (sft) and running text (pt); "
            "experiments/data/dpo.yaml and kto.yaml say how to learn the better answers alone"
        )
    if not foreign.flag("do_train"):
        raise foreign.refuse("it does not train: set do_train to true, or judge and export a run of ftlab's")
    bf16, pure, fp16 = foreign.flag("bf16"), foreign.flag("pure_bf16"), foreign.flag("fp16")
    _network(foreign, bf16 or pure, pure)
    _method(foreign, "bfloat16" if bf16 or pure or fp16 else "float32")
    training.common(foreign)
    _low_rank_optimizer(foreign)
    training.precision(foreign, bf16, fp16)
    if pure:
        foreign.put("trainer.precision", "bf16-true")
    off = foreign.flag("disable_gradient_checkpointing")
    foreign.take("gradient_checkpointing")
    training.checkpointing(foreign, not off)
    training.logging(foreign)
    _data(foreign, stage)


def _network(foreign: Foreign, bf16: bool, pure: bool) -> None:
    # trained weights are cast to float32 there; a frozen base is not
    frozen = foreign.take("finetuning_type") in ("lora", "oft")
    dtype = "bfloat16" if pure or (bf16 and frozen) else "float32"
    attention = str(foreign.take("flash_attn", "auto"))
    kernel = asset("shared")["attention"].get(attention, attention)
    training.network(foreign, "model_name_or_path", dtype, kernel)


def _method(foreign: Foreign, compute: str) -> None:
    how, size = foreign.take("finetuning_type"), foreign.whole_or_none("quantization_bit")
    if size not in (None, 4, 8):
        raise foreign.wrong("quantization_bit", "4 or 8")
    if (by := foreign.take("quantization_method")) not in (None, "bnb", "bitsandbytes"):
        foreign.note("hand", f"bitsandbytes holds the base in few bits here, not {by}", "quantization_method")
    kind, double = foreign.take("quantization_type"), foreign.flag("double_quantization")
    r = foreign.whole("lora_rank")
    pissa, iterations = foreign.flag("pissa_init"), foreign.whole("pissa_iter")
    options = {
        "r": r,
        "alpha": foreign.take("lora_alpha", 2 * r),
        "dropout": foreign.number("lora_dropout"),
        "rslora": foreign.flag("use_rslora"),
        "dora": foreign.flag("use_dora"),
        "ratio": foreign.take("loraplus_lr_ratio"),
        "init": None if not pissa else "pissa" if iterations == -1 else "pissa_niter_16",
        "modules_to_save": foreign.listed("additional_target"),
    }
    if pissa and iterations not in (-1, 16):
        foreign.note("differs", "16 iterations, the only number that ftlab has", "pissa_iter")
    targets = _targets(foreign.listed("lora_target"))
    layers = foreign.whole("freeze_trainable_layers")
    rotated = {
        "r": foreign.whole("oft_rank"),
        "oft_block_size": foreign.whole("oft_block_size"),
        "module_dropout": foreign.number("module_dropout"),
        "target_modules": _targets(foreign.listed("oft_target")),
    }
    if how == "lora":
        bits = None
        if size is not None:
            bits = {"kind": kind if size == 4 else "int8", "double": double and size == 4}
            bits["compute_dtype"] = compute
        adapters.adapter(foreign, targets, bits, **options)
    elif how == "oft":
        adapters.rotations(foreign, rotated)
    elif how == "freeze" and layers > 0:
        adapters.whole(foreign, last_blocks=layers)
    elif how == "freeze":
        raise foreign.refuse(
            "freeze_trainable_layers below 1 trains the first layers: name them in model.method.trainable"
        )
    else:
        adapters.whole(foreign)


def _targets(names: list[str] | None) -> str | list[str]:
    return "all-linear" if not names or names == ["all"] else names


def _low_rank_optimizer(foreign: Foreign) -> None:
    """GaLore and APOLLO are switches of their own there."""
    shape = {"rank": "rank", "update_interval": "update_proj_gap", "scale": "scale"}
    for name, path in (("galore", "GaLore"), ("apollo", "APOLLO")):
        options = {ours: foreign.take(f"{name}_{theirs}") for theirs, ours in shape.items()}
        if name == "apollo":
            options["scale_type"] = foreign.take("apollo_scale_type")
        if foreign.flag(f"use_{name}"):
            rates = {key: foreign.number(of) for key, of in (("lr", "learning_rate"), ("weight_decay", "weight_decay"))}
            arguments = {**rates, **options}
            foreign.put("model.optimizer", {"class_path": f"ftlab.modules.optimizers.{path}", "init_args": arguments})


def _data(foreign: Foreign, stage: str) -> None:
    length = foreign.whole("cutoff_len")
    foreign.put("data.max_length", length)
    foreign.put("data.overflow", "split" if stage == "pt" else "truncate")
    if stage == "sft":
        foreign.note("differs", "of a longer record the front of the prompt is cut, not some of both", "cutoff_len")
    training.held_out(foreign, "val_size")
    foreign.put("data.duplicates", {"exact": False})
    packed, neat = foreign.take("packing", stage == "pt"), foreign.flag("neat_packing")
    if packed or neat:
        foreign.put("data.batching", "pack")
        if not neat:
            foreign.note("differs", "packed records do not see one another, as with neat_packing there", "packing")
    if foreign.flag("streaming"):
        foreign.put("data.streaming", True)
        foreign.put("data.shuffle_window", foreign.whole("buffer_size"))
    foreign.take("buffer_size")
    if workers := foreign.whole("preprocessing_num_workers"):
        foreign.put("data.preparation_workers", workers)
    history, prompts = foreign.flag("mask_history"), foreign.flag("train_on_prompt")
    foreign.put("data.learn", "all" if prompts or stage == "pt" else "last" if history else "assistant")
    if system := foreign.take("default_system"):
        foreign.put("data.system", system)
    _template(foreign, stage)
    _sources(foreign, stage)


def _template(foreign: Foreign, stage: str) -> None:
    name = foreign.take("template")
    if stage == "pt" or name == "empty":
        foreign.put("data.template", "plain")
    elif name:
        foreign.note(
            "differs",
            f"the wording is that of the tokenizer's own chat template, or none where it has none: {name} of "
            "LLaMA-Factory would be a .jinja file (data.template)",
            "template",
        )


def _sources(foreign: Foreign, stage: str) -> None:
    names, place = foreign.listed("dataset"), foreign.text("dataset_dir") or ""
    if not names:
        raise foreign.refuse("dataset is missing: say what is to be trained on")
    described = _described(place)
    limit, weights = foreign.whole("max_samples"), _weights(foreign, len(names))
    mixing = foreign.take("mix_strategy")
    sources = []
    for number, name in enumerate(names):
        source = _source(foreign, name, Path(place), described, stage)
        size = [each for each in (limit, source.pop("limit", 0)) if each]
        source |= {"limit": min(size)} if size else {}
        source |= {"weight": weights[number]} if weights else {}
        sources.append(source)
    if len(sources) == 1 and "limit" not in sources[0] and "weight" not in sources[0]:
        for key, value in sources[0].items():
            foreign.put(f"data.{key}", value)
    else:
        foreign.put("data.sources", sources)
    if mixing != "concat":
        stop = "first_exhausted" if mixing == "interleave_under" else "all_exhausted"
        foreign.put("data.mixing", {"how": "probability", "stop": stop})


def _weights(foreign: Foreign, sets: int) -> list[float]:
    """How much is taken of each set; nothing where that is not said."""
    try:
        weights = [float(each) for each in foreign.listed("interleave_probs") or ()]
    except ValueError:
        raise foreign.wrong("interleave_probs", "numbers") from None
    if weights and len(weights) != sets:
        raise foreign.wrong("interleave_probs", f"a number for each of the {sets} sets")
    return weights


def _described(place: str) -> dict[str, Any]:
    """dataset_info.json, by the names of the sets; nothing where it is not at hand."""
    file = Path(place) / "dataset_info.json"
    if not file.is_file():
        return {}
    return read_mapping(file, "description of data sets", "it must be a mapping of data sets")


def _source(foreign: Foreign, name: str, place: Path, described: dict[str, Any], stage: str) -> dict[str, Any]:
    """Where a set lies, and how its columns are read."""
    if name not in described:
        foreign.note("hand", f"{name} is not in {place / 'dataset_info.json'}: give its file as data.path", "dataset")
        return {"path": name}
    info = Part(f"{place / 'dataset_info.json'}: {name}", described[name], split="train")
    hub, file, subset = info.text("hf_hub_url"), info.text("file_name") or name, info.text("subset")
    limit = info.whole("num_samples")
    if info.take("ranking"):
        raise foreign.refuse(f"{name} holds pairs of answers (ranking), which need an objective that ftlab has not")
    how = _form(foreign, name, info, stage)
    foreign.note_unread(info, name, "dataset")
    path = f"{hub}:{subset}" if hub and subset else hub or str(place / file)
    return {"path": path, **how, **({"limit": limit} if limit else {})}


def _form(foreign: Foreign, name: str, info: Part, stage: str) -> dict[str, Any]:
    """How the records of a set are read."""
    form, tags = info.text("formatting") or "alpaca", info.part("tags")
    named, columns = info.part("columns"), dict[str, str]()
    for key in info.mapping("columns"):
        if (column := named.text(key)) and (key, column) not in _READ_ANYWAY:
            columns[key] = column
    if stage == "pt":
        column = columns.get("prompt", "instruction")
        return {"format": "text", **({} if column == "text" else {"response": f"{{{column}}}"})}
    if form == "alpaca":
        other = [column for key, column in columns.items() if _ALPACA.get(key) != column]
        found = {"format": "alpaca"}
        if other and set(columns) <= {"prompt", "query", "response"}:
            asked = [columns.get("prompt", "instruction"), *([columns["query"]] if "query" in columns else [])]
            answer, other = columns.get("response", "output"), []
            found = {"prompt": "\n".join(f"{{{column}}}" for column in asked), "response": f"{{{answer}}}"}
    else:
        column, role, content = _MESSAGES.get(form, _MESSAGES["sharegpt"])
        said = columns.get("messages", column), tags.text("role_tag") or role, tags.text("content_tag") or content
        found = {"format": "messages" if said == _MESSAGES["openai"] else "conversations"}
        other = [column for key, column in columns.items() if key != "messages"]
        if said not in _MESSAGES.values():
            other = [*said, *other]
        for tag, names in _TAGS.items():
            if (tags.text(tag) or names[0]) not in names:
                other.append(f"{tag} {tags.text(tag)}")
    if other:
        foreign.note("hand", f"{', '.join(other)} of {name}: bring its records into shape by data.function", "dataset")
    foreign.note_unread(tags, f"the tags of {name}", "dataset")
    return found
