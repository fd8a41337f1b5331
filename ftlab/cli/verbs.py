"""fit, validate, test and predict: each runs one experiment and leaves its results in the run directory."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from ftlab.callbacks import ModelWriter, peak_memory
from ftlab.cli import harness
from ftlab.cli.breakdowns import breakdowns, situation_of
from ftlab.cli.experiment import Experiment, trainer_refusals
from ftlab.cli.on_slurm import asked_for, submit, unchanged
from ftlab.cli.provenance import facts, session
from ftlab.cli.retention import Retention
from ftlab.cli.wandb_results import conclude, tell_scores
from ftlab.console import new_console
from ftlab.errors import Preempted, UserError
from ftlab.networks import count_parameters
from ftlab.runs import Run, files_under, short_hash

_LIMITS = ("limit_val_batches", "limit_test_batches")
_DECIDE_SCORES = ("data.", "model.", "trainer.precision", *(f"trainer.{name}" for name in _LIMITS))


def run(verb: str, arguments: Sequence[str]) -> int:
    """Runs a verb on the experiment that the arguments describe."""
    if verb == "fit":
        arguments = ["--run.profile=true" if word == "--profile" else word for word in arguments]
    tasks, arguments = harness.asked_for(verb, arguments)
    as_json = verb in ("validate", "test") and "--json" in arguments
    if as_json:
        arguments = [word for word in arguments if word != "--json"]
    submission, arguments = asked_for(verb, arguments)
    if submission:
        return submit(submission, arguments)
    verbs: dict[str, Callable[[Experiment], dict[str, float] | None]]
    verbs = {"fit": fit, "validate": validate, "test": test, "predict": predict}
    with trainer_refusals():
        experiment = Experiment(arguments, verb)
        with breakdowns(lambda: situation_of(experiment, verb)):
            if tasks:
                _to_judge(experiment)
                scores: dict[str, float] | None = harness.judge(experiment, tasks)
            else:
                scores = verbs[verb](experiment)
    if scores is not None:
        _print(experiment.run, scores, as_json)
    return 0


def _print(run: Run, scores: Mapping[str, float], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"run": str(run.directory), "scores": scores}, indent=2))
        return
    table = Table("score", "value", title=str(run.directory))
    for name, value in scores.items():
        table.add_row(name, f"{value:.4f}")
    new_console().print(table)


def fit(experiment: Experiment) -> None:
    """Trains, or goes on, or says that the run has come to its end; writes checkpoints, curves and `model/`, and prints
    where they lie."""
    run, module, trainer = experiment.run, experiment.model, experiment.trainer
    experiment.refuse_endless()
    module.forced = experiment.config.run.resume == "force"
    config, owner = experiment.resolved(), trainer.is_global_zero
    unchanged(run, config)
    config["run"] |= {"resume": "exact", "profile": False}  # or what was asked for once would be for ever
    with experiment.preemption, run.claimed(config, owner, module.forced):
        if run.finished_as(config):
            _say(f"{run.directory} has finished; another --run.name repeats it")
            if owner:
                print(run.directory)
            return
        experiment.datamodule.setup("fit")
        _say_what_trains(experiment)
        retention = Retention(experiment)
        retention.refuse()
        experiment.log_to_wandb()
        begin = experiment.checkpoint_to_go_on_from() if module.method.trains else None
        if trainer.is_global_zero:
            run.begin(facts(experiment), session(experiment, begin))
        retention.before()
        started = time.perf_counter()
        if module.method.trains:
            train(experiment, begin)
        else:
            trainer.validate(module, experiment.datamodule, verbose=False)
            ModelWriter(run).on_fit_end(trainer, module)
        judged = next(iter(experiment.checkpoints.best.values()), trainer.callback_metrics)
        scores = {"val_loss": float(judged["val_loss"])} if "val_loss" in judged else {}
        cost = _cost(experiment, time.perf_counter() - started) if trainer.is_global_zero else {}
        kept = retention.after(experiment.trained_checkpoint()) if experiment.datamodule.retention else {}
        if not trainer.is_global_zero:
            return
        if scores:
            run.add_scores(scores)
        retention.keep(kept)
        data, model = experiment.datamodule.summary(), run.model_digests()
        run.end("finished", cost=cost, data=data, model=model, steps_taken=trainer.global_step)
        trained, total = cost["trainable_parameters"], cost["parameters"]
        _say(f"{run.directory}: {trained:,} of {total:,} parameters trained ({trained / total:.2%})")
        if experiment.session:
            conclude(experiment.session, experiment.config_init["wandb"], run)
        _say(f"score it with ftlab test -c {shlex.quote(str(run.directory / 'config.yaml'))}")
        print(run.directory)  # for programs


def _cost(experiment: Experiment, seconds: float) -> dict[str, Any]:
    """What training took."""
    run, module, trainer = experiment.run, experiment.model, experiment.trainer
    assert module.network is not None
    trained, total = count_parameters(module.network, module.method.trained(module.network))
    return {
        "trainable_parameters": trained,
        "parameters": total,
        "model_bytes": sum(file.stat().st_size for file in files_under(run.model)),
        "seconds": round(seconds, 3),
        "training_seconds": round(experiment.throughput.seconds, 3),
        "peak_memory_bytes": peak_memory(trainer.strategy.root_device),
        "supervised_tokens": experiment.throughput.supervised,
        "total_tokens": experiment.throughput.total,
        **({} if experiment.throughput.joules is None else {"joules": round(experiment.throughput.joules, 1)}),
        **({"in_shards": module.sharded.what} if module.sharded else {}),
    }


def _say_what_trains(experiment: Experiment) -> None:
    """What was left out of the data, and which layout `auto` has chosen: nobody should learn of it by surprise."""
    data = experiment.datamodule
    if not (experiment.trainer.is_global_zero and experiment.model.method.trains):
        return
    dropped = data.summary()["dropped"]
    if dropped:
        rules = ", ".join(f"{rule} {count:,}" for rule, count in dropped.items())
        _say(f"left out of the data: {rules}; ftlab prepare lists them")
    if data.batching == "auto":
        _say(f"batches: {data.layout.kind}: {data.layout.why}")


def train(experiment: Experiment, begin: str | None) -> None:
    """Trains.

    Args:
        experiment: What, and how.
        begin: The checkpoint to go on from; None for the start.

    Raises:
        KeyboardInterrupt: The user has stopped it.
        Preempted: Another signal has.
    """
    run = experiment.run
    try:
        experiment.trainer.fit(experiment.model, experiment.datamodule, ckpt_path=begin)
    except (Preempted, SystemExit) as stop:  # the latter is Lightning's answer to a KeyboardInterrupt
        by_user = isinstance(stop, SystemExit) or experiment.preemption.signal == signal.SIGINT
        said = ""  # by all processes but the first
        if experiment.trainer.is_global_zero:
            said = str(stop) if isinstance(stop, Preempted) else f"stopped: {run.next_start()}"
            if run.last.is_file():
                run.end("interrupted" if by_user else "preempted")
        raise (KeyboardInterrupt if by_user else Preempted)(said) from stop


def validate(experiment: Experiment) -> dict[str, float] | None:
    """Scores the validation records with the run's best weights; `val_…` go into scores.json, by the first process."""
    checkpoint = _to_judge(experiment)
    experiment.datamodule.setup("validate")  # which refuses a retention set that is also in training
    retention = Retention(experiment)
    retention.before()
    experiment.datamodule.answers_in_validation = True
    experiment.trainer.validate(experiment.model, experiment.datamodule, ckpt_path=checkpoint, verbose=False)
    return _keep_scores(experiment, "val", "validation", retention)


