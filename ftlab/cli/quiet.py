"""Silences, each by its words and with a reason, what libraries print and a user cannot act on."""

from __future__ import annotations

import logging
import os
import warnings

# logger, beginning of the message
_LOG_LINES = [
    # a hint at a package that would download code at run time; ftlab keeps bitsandbytes' own CPU path
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward"),
    # LLM.int8 says it for each layer and step, of the cast that it is known for
    ("bitsandbytes.autograd._functions", "MatMul8bitLt: inputs will be cast"),
    # merging a quantised base says what it does itself
    ("transformers.integrations.bitsandbytes", "The modules are dequantized"),
    # the configuration says the seed and the devices
    ("lightning.fabric.utilities.seed", "Seed set to"),
    ("lightning.fabric.utilities.seed", "[rank: "),
    ("lightning.pytorch.utilities.rank_zero", "GPU available"),
    ("lightning.pytorch.utilities.rank_zero", "TPU available"),
    ("lightning.pytorch.utilities.rank_zero", "Using bfloat16"),
    ("lightning.fabric.utilities.distributed", "Initializing distributed"),
    ("lightning.pytorch.utilities.rank_zero", "`Trainer(val_check_interval="),
    ("lightning.pytorch.utilities.rank_zero", "`Trainer(limit_"),
    ("lightning.pytorch.utilities.rank_zero", "-----"),
    # advertising
    ("lightning.pytorch.utilities.rank_zero", "💡 Tip"),
    # ftlab says itself where it goes on and where it stops
    ("lightning.pytorch.utilities.rank_zero", "`Trainer.fit` stopped"),
    ("lightning.pytorch.utilities.rank_zero", "Detected KeyboardInterrupt"),
    ("lightning.pytorch.utilities.rank_zero", "Restor"),
    ("lightning.pytorch.utilities.rank_zero", "Loaded model weights"),
    # checkpoints of ftlab hold tensors and plain values, and are opened with weights_only where ftlab opens them
    ("lightning.pytorch.trainer.connectors.checkpoint_connector", "`weights_only` was not set"),
]

_WARNINGS = [
    # Lightning of torch's pytrees, and transformers and peft of each other: nothing the user called
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*is_gradient_checkpointing. is deprecated.*",
    r".*gradient_checkpointing_enable. is deprecated.*",  # the new name is missing in older releases of 5
    # Lightning of jsonargparse
    r"(?s).*By default only one JsonargparseDeprecationWarning.*",
    r"(?s).*``instantiate_classes`` was deprecated.*",
    # a cluster's login node is a machine, too
    r".*The `srun` command is available on your system but is not used.*",
    # batches are put together from memory: workers would cost more than they bring
    r".*does not have many workers.*",
    # of workers that are more than cores ftlab tells once, with the key
    r".*This DataLoader will create \d+ worker processes in total.*",
    # a set without records to validate on or to test on was asked for
    r".*Total length of `list` across ranks is zero.*",
    # short runs log at the interval that they ask for
    r".*The number of training batches .* is smaller than the logging interval.*",
    # what the PiSSA and OLoRA initialisations warn of is what ftlab converts when it saves
    r".*changes the base weights of the model and should thus not be used with other adapters.*",
    r".*with eva initialization used with low_cpu_mem_usage=False.*",
    # of a start that has been converted when the adapter was saved; ftlab refuses it where the user has given it
    r".*`(loftq|eva|corda)_config` specified but will be ignored.*",
    # LN-tuning and BEFT take the layers that they are for; that BEFT cannot be merged, a merge says
    r".*Unsupported layer type '<class '.*Norm'>' encountered.*",
    r".*the base layer has no bias term. Note you cannot merge the BEFT adapter.*",
    # BOFT with one factor is the same without the extension; with more ftlab refuses
    r".*Failed to load the CUDA extension.*",
    r".*Setting boft_n_butterfly_factor to 1.*",
    # peft sets it right itself for GPT-2's layers
    r".*fan_in_fan_out is set to False but the target module is .*Conv1D.*",
    # LoRA-GA looks at gradients of frozen layers
    r".*Full backward hook is firing when gradients are computed.*",
    # SHiRA's indices are drawn once and are in bounds
    r".*Sparse invariant checks are implicitly disabled.*",
    # the loss is added up over devices before it is logged
    r".*It is recommended to use .self.log\(.*sync_dist=True.*",
    # predict: the sampler of evaluation gives every record, and answers are kept by the module
    r".*You are using a custom batch sampler .LengthBatchSampler. for prediction.*",
    r".*predict returned None if it was on purpose.*",
    # the trainer keeps the checkpoints where ftlab tells it to
    r".*Checkpoint directory .* exists and is not empty.*",
]


def silence() -> None:
    """To be called before anything heavy is imported; some libraries speak on import."""
    os.environ.setdefault("WANDB_SILENT", "true")  # its banner: ftlab prints one line of its own
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns at every fork of a data worker
    for name in {logger for logger, _ in _LOG_LINES}:
        beginnings = tuple(beginning for logger, beginning in _LOG_LINES if logger == name)
        logging.getLogger(name).addFilter(_Without(beginnings))
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)


class _Without(logging.Filter):
    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self.beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().lstrip().startswith(self.beginnings)
