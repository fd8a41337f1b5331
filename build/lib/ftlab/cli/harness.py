"""`ftlab test … --harness TASK,…`: a run by the tasks of lm-evaluation-harness, in the place of its test records."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ftlab.cli.experiment import Experiment
from ftlab.errors import UserError
from ftlab.evaluation.harness import evaluate, refuse_without_harness

_OPTION = "--harness"
_MIXED = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}


def asked_for(verb: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The tasks that the arguments name, and the other arguments.

    Raises:
        UserError: None is named, the verb has no such option, or the package is not there.
    """
    tasks: list[str] = []
    rest: list[str] = []
    asked = expected = False
    for word in arguments:
        option, equals, value = word.partition("=")
        if expected or (option == _OPTION and equals):
            tasks += [task for task in (word if expected else value).split(",") if task]
            expected, asked = False, True
        elif word == _OPTION:
            expected = asked = True
        else:
            rest.append(word)
    if not asked:
        return [], rest
    if verb != "test":
        raise UserError(f"{_OPTION} is for ftlab test, not for {verb}")
    if not tasks:
        raise UserError(f"{_OPTION} names no task: give one or several, as in {_OPTION} hellaswag,arc_easy")
    refuse_without_harness()
    return tasks, rest


def judge(experiment: Experiment, tasks: Sequence[str]) -> dict[str, float]:
    """Scores the run's best weights, as `model/` holds them; `harness_…` go into scores.json.

    Returns:
        These.

    Raises:
        UserError: Training has not come to its end, or the harness cannot run a task.
    """
    trainer, run = experiment.trainer, experiment.run
    if trainer.world_size > 1:
        raise UserError(f"{_OPTION} judges in one process, and there would be {trainer.world_size}: give one device")
    network = experiment.open_trained(trainer.strategy.root_device)
    # as Lightning has the run's weights; through a list, since transformers refuses a type for what is in 4 bits
    trainer.precision_plugin.convert_module(nn.ModuleList([network]))
    tokenizer = experiment.model.pretrained.tokenizer()
    mixed = _MIXED.get(str(trainer.precision))
    found = evaluate(network, tokenizer, tasks, experiment.datamodule.eval_batch_size, mixed)
    scores = {f"harness_{name}": value for name, value in found.scores.items()}
    run.add_scores(scores)
    noted = run.record().get("harness", {})
    run.note(harness={"lm_eval": found.facts["lm_eval"], "tasks": noted.get("tasks", {}) | found.facts["tasks"]})
    return scores