def test(experiment: Experiment) -> dict[str, float] | None:
    """Scores the test records with the run's best weights; `test_…` go into scores.json, by the first process."""
    checkpoint = _to_judge(experiment)
    if experiment.datamodule.scored_split != "test":
        _say(f"{experiment.datamodule.corpus.name} has no test records: scoring the validation records")
    experiment.datamodule.setup("test")  # which refuses a retention set that is also in training
    retention = Retention(experiment)
    retention.before()
    experiment.trainer.test(experiment.model, experiment.datamodule, ckpt_path=checkpoint, verbose=False)
    return _keep_scores(experiment, "test", "test", retention)


def predict(experiment: Experiment) -> None:
    """Answers every prompt of the data with the run's best weights, into predictions/predict.jsonl."""
    checkpoint = _to_judge(experiment)
    experiment.trainer.predict(experiment.model, experiment.datamodule, ckpt_path=checkpoint, return_predictions=False)
    if experiment.trainer.is_global_zero:
        records = experiment.datamodule.prompts
        answers = experiment.model.tally.answers
        rows = [
            {"prompt": records[i].prompt, "references": list(records[i].references), "prediction": answers[i]}
            for i in sorted(answers)
        ]
        print(experiment.run.write_predictions("predict", rows))


def _to_judge(experiment: Experiment) -> str | None:
    """The weights to judge; what is logged meanwhile is no part of the training's curves."""
    experiment.trainer.loggers = []
    checkpoint = experiment.trained_checkpoint()
    run = experiment.run
    for key, (theirs, ours) in run.differences(experiment.resolved()).items():
        if key.startswith(("model.method", "model.network", "seed_everything")):
            raise UserError(f"{run.directory} was trained with {key} {theirs}, not {ours}: it cannot be judged as that")
    if not run.finished:
        _say(f"{run.directory} has not come to its end: judging what there is")
    return checkpoint


def _keep_scores(experiment: Experiment, prefix: str, split: str, retention: Retention) -> dict[str, float] | None:
    """Returns what was written, in the process that writes."""
    run, tally = experiment.run, experiment.model.tally
    kept = retention.after()
    if not experiment.trainer.is_global_zero:
        return None
    scores = {f"{prefix}_{name}": value for name, value in tally.scores().items()}
    suffix = _suffix_of_other_scores(experiment)
    run.add_scores(scores, suffix)
    if tally.predictions:
        run.write_predictions(split + suffix, tally.predictions)
    if tally.losses:
        run.write_predictions(f"{split}_losses{suffix}", tally.losses)
    if tally.texts:
        run.note(signatures=tally.texts.signatures)
    scores |= retention.keep(kept, suffix)
    if not suffix:
        tell_scores(experiment.config_init["wandb"], run, split)
    return scores


def _suffix_of_other_scores(experiment: Experiment) -> str:
    """A hash where other data, decoding or precision was asked for than the run's own, or a part of the records: its
    scores must not be replaced."""
    run, config = experiment.run, experiment.resolved()
    other = {key: ours for key, (_, ours) in run.differences(config).items() if key.startswith(_DECIDE_SCORES)}
    if not (config["model"]["decoding"]["temperature"] or any(config["trainer"][name] for name in _LIMITS)):
        other.pop("data.eval_batch_size", None)  # scores differ by rounding alone
    if not other:
        return ""
    suffix = f"-{short_hash(other)}"
    changed = ", ".join(f"{key} {value}" for key, value in other.items())
    _say(f"scored with {changed}, unlike the run: kept apart, in {run.scores.stem}{suffix}.json")
    return suffix


def _say(sentence: str) -> None:
    print(f"ftlab: {sentence}", file=sys.stderr)
