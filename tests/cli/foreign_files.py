"""Configurations as the three tools' examples have them, with another network and records.

They are those of TRL's documentation, LLaMA-Factory's examples/train_lora and Axolotl's examples/llama-3.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from ftlab.cli.importing import imported

NETWORK = Path(__file__).resolve().parents[2] / "ftlab/assets/network"

TRL = """
model_name_or_path: {network}
dataset_name: {data}
learning_rate: 2.0e-4
num_train_epochs: 2
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
lr_scheduler_type: cosine
warmup_steps: 0.5
eval_strategy: steps
eval_steps: 2
dataset_test_split: validation
use_peft: true
lora_r: 32
lora_alpha: 16
max_length: 96
output_dir: Qwen2-0.5B-SFT
use_cpu: true
"""

LLAMA_FACTORY = """
### model
model_name_or_path: {network}
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: identity,chats
dataset_dir: {data}
template: llama3
cutoff_len: 96
max_samples: 10
overwrite_cache: true
preprocessing_num_workers: 1

### output
output_dir: saves/llama3-8b/lora/sft
logging_steps: 1
save_steps: 500
plot_loss: true
overwrite_output_dir: true

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
"""

AXOLOTL = """
base_model: {network}
model_type: AutoModelForCausalLM
tokenizer_type: AutoTokenizer

load_in_8bit: false
load_in_4bit: true
strict: false

datasets:
  - path: {data}/alpaca.jsonl
    type: alpaca
dataset_prepared_path:
val_set_size: 0.2
output_dir: ./outputs/qlora-out

adapter: qlora
lora_model_dir:

sequence_len: 512
sample_packing: false
pad_to_sequence_len: true

lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules:
lora_target_linear: true
lora_fan_in_fan_out:

wandb_project:
wandb_entity:

gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_32bit
lr_scheduler: cosine
learning_rate: 2e-4

train_on_inputs: false
group_by_length: false
bf16: auto
fp16:
tf32: false

gradient_checkpointing: true
early_stopping_patience:
resume_from_checkpoint:
logging_steps: 1
xformers_attention:
flash_attention: true

warmup_steps: 2
evals_per_epoch: 1
saves_per_epoch: 1
debug:
deepspeed:
weight_decay: 0.0
fsdp:
special_tokens:
  pad_token: "<|end_of_text|>"
"""
FILES = {"trl": TRL, "llama-factory": LLAMA_FACTORY, "axolotl": AXOLOTL}


def write(network: str, data_path: str) -> None:
    """The three files, and what LLaMA-Factory and Axolotl train on, in the working directory."""
    here = Path.cwd()
    rows = [{"instruction": f"Count to {n}.", "input": "", "output": f"It is {n}."} for n in range(16)]
    chats = [
        {"conversations": [{"from": "human", "value": f"Is it {n}?"}, {"from": "gpt", "value": f"No, {n}."}]}
        for n in range(12)
    ]
    for name, lines in {"alpaca": rows, "chats": chats}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    described = {
        "identity": {"file_name": "alpaca.jsonl"},
        "chats": {"file_name": "chats.jsonl", "formatting": "sharegpt"},
    }
    Path("dataset_info.json").write_text(json.dumps(described))
    data = {"trl": data_path, "llama-factory": str(here), "axolotl": str(here)}
    for name, text in FILES.items():
        base = NETWORK if name == "axolotl" else network  # Alpaca's wording takes room
        Path(f"{name}.yaml").write_text(text.format(network=base, data=data[name]))


def config_of(name: str) -> dict[str, Any]:
    return yaml.safe_load(imported(Path(f"{name}.yaml"))[0])


def change(name: str, **values: Any) -> None:
    config = yaml.safe_load(Path(f"{name}.yaml").read_text()) | values
    Path(f"{name}.yaml").write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
