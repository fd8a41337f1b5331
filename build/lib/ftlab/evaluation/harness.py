"""lm-evaluation-harness (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness) over a network at hand: an
optional package, whose numbers are its own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from ftlab.errors import UserError, one_line, out_of_memory
from ftlab.evaluation.generation import evaluating

_NO_NUMBERS = ("alias", "name", "sample_len", "sample_count")


@dataclass(frozen=True)
class HarnessResults:
    """What the harness found.

    Args:
        scores: `TASK_METRIC`, or `TASK_METRIC_FILTER` where answers were filtered, to numbers; `…_stderr` beside them.
        facts: By task its version, examples in its prompt, and records; and the harness's own version.
    """

    scores: dict[str, float]
    facts: dict[str, Any]


def refuse_without_harness() -> None:
    """Raises UserError where the package is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "--harness: lm-evaluation-harness is not installed: pip install 'ftlab[harness]', or pip install lm_eval"
        )


def evaluate(
    network: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    batch_size: int = 1,
    mixed_precision: str | None = None,
) -> HarnessResults:
    """Has the harness judge a network.

    Args:
        network: On its device, adapted or not, in evaluation mode.
        tokenizer: Its own.
        tasks: Names of the harness's tasks and groups, or paths of YAML files that describe tasks.
        batch_size: Requests at once.
        mixed_precision: Type in which matrices are multiplied, where another than that of the weights.

    Raises:
        UserError: The package is not there, there is no such task, or it cannot be run.
    """
    refuse_without_harness()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with evaluating(network):  # its own generation_config would go before what a task asks for
            wrapped = HFLM(
                pretrained=network, tokenizer=tokenizer, batch_size=batch_size, mixed_precision_dtype=mixed_precision
            )
            results = simple_evaluate(model=wrapped, tasks=list(tasks), log_samples=False)
    except Exception as error:  # every task has errors of its own: of its files, its columns, the hub
        if out_of_memory(error):
            raise
        said = one_line(error).strip("\"'") or type(error).__name__
        raise UserError(f"--harness {','.join(tasks)}: {said}") from error
    if not results or not results["results"]:
        raise UserError(f"--harness {','.join(tasks)}: the harness gave no results")
    return HarnessResults(_scores(results["results"]), _facts(results))


def _scores(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The harness names `metric,filter`, and a metric that is not known `N/A`."""
    scores = {}
    for task, found in results.items():
        for key, value in found.items():
            metric, _, filtered = key.partition(",")
            if metric in _NO_NUMBERS or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            suffix = "" if filtered in ("", "none") else f"_{filtered}"
            name = metric.removesuffix("_stderr")
            scores[f"{task}_{name}{suffix}" + "_stderr" * (name != metric)] = float(value)
    return scores


def _facts(results: Mapping[str, Any]) -> dict[str, Any]:
    tasks = {
        task: {
            "version": results.get("versions", {}).get(task),
            "examples": results.get("n-shot", {}).get(task),
            "records": results.get("n-samples", {}).get(task, {}).get("effective"),
        }
        for task in results["results"]
    }
    return {"lm_eval": importlib.metadata.version("lm_eval"), "tasks": tasks}
