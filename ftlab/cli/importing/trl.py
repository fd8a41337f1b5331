"""What `trl sft --config` reads: SFTConfig, ModelConfig and ScriptArguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftlab.cli.importing import adapters, training
from ftlab.cli.importing.foreign import Foreign
from ftlab.errors import UserError


def translate(foreign: Foreign) -> None:
    """Puts what it says into ftlab's words."""
    _network(foreign)
    _method(foreign)
    training.common(foreign)
    fp16 = foreign.flag("fp16")
    bf16 = foreign.flag("bf16") if foreign.says("bf16") else not fp16
    foreign.take("bf16")
    training.precision(foreign, bf16, fp16)
    training.checkpointing(foreign, foreign.flag("gradient_checkpointing"))
    training.logging(foreign)
    _data(foreign)
    if (loss := foreign.take("loss_type", "nll")) not in ("nll", "chunked_nll"):
        foreign.note("hand", f"ftlab has the likelihood of the answers alone, not {loss}", "loss_type")


def _network(foreign: Foreign) -> None:
    dtype = foreign.text("dtype")
    if dtype == "auto":
        foreign.note("hand", "float32 stands for auto: give the type of the checkpoint", "dtype")
    held = "float32" if dtype == "auto" else dtype
    training.network(foreign, "model_name_or_path", held, foreign.text("attn_implementation"))


def _method(foreign: Foreign) -> None:
    few = foreign.flag("load_in_4bit"), foreign.flag("load_in_8bit")
    kind, double = foreign.take("bnb_4bit_quant_type"), foreign.flag("use_bnb_nested_quant")
    options = {
        "r": foreign.whole("lora_r"),
        "alpha": foreign.whole("lora_alpha"),
        "dropout": foreign.number("lora_dropout"),
        "rslora": foreign.flag("use_rslora"),
        "dora": foreign.flag("use_dora"),
        "modules_to_save": foreign.take("lora_modules_to_save"),
    }
    targets = foreign.texts("lora_target_modules") or None
    if not foreign.flag("use_peft"):
        if any(few):
            raise foreign.refuse("a network in few bits cannot be trained whole: set use_peft to true")
        adapters.whole(foreign)
        return
    bits = None
    if any(few):
        # TRL multiplies in the type of the weights
        bits = {
            "kind": kind if few[0] else "int8",
            "double": double and few[0],
            "compute_dtype": foreign.result["model"]["network"]["dtype"],
        }
    adapters.adapter(foreign, "all-linear" if targets == ["all-linear"] else targets, bits, **options)


def _data(foreign: Foreign) -> None:
    sources = _sources(foreign)
    if not sources:
        raise foreign.refuse("dataset_name is missing: say what is to be trained on")
    if len(sources) == 1:
        foreign.put("data.path", sources[0]["path"])
    else:
        foreign.put("data.sources", sources)
    foreign.put("data.max_length", foreign.whole_or_none("max_length"))
    end = foreign.take("truncation_mode") == "keep_end"
    foreign.put("data.truncate_from", "left" if end else "right")
    packed, cut = foreign.flag("packing"), foreign.take("packing_strategy") != "bfd"
    foreign.put("data.overflow", "split" if packed and cut else "truncate")
    if packed:
        foreign.put("data.batching", "pack")
        if cut:
            foreign.note("differs", "records are kept apart, and only running text is cut", "packing_strategy")
    training.held_out(foreign, "test_split_size")
    foreign.put("data.duplicates", {"exact": False})
    if foreign.flag("dataset_streaming") or foreign.flag("streaming"):
        foreign.put("data.streaming", True)
    if workers := foreign.whole("dataset_num_proc"):
        foreign.put("data.preparation_workers", workers)
    _template(foreign, _found(str(sources[0]["path"])))
    for name, same in {"dataset_train_split": ("train",), "dataset_test_split": ("validation", "dev", "val")}.items():
        split = foreign.take(name)
        if foreign.says(name) and split not in same:
            foreign.note("hand", f"ftlab finds train, dev and test by the files' names: {split} is none of these", name)
    if foreign.take("eval_strategy", "no") != "no" and not foreign.number("test_split_size"):
        foreign.note(
            "hand",
            "evaluation takes a file of its own, dev.jsonl beside train.jsonl, or a share: "
            "--data.splits.validation 0.1",
            "eval_strategy",
        )


def _sources(foreign: Foreign) -> list[dict[str, Any]]:
    name, subset = foreign.text("dataset_name"), foreign.text("dataset_config")
    listed = foreign.take("datasets", [])
    if not isinstance(listed, list):
        raise foreign.wrong("datasets", "a list of data sets")
    if not listed:
        return [{"path": f"{name}:{subset}" if subset else name}] if name else []
    found = []
    for each in listed:
        part = foreign.data_set(each, split="train")
        paths = foreign.files(part)
        found += [{"path": one} for one in paths]
        foreign.note_unread(part, paths[0], "datasets")
    return found


def _template(foreign: Foreign, kind: str | None) -> None:
    """What is learned and how it is joined depends in TRL on the columns."""
    only_completions, only_answers = foreign.take("completion_only_loss"), foreign.flag("assistant_only_loss")
    if only_answers:
        foreign.put("data.learn", "assistant")
    elif only_completions is not None:
        foreign.put("data.learn", "last" if only_completions else "all")
    elif kind is None:
        foreign.put("data.learn", "last")
        foreign.note(
            "hand",
            "the records are not at hand: of prompts and completions TRL learns the completion, as data.learn last "
            "does; of messages it learns every token, which here is data.learn all",
            "completion_only_loss",
        )
    else:
        foreign.put("data.learn", "all" if kind in ("messages", "conversations", "text") else "last")
    template = foreign.take("chat_template_path")
    if template and str(template).endswith(".jinja"):
        foreign.put("data.template", template)
    elif template:
        foreign.note(
            "hand", "save the template of that tokenizer as a .jinja file (data.template)", "chat_template_path"
        )
    elif kind in ("pairs of texts", "text"):
        foreign.put("data.template", "plain")  # TRL renders messages alone
    if (column := foreign.take("dataset_text_field")) != "text":
        foreign.put("data.format", "text")
        foreign.put("data.response", f"{{{column}}}")


def _found(path: str) -> str | None:
    """The format of records on this machine: a name of ftlab.data's, or pairs of texts; None where there are none."""
    if not Path(path).exists():
        return None
    from ftlab.data.formats import Format, recognise
    from ftlab.data.sources import open_source

    first = next(iter(open_source(path).splits.values())).first()
    try:
        kind = recognise(Format(), first).kind
    except UserError:  # training says it, with what to do
        return None
    of_texts = isinstance(first.columns.get("prompt"), str)
    return "pairs of texts" if kind == "pairs" and of_texts else kind
