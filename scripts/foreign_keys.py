"""The keys that configurations of TRL, LLaMA-Factory and Axolotl may have, with their defaults, read from the packages.

    pip download --no-deps trl llamafactory axolotl transformers==4.57.6    # and unzip each wheel into a directory
    python scripts/foreign_keys.py trl SITE_PACKAGES OLDER
    python scripts/foreign_keys.py llama-factory LLAMAFACTORY OLDER
    python scripts/foreign_keys.py axolotl AXOLOTL

Nothing is imported: the classes are read as text. What only the last directory has is kept too, without a default:
names of before, which files still use. `ftlab import-config` reads what this writes into ftlab/assets/importing/keys/.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

OUT = Path(__file__).resolve().parent.parent / "ftlab" / "assets" / "importing" / "keys"

# package, and in it the file and the classes (none: all) whose fields are keys, in the order in which defaults override
TOOLS: dict[str, list[tuple[str, str, tuple[str, ...]]]] = {
    "trl": [
        ("transformers", "training_args.py", ("TrainingArguments",)),
        ("trl", "trainer/base_config.py", ("_BaseConfig",)),
        ("trl", "trainer/sft_config.py", ("SFTConfig",)),
        ("trl", "trainer/model_config.py", ("ModelConfig",)),
        ("trl", "scripts/utils.py", ("ScriptArguments", "DatasetMixtureConfig")),
    ],
    "llama-factory": [
        ("transformers", "training_args.py", ("TrainingArguments",)),
        ("transformers", "training_args_seq2seq.py", ("Seq2SeqTrainingArguments",)),
        ("llamafactory", "hparams/data_args.py", ()),
        ("llamafactory", "hparams/finetuning_args.py", ()),
        ("llamafactory", "hparams/generating_args.py", ()),
        ("llamafactory", "hparams/model_args.py", ()),
        (
            "llamafactory",
            "hparams/training_args.py",
            ("ProfilerArguments", "Fp8Arguments", "RayArguments", "TrainingArguments"),
        ),
    ],
    "axolotl": [
        *(
            ("axolotl", f"utils/schemas/{name}.py", classes)
            for name, classes in {
                "config": ("AxolotlInputConfig",),
                "model": ("ModelInputConfig", "ModelOutputConfig"),
                "peft": ("LoraConfig", "ReLoRAConfig"),
                "training": ("HyperparametersConfig", "JaggedLRConfig"),
                "integrations": (
                    *("MLFlowConfig", "LISAConfig", "WandbConfig", "CometConfig", "GradioConfig", "RayConfig"),
                    *("OpenTelemetryConfig", "TrackioConfig"),
                ),
                "multimodal": ("MultiModalConfig",),
                "deprecated": ("DeprecatedParameters", "RemappedParameters"),
            }.items()
        ),
        ("axolotl", "integrations/*/args.py", ("*Args",)),
    ],
}
DATASETS = {
    "axolotl": ("axolotl", "utils/schemas/datasets.py", ("SFTDataset", "PretrainingDataset")),
    "trl": ("trl", "scripts/utils.py", ("DatasetConfig",)),
}
# read before the classes, or by releases before: LLaMA-Factory at 00577a85, Axolotl at 002a637c
MORE = {
    "trl": ["env", "evaluation_strategy", "max_seq_length", "torch_dtype", "dataset_batch_size", "use_liger"],
    "llama-factory": [
        *("evaluation_strategy", "placement_strategy", "ray_storage_filesystem", "ray_storage_path"),
        *("resources_per_worker", "kt_optimize_rule", "cpu_infer", "chunk_size", "mode", "kt_maxlen"),
        *("kt_use_cuda_graph", "kt_mode", "kt_force_think"),
    ],
    "axolotl": [
        *("debug", "torchdistx_path", "flash_attn_fuse_qkv", "unsloth_cross_entropy_loss", "unsloth_lora_mlp"),
        *("unsloth_lora_o", "unsloth_lora_qkv", "unsloth_rms_norm", "unsloth_rope"),
    ],
}


def fields(files: list[Path], wanted: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Name and default of each field of the classes, by its alias where it has one."""
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and (not wanted or any(fnmatch(node.name, name) for name in wanted)):
                for line in node.body:
                    if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and _is_set(line):
                        said = _arguments(line.value)
                        yield _literal(said.get("alias")) or line.target.id, _default(line.value, said)


def _is_set(line: ast.AnnAssign) -> bool:
    """Whether a configuration may say it: no ClassVar, and none that is worked out (init=False)."""
    return "ClassVar" not in ast.unparse(line.annotation) and _literal(_arguments(line.value).get("init")) is not False


def _arguments(value: ast.expr | None) -> dict[str | None, ast.expr]:
    return {each.arg: each.value for each in value.keywords} if isinstance(value, ast.Call) else {}


def _default(value: ast.expr | None, said: dict[str | None, ast.expr]) -> Any:
    return _literal(said.get("default") if isinstance(value, ast.Call) else value)


def _literal(value: ast.expr | None) -> Any:
    if isinstance(value, ast.BinOp):  # of pixels
        return eval(compile(ast.Expression(value), "", "eval"), {"__builtins__": {}})
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


def read(tool: str, directories: list[Path]) -> dict[str, Any]:
    """What is written: the packages' versions, the keys with their defaults, the keys of a data set."""
    packages: dict[str, str] = {}
    keys: dict[str, Any] = {}
    for directory in reversed(directories):  # so that the first has the last word on a default
        for package, file, classes in TOOLS[tool]:
            if files := sorted((directory / package).glob(file)):
                packages[_version_of(package, directory)] = ""
                of_before = len(directories) > 1 and directory == directories[-1]
                keys |= {key: None if of_before else value for key, value in fields(files, classes)}
    keys = dict.fromkeys(MORE.get(tool, [])) | keys
    found = {"packages": sorted(packages), "keys": dict(sorted(keys.items()))}
    if tool in DATASETS:
        package, file, classes = DATASETS[tool]
        names = {
            key for directory in directories for key, _ in fields(sorted((directory / package).glob(file)), classes)
        }
        found["of a data set"] = sorted(names)
    return found


def _version_of(package: str, directory: Path) -> str:
    (found,) = directory.glob(f"{package}-*.dist-info")
    return found.name.removesuffix(".dist-info").replace("-", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="where the packages lie")
    options = parser.parse_args()
    text = yaml.safe_dump(read(options.tool, options.directories), sort_keys=False, width=120)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{options.tool}.yaml").write_text(
        f"# What a configuration of {options.tool} may say, with the defaults that are plain values.\n"
        f"# Written by scripts/foreign_keys.py.\n{text}",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
