"""Which runs there are, and which are one method with several seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ftlab.errors import UserError
from ftlab.reports.compare.curves import Curve, read
from ftlab.runs import Run, identity
from ftlab.runs.checkpoint_files import step_of
from ftlab.runs.files import read_json
from ftlab.runs.finding import directories
from ftlab.runs.identity import flat

SEEDS = ("seed_everything", "seeds.order", "seeds.weights", "seeds.dropout", "model.decoding.seed")
_PLACES = ("data.path", "model.network.path")
"""What lies there is known by its fingerprint."""


@dataclass(frozen=True)
class JudgedRun:
    """A run that has come to its end, as it is read back.

    Args:
        run: Where it lies.
        given: The name that the user has given to it; None for none.
    """

    run: Run
    given: str | None = None

    def __str__(self) -> str:
        return str(self.run.directory)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Dotted keys, without what does not change results."""
        return identity(self.run.configuration())

    @cached_property
    def record(self) -> dict[str, Any]:
        """Its provenance."""
        return self.run.record()

    @cached_property
    def scores(self) -> dict[str, float]:
        """Names to numbers."""
        return read_json(self.run.scores)

    @cached_property
    def steps_taken(self) -> int | None:
        """Optimiser steps, as the run says, or its last checkpoint; None where neither is there."""
        taken = self.record.get("steps_taken")
        return step_of(self.run.last.resolve()) if taken is None and self.run.last.is_file() else taken

    @cached_property
    def curve(self) -> Curve:
        """The rows of metrics.csv; none where nothing was logged.

        Raises:
            UserError: The file is damaged, or ends before training did.
        """
        return read(self.run.metrics, self.steps_taken or 0, self.config.get("trainer.log_every_n_steps"))

    @cached_property
    def fingerprints(self) -> dict[str, Any]:
        """Of network, tokenizer and data, with dotted keys."""
        return flat(self.record.get("fingerprints", {}))

    @cached_property
    def seed(self) -> str:
        """What tells it from other runs of its method: the seed, and seeds of their own."""
        whole, *own = SEEDS
        sampled = self.config.get("model.decoding.temperature")
        names = own if sampled else own[:-1]
        said = [f"{name.split('.')[-1]} {self.config[name]}" for name in names if self.config.get(name) is not None]
        return ", ".join([str(self.config.get(whole)), *said])

    @property
    def drawn(self) -> bool:
        """Whether another seed would make another run: not where nothing is trained and the likeliest token taken."""
        random = self.config.get("model.network.random_weights") or self.config.get("model.decoding.temperature")
        return self.trained or bool(random)

    @property
    def trained(self) -> bool:
        """Whether it has anything to learn: not where nothing is trained, which may be drawn all the same."""
        return self.record.get("cost", {}).get("trainable_parameters", 1) > 0

    def settings(self) -> dict[str, Any]:
        """What makes it the method that it is: its configuration without seeds and places, and its fingerprints."""
        own = {key: value for key, value in self.config.items() if key not in (*SEEDS, *_PLACES)}
        return own | {f"fingerprints.{key}": value for key, value in self.fingerprints.items()}


@dataclass(frozen=True)
class Group:
    """A method: runs that differ in their seeds alone.

    Args:
        name: By which a table calls it.
        runs: At least one.
        tuned: Values that were chosen among several.
        tried: How many there were to choose among.
    """

    name: str
    runs: tuple[JudgedRun, ...]
    tuned: Mapping[str, Any] = field(default_factory=dict)
    tried: int = 1

    @property
    def first(self) -> JudgedRun:
        """The one that speaks for all where they do not differ."""
        return self.runs[0]

    @property
    def seeds(self) -> tuple[str, ...]:
        """Of the runs."""
        return tuple(run.seed for run in self.runs)

    @property
    def drawn(self) -> bool:
        """Whether another seed would make another run."""
        return self.first.drawn

    @property
    def trained(self) -> bool:
        """Whether it has anything to learn."""
        return self.first.trained


def find_runs(words: Sequence[str]) -> list[JudgedRun]:
    """The runs that are named, in the order of their naming.

    Args:
        words: Directories of runs, or of runs' directories, such as that of an experiment or a sweep, or patterns of
            either. NAME=WORD gives a name to the method.

    Raises:
        UserError: A word names no run, or two words name one by two names.
    """
    found: dict[Path, JudgedRun] = {}
    for word in words:
        name, place = _named(word)
        found_there = list(directories(place))
        if not found_there:
            raise UserError(
                f"no run matches {place}: give directories that hold a config.yaml, such as runs/EXPERIMENT/RUN, "
                "the directory of an experiment or a sweep, or a pattern"
            )
        for directory in found_there:
            before = found.setdefault(directory.resolve(), JudgedRun(Run(directory), name))
            if name and before.given != name:
                raise UserError(
                    f"{directory} is named twice, {before.given or 'without a name'} and {name}: name it once"
                )
    return list(found.values())


def into_groups(runs: Sequence[JudgedRun], tuned: Sequence[str] = ()) -> list[Group]:
    """Methods, in the order of their first runs.

    Args:
        runs: All.
        tuned: Keys whose values were tried to find the best: by the validation loss, one is chosen for each method.

    Raises:
        UserError: A run is there twice, a name means two methods, or tuned values cannot be compared.
    """
    keys = [_full_key(key, runs) for key in tuned]
    methods: dict[str, list[JudgedRun]] = {}
    for run in runs:
        settings = {key: value for key, value in run.settings().items() if key not in keys}
        methods.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(run)
    members = list(methods.values())
    for group in members:
        _refuse_repeated(group, keys)
    names = names_of(members, keys)
    return [_chosen(name, group, keys) for name, group in zip(names, members, strict=True)]


