"""What is tried, by whom, and that nothing is tried twice or lost: without processes."""

import socket
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from ftlab.sweeps import Study, SweepDirectory, search, status
from ftlab.sweeps import study as study_module
from ftlab.sweeps.ledger import LEADING, SAID
from ftlab.sweeps.search import grid_trial, random_trial

TWO = {"x": {"values": [1.0, 2.0]}, "y": {"min": 5, "max": 7}}
HALF = {"x": {"min": 0.0, "max": 1.0}}


def parameters_of(study: Study) -> list[dict]:
    return [trial.user_attrs[SAID]["parameters"] for trial in study.trials()]


def work_off(study: Study) -> None:
    """All trials, one after another, with x as the value."""
    while task := study.take():
        study.finish(task, TrialState.COMPLETE, task.said["parameters"]["x"])


def test_a_grid_is_gone_through_once_in_the_order_of_the_file(make_study: Callable[..., Study]) -> None:
    study = make_study(parameters=TWO)
    work_off(study)
    assert parameters_of(study) == [{"x": x, "y": y} for x in (1.0, 2.0) for y in (5, 6, 7)]
    assert grid_trial(study.file.parameters, 6) is None


def test_the_kth_random_trial_follows_from_seed_and_k(make_study: Callable[..., Study]) -> None:
    study = make_study(method="random", parameters=HALF, run_cap=5, controller={"type": "cloud", "seed": 7})
    work_off(study)
    drawn = parameters_of(study)
    assert drawn == [random_trial(study.file.parameters, 7, k) for k in range(5)]
    assert len({trial["x"] for trial in drawn}) == 5
    assert drawn[3] != random_trial(study.file.parameters, 8, 3)


def test_a_draw_does_not_depend_on_other_parameters(make_study: Callable[..., Study]) -> None:
    alone = make_study(method="random", parameters=HALF).file.parameters
    beside = make_study(method="random", parameters={"a": {"min": 0.0, "max": 9.0}, **HALF}, name="other").file
    assert random_trial(alone, 0, 3)["x"] == random_trial(beside.parameters, 0, 3)["x"]


FINITE = {
    "x": {"values": [1.0, 2.0, 1.0]},
    "p": {"values": ["a", "b", "c"], "probabilities": [0.5, 0.5, 0.0]},
    "n": {"min": 1, "max": 2},
    "c": {"value": 1},
}
"""Eight combinations."""


def journaled(study: Study) -> int:
    return study.directory.journal.read_bytes().count(b"\n")


@pytest.mark.timeout(25)
@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_ends_with_the_last_combination(method: str, make_sweep: Callable[..., SweepDirectory]) -> None:
    parameters = FINITE if method == "random" else FINITE | {"p": {"values": ["a", "b"]}}
    directory = make_sweep(method=method, parameters=parameters)
    one, other = Study(directory), Study(directory)
    held = one.take()
    assert held is not None
    work_off(other)
    assert not status(one).over
    one.finish(held, TrialState.COMPLETE, 1.0)
    work_off(one)  # a sampler may have asked for the same meanwhile
    lines = journaled(one)
    assert one.take() is None
    assert other.take() is None
    assert journaled(one) == lines
    assert len({trial.user_attrs[SAID]["run"] for trial in one.trials()}) == 8
    assert status(one).over


def test_a_random_search_tries_nothing_twice(make_study: Callable[..., Study]) -> None:
    study = make_study(method="random", parameters=FINITE, run_cap=7)
    assert status(study).trials == 7
    work_off(study)
    draws = [random_trial(study.file.parameters, 0, k) for k in range(100)]
    assert parameters_of(study) == [draw for k, draw in enumerate(draws) if draw not in draws[:k]][:7]
    study.directory.begin({})
    assert status(study).trials == 8
    work_off(study)
    assert len(study.trials()) == 8
    assert status(study).over


@pytest.mark.timeout(25)
def test_a_search_of_values_without_end_ends_when_nothing_new_is_drawn(
    make_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "DRAWS", 200)
    study = make_study(method="random", parameters={"x": {"distribution": "q_normal", "q": 2}})
    work_off(study)
    assert 3 <= len(study.trials()) <= 5
    lines = journaled(study)
    assert Study(study.directory).take() is None
    assert journaled(study) == lines


