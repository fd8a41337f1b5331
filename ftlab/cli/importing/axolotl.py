"""What `axolotl train` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftlab.cli.importing import adapters, training
from ftlab.cli.importing.foreign import Foreign, Part, asset

_KERNELS = {
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "flex_attention": "flex_attention",
    "eager_attention": "eager",
}
_OTHER_OBJECTIVES = ("rl", "reward_model", "process_reward_model")


def translate(foreign: Foreign) -> None:
    """Puts what it says into ftlab's words."""
    for key in _OTHER_OBJECTIVES:
        if foreign.given.get(key):
            raise foreign.refuse(
                f"{key} {foreign.given[key]} has an objective that ftlab has not: it learns answers and running text"
            )
    said = foreign.take("bf16")
    bf16 = any([said in ("auto", "full") or foreign.flag("bf16"), foreign.flag("bfloat16")])
    fp16 = any([foreign.flag("fp16"), foreign.flag("float16")])
    if said == "auto":
        foreign.note("differs", "bfloat16, also where a device has none: then --trainer.precision 32-true", "bf16")
    _network(foreign, bf16)
    _method(foreign, bf16)
    _own_names(foreign)
    training.common(foreign)
    training.precision(foreign, bf16, fp16)
    checkpointed = foreign.take("gradient_checkpointing")
    elsewhere = isinstance(checkpointed, str) and checkpointed.lower() not in ("true", "false")
    training.checkpointing(foreign, elsewhere or foreign.flag("gradient_checkpointing"))
    if elsewhere:
        foreign.note(
            "differs", "model.gradient_checkpointing offloaded keeps inputs on the host", "gradient_checkpointing"
        )
    _wandb(foreign)
    _data(foreign)


def _network(foreign: Foreign, bf16: bool) -> None:
    frozen = foreign.take("adapter") is not None
    if bf16 and not frozen:
        foreign.note("differs", "weights that are trained are kept in float32, where small steps are not lost", "bf16")
    kernels = [kernel for key, kernel in _KERNELS.items() if foreign.flag(key)]
    kernel = foreign.text("attn_implementation") or next(iter(kernels), None)
    training.network(foreign, "base_model", "bfloat16" if bf16 and frozen else "float32", kernel)


def _method(foreign: Foreign, bf16: bool) -> None:
    name = foreign.take("adapter")
    four, eight = foreign.flag("load_in_4bit"), foreign.flag("load_in_8bit")
    more = foreign.part("bnb_config_kwargs")
    targets, linear = foreign.take("lora_target_modules"), foreign.flag("lora_target_linear")
    options = {
        "r": foreign.take("lora_r"),
        "alpha": foreign.take("lora_alpha"),
        "dropout": foreign.number("lora_dropout"),
        "rslora": foreign.flag("peft_use_rslora") or None,
        "dora": foreign.flag("peft_use_dora") or None,
        "ratio": foreign.take("loraplus_lr_ratio"),
        "init": _start(foreign),
        "modules_to_save": foreign.take("lora_modules_to_save") or None,
        "layers": foreign.take("peft_layers_to_transform"),
    }
    if name is None:
        if four or eight:
            raise foreign.refuse("a network in few bits cannot be trained whole: give an adapter")
        adapters.whole(foreign)
        return
    if name not in ("lora", "qlora"):
        raise foreign.refuse(f"adapter {name} is none that can be imported: lora and qlora are")
    for key in ("r", "alpha"):
        if options[key] is None:
            raise foreign.refuse(f"lora_{key} is missing: Axolotl has no default for it")
    bits = None
    if four or eight:
        bits = {
            "kind": more.take("bnb_4bit_quant_type", "nf4") if four else "int8",
            "double": bool(four and more.take("bnb_4bit_use_double_quant", True)),
            "compute_dtype": "bfloat16" if bf16 else "float16" if eight else "float32",
        }
        foreign.note_unread(more, "it", "bnb_config_kwargs")
    if linear and targets:
        foreign.note("ours", "all linear layers are adapted already", "lora_target_modules")
    adapters.adapter(foreign, "all-linear" if linear else targets or [], bits, **options)
    if not linear and not targets:
        raise foreign.refuse("neither lora_target_linear nor lora_target_modules says what is adapted: give one")


def _start(foreign: Foreign) -> str | None:
    start = foreign.take("peft_init_lora_weights")
    return start if isinstance(start, str) else None


