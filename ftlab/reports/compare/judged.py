"""What runs were judged by: the scores of a metric and the records behind them; and what makes two not comparable."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from ftlab.errors import UserError
from ftlab.evaluation import statistics
from ftlab.evaluation.resampling import Array
from ftlab.evaluation.score_names import rank
from ftlab.evaluation.sums import score_of_sums, sums
from ftlab.progress import Progress
from ftlab.reports.compare.forgetting import changes, other_documents
from ftlab.reports.compare.groups import SEEDS, Group, JudgedRun
from ftlab.reports.compare.metric import Metric, command, name_of_set, refuse_older

ALLOWED = ("data", "network", "decoding", "tuning")
_MOST = 3
"""Differences that a sentence names."""


def find_metric(name: str | None, groups: Sequence[Group]) -> Metric:
    """The metric of that name that all runs have; with none given rougeL, or what else they have.

    Raises:
        UserError: Some run has no such score.
    """
    runs = [run for group in groups for run in group.runs]
    asked = name or ""
    if asked.startswith(("retention_", "harness_")) and not name_of_set(asked):
        raise UserError(
            f"methods are not compared by {asked}, of which ftlab does not know whether more is better: give a score "
            "of test or validation records, or retention_NAME_loss_change"
        )
    if Metric.of_key(asked).prefix == "test":
        for run in runs:
            if not any(key.startswith("test_") for key in run.scores):
                raise UserError(
                    f"{run} has no test scores: {command(run, 'test_')} makes them; --skip-unscored leaves such "
                    "runs out, and a metric such as val_loss compares on validation records"
                )
    metric = Metric.of_key(name or _default(runs))
    known = {key for run in runs for key in run.scores}
    if metric.key not in known:
        raise UserError(f"no run has {metric.key}: there are {', '.join(sorted(known))}")
    for run in runs:
        if metric.key not in run.scores:
            raise UserError(f"{run} has no {metric.key}: it has {', '.join(sorted(run.scores))}; {_again(run, metric)}")
        if not math.isfinite(value := run.scores[metric.key]):
            raise UserError(f"{run} has {metric.key} {value}, which compares with nothing: leave it out")
    return metric


def _default(runs: Sequence[JudgedRun]) -> str:
    """rougeL, or another score of texts, or the loss, whichever all runs have."""
    shared = [key for key in runs[0].scores if key.startswith("test_") and all(key in run.scores for run in runs)]
    if not shared:
        raise UserError(f"{runs[0]} and the other runs have no test score in common: score all by the same metrics")
    return min(shared, key=rank)


def refuse_unfinished(run: JudgedRun) -> None:
    """Raises:
    UserError: The run has not come to its end, or does not say on what it was trained.
    """
    state = run.record.get("state")
    if state != "finished":
        raise UserError(
            f"{run} has not come to its end (it is {state or 'not begun'}): let ftlab fit finish it, or leave it out "
            "(--skip-unscored leaves out all such runs)"
        )
    if not run.fingerprints:
        raise UserError(f"{run} does not say on which network and data it was trained: leave it out, or train it again")


def refuse_others(groups: Sequence[Group], metric: Metric, allowed: Sequence[str]) -> list[str]:
    """Refuses groups that were trained or judged on other things, and says what was allowed to differ.

    Raises:
        UserError: Two differ in something that was not allowed.
    """
    first = groups[0].first
    noted = []
    for aspect, what in _ASPECTS.items():
        if aspect == "decoding" and not metric.of_texts:
            continue
        for run in (run for group in groups for run in group.runs):
            mine, theirs = what(first), what(run)
            if mine == theirs:
                continue
            apart = f"{first} and {run} differ in their {aspect}: {_apart(mine, theirs)}"
            if aspect not in allowed:
                raise UserError(
                    f"{apart}; a difference of scores would say nothing of the methods (ftlab diff shows all of it, "
                    f"--allow {aspect} compares them nevertheless)"
                )
            noted.append(apart)
            break
    return noted


def _data(run: JudgedRun) -> Mapping[str, Any]:
    return {key: value for key, value in run.fingerprints.items() if key.startswith("data.")}


def _network(run: JudgedRun) -> Mapping[str, Any]:
    files = {key: value for key, value in run.fingerprints.items() if key.startswith("network.")}
    return files | {key: run.config.get(key) for key in ("model.network.random_weights",)}


def _decoding(run: JudgedRun) -> Mapping[str, Any]:
    return {key: value for key, value in run.config.items() if key.startswith("model.decoding.") and key not in SEEDS}


_ASPECTS = {"data": _data, "network": _network, "decoding": _decoding}


def _apart(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    said = [f"{key} is {mine.get(key)} there and {theirs.get(key)} here" for key in keys[:_MOST]]
    return ", ".join(said) + (f", and {len(keys) - _MOST} more" if len(keys) > _MOST else "")


def judged(groups: Sequence[Group], metric: Metric, resamples: int) -> list[statistics.Sample]:
    """Each group's scores, and those on records drawn anew where single records have scores.

    Raises:
        UserError: Runs were judged on other records, or predictions do not belong to the scores.
    """
    if metric.of_retention:
        if apart := other_documents(name_of_set(metric.key), groups):
            raise UserError(f"{apart}; judge both on the same")
        return [changes(metric.key, group) for group in groups]
    if not metric.of_texts:
        _refuse_other_rows(groups, metric)
        runs = [run for group in groups for run in group.runs]
        kept = [run for run in runs if metric.file(run).is_file()]
        if len(kept) < len(runs):
            for run in kept:
                _refuse_older(run, metric)
            return [
                statistics.Sample(numpy.array([run.scores[metric.key] for run in group.runs]), group.seeds, group.drawn)
                for group in groups
            ]
    score = score_of_sums(metric.name)
    first: tuple[JudgedRun, list[dict[str, Any]]] | None = None
    samples = []
    with Progress("drawing records anew", "methods", len(groups)) as bar:
        for group in groups:
            tables = []
            for run in group.runs:
                rows = answers(run, metric)
                first = first or (run, rows)
                _refuse_other_records(*first, run, rows)
                tables.append(_checked(sums(metric.name, rows), run, metric))
            samples.append(statistics.sample(numpy.stack(tables), score, group.seeds, group.drawn, resamples))
            bar.advance()
    return samples


def answers(run: JudgedRun, metric: Metric) -> list[dict[str, Any]]:
    """The records as the run answered them: prompt, references, prediction, scores; of a loss each record's own.

    Raises:
        UserError: They are not there, or damaged.
    """
    path = metric.file(run)
    try:
        with path.open(encoding="utf-8") as lines:  # str.splitlines would split at U+2028 in an answer, too
            rows = [json.loads(line) for line in lines]
    except FileNotFoundError:
        raise UserError(f"{run} has a {metric.key} but no {path.name}: {_again(run, metric)}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {_again(run, metric)}") from error
    _refuse_older(run, metric)
    keys = ("references", "prediction", "scores") if metric.of_texts else _KEYS_OF_LOSSES
    if not rows or not all(key in row for row in rows for key in keys):
        raise UserError(f"{path} holds no records as ftlab writes them: {_again(run, metric)}")
    if metric.of_texts and any(metric.name not in row["scores"] for row in rows):
        raise UserError(f"{path} has records without {metric.name}: {_again(run, metric)}")
    return rows


def _refuse_older(run: JudgedRun, metric: Metric) -> None:
    refuse_older(metric.file(run), run.record["ended"], "the end of training", _again(run, metric))


_KEYS_OF_LOSSES = ("record", "loss", "tokens")


def _again(run: JudgedRun, metric: Metric) -> str:
    return f"{command(run, metric.key)} writes it again"


def _refuse_other_records(
    first: JudgedRun, theirs: Sequence[Mapping[str, Any]], run: JudgedRun, mine: Sequence[Mapping[str, Any]]
) -> None:
    if len(theirs) != len(mine):
        raise UserError(f"{first} was judged on {len(theirs)} records and {run} on {len(mine)}: judge both on the same")
    for number, (one, other) in enumerate(zip(theirs, mine, strict=True), 1):
        for key in ("prompt", "references", "record", "tokens"):
            if one.get(key) != other.get(key):
                raise UserError(
                    f"{first} and {run} were judged on other records: the {key} of record {number} is "
                    f"{_short(one.get(key))} there and {_short(other.get(key))} here; judge both on the same"
                )


def _refuse_other_rows(groups: Sequence[Group], metric: Metric) -> None:
    """The loss is per token of the split's rows: other rows, or another tokenizer, give another number."""
    runs = [run for group in groups for run in group.runs]

    def rows(run: JudgedRun) -> dict[str, Any]:
        sizes = {f"data.{metric.split}_{what}": run.record["data"].get(f"{metric.split}_{what}") for what in _SIZES}
        of_split = {key: value for key, value in run.fingerprints.items() if key.startswith(f"data.{metric.split}")}
        limit = {"data.validation_limit": run.config.get("data.validation_limit")} if metric.prefix == "val" else {}
        return sizes | of_split | limit | {"tokenizer": run.fingerprints.get("tokenizer")}

    for run in runs:
        if rows(run) != rows(runs[0]):
            apart = _apart(rows(runs[0]), rows(run))
            raise UserError(f"{runs[0]} and {run} were judged on other rows: {apart}; judge both on the same")


_SIZES = ("rows", "tokens", "target_tokens")


def _checked(summed: Array, run: JudgedRun, metric: Metric) -> Array:
    """The same, where they come to the run's score."""
    score = float(score_of_sums(metric.name)(summed.sum(axis=0)))
    said = run.scores[metric.key]
    if not math.isclose(score, said, rel_tol=1e-6, abs_tol=1e-6):
        raise UserError(
            f"{metric.file(run)} comes to a {metric.name} of {score:.4f}, and scores.json says "
            f"{said:.4f}: they are not of the same pass; {_again(run, metric)}"
        )
    return summed


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def refuse_unequal_tuning(groups: Sequence[Group], allowed: Sequence[str]) -> None:
    """Raises:
    UserError: Methods that are trained had a different number of values to choose among.
    """
    trained = [group for group in groups if group.trained]
    for group in trained[1:]:
        if group.tried != trained[0].tried and "tuning" not in allowed:
            raise UserError(
                f"{trained[0].name} was chosen among {trained[0].tried} values and {group.name} among {group.tried}: "
                "give each method as many, or --allow tuning"
            )