def names_of(members: Sequence[Sequence[JudgedRun]], left_out: Sequence[str] = ()) -> list[str]:
    """What methods are called: as the user says, as their experiments, as their only runs, or by what differs.

    Raises:
        UserError: One name for two methods, or two for one.
    """
    given = [_given(group) for group in members]
    own = [name or other for name, other in zip(given, _own_names(members, left_out), strict=True)]
    for number, name in enumerate(own):
        if name in own[:number]:
            one, other = members[own.index(name)][0], members[number][0]
            apart = _short_differences(one, other)
            raise UserError(f"{name} would be the name of two methods, as {one} and {other} differ in {apart}")
    return own


def _named(word: str) -> tuple[str | None, str]:
    name, equals, place = word.partition("=")
    return (name, place) if equals and name and "/" not in name and not Path(word).exists() else (None, word)


def _full_key(key: str, runs: Sequence[JudgedRun]) -> str:
    """A key as configurations have it, where a sweep file says model.optimizer.lr.

    Raises:
        UserError: No configuration has it.
    """
    for run in runs:
        for known in run.config:
            if key in (known, known.replace(".init_args", "")):
                return known
    raise UserError(f"--tuned {key}: no configuration of the {len(runs)} runs has it")


def _refuse_repeated(group: Sequence[JudgedRun], keys: Sequence[str]) -> None:
    seen: dict[str, JudgedRun] = {}
    for run in group:
        key = json.dumps([run.seed, [run.config.get(key) for key in keys]], default=str)
        if key in seen and run.drawn:
            raise UserError(
                f"{seen[key]} and {run} are one run made twice (seed {run.seed}, the same configuration), which says "
                "nothing of other seeds: leave one out"
            )
        seen[key] = run


def _given(group: Sequence[JudgedRun]) -> str | None:
    names = dict.fromkeys(run.given for run in group)
    if len(names) > 1:
        one, other = (next(run for run in group if run.given == name) for name in [*names][:2])
        raise UserError(
            f"{one} and {other} differ in their seeds alone, but are named {one.given or 'nothing'} and "
            f"{other.given or 'nothing'}: give them one name"
        )
    return next(iter(names))


def _own_names(members: Sequence[Sequence[JudgedRun]], left_out: Sequence[str]) -> list[str]:
    experiments = [{run.run.directory.resolve().parent.name for run in group} for group in members]
    if all(len(names) == 1 for names in experiments) and len(set.union(*experiments)) == len(members):
        return [next(iter(names)) for names in experiments]
    directories = [group[0].run.directory.resolve().name for group in members]
    if all(len(group) == 1 for group in members) and len(set(directories)) == len(members):
        return directories
    return _by_settings(members, left_out)


def _by_settings(members: Sequence[Sequence[JudgedRun]], left_out: Sequence[str]) -> list[str]:
    """The class of the method where it differs, and what differs among methods of one class."""
    settings = [group[0].settings() for group in members]
    kinds = [str(each.get("model.method.class_path", "")).rsplit(".", 1)[-1] for each in settings]
    names = []
    for own, kind in zip(settings, kinds, strict=True):
        alike = [other for other, its in zip(settings, kinds, strict=True) if its == kind]
        keys = [key for key in own if key not in left_out and any(other.get(key) != own[key] for other in alike)]
        said = [f"{key.rsplit('.', 1)[-1]} {own[key]}" for key in keys if not key.startswith("fingerprints.")]
        names.append(", ".join([kind, *said]) if len(set(kinds)) > 1 or not said else ", ".join(said))
    return names


def _short_differences(one: JudgedRun, other: JudgedRun) -> str:
    mine, theirs = one.settings(), other.settings()
    keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more + "; give them names: NAME=DIRECTORY"


def _chosen(name: str, runs: Sequence[JudgedRun], keys: Sequence[str]) -> Group:
    """The runs of the values that came to the least validation loss, mean over the seeds that all values have."""
    values: dict[str, list[JudgedRun]] = {}
    for run in runs:
        values.setdefault(json.dumps([run.config.get(key) for key in keys], default=str), []).append(run)
    if len(values) == 1:
        return Group(name, tuple(runs), {key: runs[0].config.get(key) for key in keys})
    shared = set.intersection(*({run.seed for run in each} for each in values.values()))
    if not shared:
        raise UserError(f"{name}: no seed was tried with every value of {', '.join(keys)}: they cannot be compared")
    losses = {value: _mean_loss([run for run in each if run.seed in shared]) for value, each in values.items()}
    best = min(losses, key=losses.__getitem__)
    if losses[best] == math.inf:
        raise UserError(f"{name}: training has diverged with every value of {', '.join(keys)}: try others")
    tuned = {key: values[best][0].config.get(key) for key in keys}
    return Group(name, tuple(values[best]), tuned, len(values))


def _mean_loss(runs: Sequence[JudgedRun]) -> float:
    for run in runs:
        if "val_loss" not in run.scores:
            raise UserError(f"{run} has no val_loss, by which tuned values are chosen: give it validation records")
    mean = sum(run.scores["val_loss"] for run in runs) / len(runs)
    return mean if math.isfinite(mean) else math.inf