def _own_names(foreign: Foreign) -> None:
    """What Axolotl says in another way than HF Trainer's arguments, of which it makes them."""
    given, tables = foreign.given, foreign.tool.names
    micro, total = foreign.whole("micro_batch_size", 1), foreign.whole("batch_size")
    if total and not foreign.says("gradient_accumulation_steps"):
        given["gradient_accumulation_steps"] = max(1, total // max(1, micro))
    if not foreign.says("per_device_eval_batch_size"):
        given[tables["per_device_eval_batch_size"]] = micro
    epochs = foreign.number("num_train_epochs")
    if not (foreign.says("warmup_steps") or foreign.says("warmup_ratio")):
        given["warmup_ratio"] = 0.03
        foreign.note("differs", "3 % of the steps, as there, where they end at 100", "warmup_steps")
    if foreign.take("warmup_ratio"):
        foreign.note("differs", "the warm-up's steps are rounded up, and down there", "warmup_ratio")
    judged = bool(foreign.take("val_set_size"))
    often = foreign.whole("evals_per_epoch")
    if judged and often:
        foreign.put("trainer.val_check_interval", 1 / often if often > 1 else 1.0)
    if not judged:
        given["eval_strategy"] = "no"
    elif often or foreign.says("eval_steps"):
        given["eval_strategy"] = "epochs" if often and not foreign.says("eval_steps") else "steps"
    if foreign.whole("saves_per_epoch", 1) not in (0, 1):
        foreign.note("hand", "checkpoints within an epoch: give run.checkpoints.every_n_steps", "saves_per_epoch")
    if not foreign.says("save_steps"):
        given["save_strategy"] = given.get("save_strategy") or "epoch"
    if not foreign.says("seed"):
        given["seed"] = 42
    if epochs and not foreign.says("max_steps"):
        foreign.note(
            "differs",
            "the last batch of each epoch is a step of its own; there it is filled up by the next epoch's",
            "num_train_epochs",
        )


def _wandb(foreign: Foreign) -> None:
    project, mode = foreign.text("wandb_project"), foreign.text("wandb_mode")
    entity, model = foreign.text("wandb_entity"), foreign.take("wandb_log_model")
    wanted = (foreign.flag("use_wandb") or (project and not foreign.says("use_wandb"))) and mode != "disabled"
    foreign.put("wandb.mode", (mode if mode in ("online", "offline") else "auto") if wanted else "disabled")
    for key, value in {"project": project, "entity": entity}.items():
        if wanted and value:
            foreign.put(f"wandb.{key}", value)
    if wanted and model:
        foreign.put("wandb.log_model", "all" if model == "checkpoint" else "best")


def _data(foreign: Foreign) -> None:
    length, strategy = foreign.whole("sequence_len"), str(foreign.take("excess_length_strategy", "drop"))
    foreign.put("data.max_length", length)
    foreign.put("data.overflow", {"raise": "refuse"}.get(strategy, strategy))
    if strategy == "truncate":
        foreign.put("data.truncate_from", "right")
    training.held_out(foreign, "val_set_size")
    foreign.put("data.duplicates", {"exact": foreign.flag("dataset_exact_deduplication")})
    if workers := foreign.whole("dataset_num_proc"):
        foreign.put("data.preparation_workers", workers)
    if foreign.flag("sample_packing"):
        foreign.put("data.batching", "pack")
    if system := foreign.take("default_system_message"):
        foreign.put("data.system", system)
    listed, running = foreign.take("datasets"), foreign.take("pretraining_dataset")
    if running:
        foreign.put("data.streaming", True)
    key = "datasets" if listed else "pretraining_dataset"
    listed = listed or ([running] if isinstance(running, str | dict) else running)
    if not listed:
        raise foreign.refuse("datasets is missing: say what is to be trained on")
    if not isinstance(listed, list):
        raise foreign.wrong(key, "a list of data sets")
    whole = foreign.flag("train_on_inputs")
    sources = [source for each in listed for source in _sources(foreign, each, bool(running))]
    learned = {source.pop("learn") for source in sources}
    templates = {source.pop("template") for source in sources}
    foreign.put("data.learn", "all" if whole or "all" in learned else "last" if learned == {"last"} else "assistant")
    foreign.put("data.template", "plain" if templates == {"plain"} else "auto")
    if len(learned) > 1 or len(templates) > 1:
        foreign.note("differs", "all sets are learned alike, and under one template", "datasets")
    _template(foreign)
    if len(sources) == 1:
        for key, value in sources[0].items():
            foreign.put(f"data.{key}", value)
    else:
        foreign.put("data.sources", sources)


def _template(foreign: Foreign) -> None:
    name = foreign.take("chat_template")
    if name and name != "tokenizer_default":
        foreign.note(
            "differs",
            f"the wording is that of the tokenizer's own chat template: {name} of Axolotl would be a .jinja file "
            "(data.template)",
            "chat_template",
        )


def _sources(foreign: Foreign, each: Any, running: bool) -> list[dict[str, Any]]:
    """Where a data set lies, how it is read, what of it is learned and under which template."""
    part = foreign.data_set({"path": each} if isinstance(each, str) else each)
    path, paths = part.text("path"), foreign.files(part)
    if part.take("ds_type") and not part.take("data_files") and not Path(str(path)).exists():
        foreign.note("hand", f"{path} is looked for where the command is given", "datasets")
    if (split := part.take("split", "train")) != "train":
        foreign.note("hand", f"ftlab finds splits by the files' names: {split} of {path} is none", "datasets")
    key, form = "datasets", part
    if running:
        key = "pretraining_dataset"
        part.take("type")  # it is running text, whatever it says
        form = Part(f"{foreign.file}: {key}", {"type": "completion", "field": part.take("text_column", "text")})
    how = _read(foreign, form, str(path))
    foreign.note_unread(part, str(path), key)
    return [{"path": one, **how} for one in paths]


def _read(foreign: Foreign, each: Part, path: str) -> dict[str, Any]:
    kind = each.take("type")
    plain = {"learn": "last", "template": "plain"}
    if isinstance(kind, dict):
        words = each.part("type")
        found = plain | _own_words(foreign, words, path)
        foreign.note_unread(words, f"the type of {path}", "datasets")
        return found
    name = str(kind or "").partition(":")[0]
    if name == "alpaca":
        foreign.note("differs", "Alpaca's wording, with an empty ### Input where a record has none", "datasets")
        return plain | asset("shared")["wording of alpaca"]
    if name == "completion":
        column = each.text("field") or "text"
        text = {} if column == "text" else {"response": f"{{{column}}}"}
        return {"learn": "all", "template": "plain", "format": "text", **text}
    if name == "chat_template":
        return _chat(foreign, each, path)
    foreign.note("hand", f"type {kind} of {path}: give data.prompt and data.response, or data.format", "datasets")
    return plain


def _chat(foreign: Foreign, each: Part, path: str) -> dict[str, Any]:
    column = each.text("field_messages") or "messages"
    names = each.part("message_property_mappings")
    role = names.take("role", each.take("message_field_role", "role"))
    content = names.take("content", each.take("message_field_content", "value" if role == "from" else "content"))
    if (column, role, content) not in (("messages", "role", "content"), ("conversations", "from", "value")):
        what = f"messages of {path} in {column}, as {role} and {content}"
        foreign.note("hand", f"{what}: bring them into messages by data.function", "datasets")
    foreign.note_unread(names, f"message_property_mappings of {path}", "datasets")
    trained = each.take("roles_to_train")
    if trained not in (None, ["assistant"], ["gpt"], ["assistant", "gpt"], ["gpt", "assistant"]):
        foreign.note("hand", f"roles_to_train of {path}: give data.learn a list of roles", "datasets")
    if each.take("train_on_eos") not in (None, "turn"):
        foreign.note("differs", "the token that ends a turn is learned with it", "datasets")
    form = "conversations" if column == "conversations" else "messages"
    return {"learn": "assistant", "template": "auto", "format": form}


def _own_words(foreign: Foreign, kind: Part, path: str) -> dict[str, Any]:
    """A format of the user's own, with its columns in the place of Axolotl's names for them."""
    form, without, system = kind.text("format"), kind.text("no_input_format"), kind.text("system_prompt")
    words = form or without or "{instruction}"
    columns = {part: kind.text(f"field_{part}") or part for part in ("instruction", "input", "output", "system")}
    for part in ("instruction", "input", "system"):
        words = words.replace(f"{{{part}}}", f"{{{columns[part]}}}")
    if system or (form and without):
        foreign.note("differs", f"one wording for all records of {path}: format, without system_prompt", "datasets")
    return {"prompt": words, "response": f"{{{columns['output']}}}"}