@pytest.mark.timeout(25)
def test_a_sampler_that_asks_for_what_others_try_is_asked_no_more(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep(method="bayes", parameters={"x": {"distribution": "q_normal", "q": 1e9}})
    one, other = Study(directory), Study(directory)
    held = one.take()
    assert held is not None
    assert other.take() is None
    lines = journaled(one)
    assert other.take() is None
    assert journaled(one) == lines
    one.finish(held, TrialState.COMPLETE, 0.0)
    assert other.take() is not None


@pytest.mark.timeout(25)
@pytest.mark.parametrize("stop", [SweepDirectory.stop, lambda directory: directory.begin({"hours": 1e-9})])
def test_a_search_for_something_new_looks_at_stop_and_budgets(
    stop: Callable[[SweepDirectory], None], make_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(method="random", parameters={"x": {"distribution": "q_normal", "q": 1e9}})
    first = study.take()
    assert first is not None
    draws: list[int] = []

    def draw(parameters: Any, seed: int, k: int) -> dict[str, Any]:
        draws.append(k)
        if len(draws) == 10:
            stop(study.directory)
        return random_trial(parameters, seed, k)

    monkeypatch.setattr(search, "random_trial", draw)
    assert study.take() is None
    assert 10 <= len(draws) < 2000


def test_two_workers_never_have_the_same_trial(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep()
    one, other = Study(directory), Study(directory)
    tasks = [one.take(), other.take(), one.take(), other.take(), one.take()]
    assert [task and task.said["index"] for task in tasks] == [0, 1, 2, 3, None]


def test_a_trial_that_was_put_back_is_taken_up_as_the_same(make_study: Callable[..., Study]) -> None:
    study = make_study()
    first = study.take()
    assert first is not None
    first.seconds = 5.0
    study.put_back(first)
    again = study.take()
    assert again is not None
    assert (again.trial_id, again.run) == (first.trial_id, first.run)
    assert again.seconds >= 5
    assert len(study.trials()) == 1


def test_what_was_tried_before_is_not_tried_again(make_study: Callable[..., Study]) -> None:
    study = make_study(parameters={"x": {"values": [1.0, 2.0, 1.0]}})
    taken = []
    while task := study.take():
        taken.append(task.said["index"])
        study.finish(task, TrialState.COMPLETE, task.said["parameters"]["x"])
    assert taken == [0, 1]
    assert [trial.value for trial in study.trials()] == [1.0, 2.0, 1.0]


def test_the_same_while_it_is_being_tried_waits_for_it(make_study: Callable[..., Study]) -> None:
    study = make_study(parameters={"x": {"values": [1.0, 1.0]}})
    first = study.take()
    assert first is not None
    assert study.take() is None
    study.finish(first, TrialState.COMPLETE, 1.0)
    second = study.take()
    assert second is not None
    assert second.run == first.run


def test_a_torn_line_is_cut_off_and_the_rest_kept(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep()
    work_off(Study(directory))
    with directory.journal.open("ab") as file:
        file.write(b'{"op_code": 4, "worker_id": "x", "stu')
    study = Study(directory)
    assert [trial.value for trial in study.trials()] == [1.0, -2.0, 0.5, 3.0]
    assert study.retry_failed() == 0
    assert directory.journal.read_bytes().endswith(b"}\n")


@pytest.mark.timeout(25)
def test_a_lock_of_a_killed_process_holds_nobody_up(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep()
    Path(f"{directory.journal}.held").symlink_to(f"{socket.gethostname()}:999999:0")
    study = Study(directory)
    work_off(study)  # and not after half a minute, when any lock is taken for a dead one's
    assert len(study.trials()) == 4


def test_trials_end_where_the_cap_is(make_study: Callable[..., Study]) -> None:
    study = make_study(run_cap=2)
    work_off(study)
    assert len(study.trials()) == 2
    study.directory.begin({"run_cap": 3})
    work_off(study)
    assert len(study.trials()) == 3


@pytest.mark.parametrize(("goal", "target", "tried"), [("minimize", -1.5, 2), ("maximize", 0.9, 1)])
def test_a_target_ends_the_sweep(goal: str, target: float, tried: int, make_study: Callable[..., Study]) -> None:
    study = make_study(metric={"name": "val_loss", "goal": goal, "target": target})
    work_off(study)
    assert len(study.trials()) == tried
    assert "has come to" in (status(study).spent or "")


def test_gpu_hours_count_seconds_times_devices(make_study: Callable[..., Study]) -> None:
    study = make_study(controller={"type": "cloud", "gpu_hours": 2})
    study.devices = 4
    task = study.take()
    assert task is not None
    task.seconds = 1799.0
    study.finish(task, TrialState.COMPLETE, 1.0)
    assert status(study).gpu_hours == pytest.approx(4 * 1799 / 3600, abs=1e-3)
    task = study.take()
    assert task is not None
    task.seconds = 2.0
    study.finish(task, TrialState.COMPLETE, 1.0)
    assert study.take() is None
    assert status(study).spent == "2 GPU-hours are spent"


def test_hours_count_from_the_launch(make_study: Callable[..., Study]) -> None:
    study = make_study()
    study.directory.begin({"hours": 1e-9})
    assert study.take() is None
    study.directory.begin({"hours": 1})
    assert study.take() is not None


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "cmaes"])
def test_bayes_comes_nearer_than_where_it_began(sampler: str, make_study: Callable[..., Study]) -> None:
    parameters = {"x": {"min": -5.0, "max": 5.0}, "n": {"distribution": "normal"}, "c": {"value": 3}}
    controller = {"type": "cloud", "sampler": sampler}
    study = make_study(method="bayes", parameters=parameters, run_cap=25, controller=controller)
    values = []
    while task := study.take():
        tried = task.said["parameters"]
        assert tried["c"] == 3
        values.append((tried["x"] - 2) ** 2 + tried["n"] ** 2)
        study.finish(task, TrialState.COMPLETE, values[-1])
    assert len(values) == 25
    assert min(values[10:]) < min(values[:10])


def test_bayes_is_repeatable_for_one_worker(make_study: Callable[..., Study]) -> None:
    bayes = {"method": "bayes", "parameters": HALF, "run_cap": 12}
    both = [make_study(**bayes, name=name) for name in ("one", "other")]
    for study in both:
        work_off(study)
    assert parameters_of(both[0]) == parameters_of(both[1])


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_a_diverged_trial_is_stopped_and_its_values_noted_once(goal: str, make_study: Callable[..., Study]) -> None:
    study = make_study(
        metric={"name": "val_loss", "goal": goal},
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2, "strict": True},
    )
    good, diverged = study.take(), study.take()
    assert good is not None
    assert diverged is not None
    assert not study.report(good, [2.0, 1.0])
    assert not study.report(diverged, [nan])
    assert study.report(diverged, [nan, nan])
    noted = study.directory.journal.stat().st_size
    study.report(diverged, [nan, nan])
    assert study.directory.journal.stat().st_size == noted
    study.finish(diverged, TrialState.PRUNED, nan)
    assert not study.report(good, [2.0, 1.0])
    assert Study(study.directory).trials()[1].state == TrialState.PRUNED


def test_failed_ones_are_tried_again_and_counted_once(make_study: Callable[..., Study]) -> None:
    study = make_study()
    while task := study.take():
        study.finish(task, TrialState.FAIL, error="no luck")
    assert status(study).states["failed"] == 4
    assert {failed["error"] for failed in status(study).failed} == {"no luck"}
    assert study.retry_failed() == 4
    assert study.retry_failed() == 0
    work_off(study)
    assert status(study).states == {"finished": 4, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}


def test_the_ledger_knows_the_best(make_study: Callable[..., Study]) -> None:
    x = [float((7 * n) % 40) for n in range(40)]
    study = make_study(parameters={"x": {"values": x}}, metric={"name": "val_loss", "goal": "maximize"})
    work_off(study)
    ledger = study.ledger()
    assert ledger.best is not None
    assert ledger.best.value == 39
    assert [trial.value for trial in ledger.leading] == [value for value in x if value >= 40 - LEADING]


def test_a_trial_that_was_read_half_told_is_counted_once_it_is_told(
    make_sweep: Callable[..., SweepDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that follows its trial reads without the lock, between the two lines by which another adds one."""
    directory = make_sweep(method="bayes", parameters=HALF, run_cap=2)
    one, other = Study(directory), Study(directory)
    add = one.storage.set_trial_user_attr
    halves: list[int] = []

    def read_first(*line: Any) -> None:
        halves.append(len(other.ledger().open))
        add(*line)

    monkeypatch.setattr(one.storage, "set_trial_user_attr", read_first)
    assert one.take() is not None
    assert halves == [1]
    second = other.take()
    assert second is not None
    assert second.said["index"] == 1
    assert other.take() is None
    assert other.ledger().begun == one.ledger().begun == 2


def test_bayes_sees_the_latest_and_the_best(make_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten thousand, too, it draws within a bound; where it sees all, it draws what Optuna's own TPE draws."""
    parameters = {**HALF, "n": {"values": [1, 2]}, "a": {"min": 1, "max": 9}, "c": {"value": 1}}
    bayes = {"method": "bayes", "parameters": parameters, "run_cap": 40}
    bounded, whole = make_study(**bayes), make_study(**bayes, name="whole")
    monkeypatch.setattr(search, "TPE", lambda spaces, seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True))
    work_off(whole)
    monkeypatch.undo()
    work_off(bounded)
    assert parameters_of(bounded) == parameters_of(whole)

    monkeypatch.setattr(search, "LATEST", 3)
    seen = search.Seen(bounded.name, bounded.storage, search.sampler(bounded.file, 40), bounded.ledger().leading)
    numbers = [trial.number for trial in seen._get_trials()]
    best = sorted(bounded.trials(), key=lambda trial: trial.value)[:LEADING]
    assert numbers == sorted({37, 38, 39} | {trial.number for trial in best})


def test_a_failed_one_of_bayes_is_tried_again_as_it_was_drawn(make_study: Callable[..., Study]) -> None:
    study = make_study(method="bayes", parameters=HALF, run_cap=1)
    task = study.take()
    assert task is not None
    study.finish(task, TrialState.FAIL, error="no luck")
    study.retry_failed()
    work_off(study)
    failed, again = study.trials()
    assert again.value == again.params["x"] == failed.params["x"]
