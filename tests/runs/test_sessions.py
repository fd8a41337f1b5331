"""One session for each start: the first says what the run is known by, the others in what they differ."""

import json
from typing import Any

import pytest

from ftlab.runs import Run

FIRST: dict[str, Any] = {
    "packages": {"torch": "2.12", "peft": "0.21"},
    "code": {"commit": "a", "diff": "long", "diff_digest": "1"},
    "seeds": {"model": 42},
}


def test_the_first_session_says_what_the_run_is_known_by(run: Run) -> None:
    run.begin(FIRST, {"command": ["ftlab", "fit"], "from_step": 0})
    record = run.record()
    [session] = record["sessions"]
    assert {key: record[key] for key in FIRST} == FIRST
    assert (record["state"], session["state"]) == ("running", "running")
    assert record["command"] == session["command"] == ["ftlab", "fit"]
    assert record["started"] == session["started"]
    assert "ended" not in record
    assert "differs" not in session


def test_a_later_session_says_in_what_it_differs(run: Run) -> None:
    run.begin(FIRST, {"from_step": 0})
    run.end("preempted")
    now = json.loads(json.dumps(FIRST))
    now["packages"] = {"torch": "2.13", "peft": "0.21"}
    now["code"] |= {"diff": "longer", "diff_digest": "2"}
    run.begin(now, {"from_step": 120})
    run.end("finished", model={"a": "b"})
    record = run.record()
    first, second = record["sessions"]
    assert (first["state"], second["state"], second["from_step"]) == ("preempted", "finished", 120)
    assert second["differs"] == {
        "packages.torch": {"first": "2.12", "now": "2.13"},
        "code.diff_digest": {"first": "1", "now": "2"},
    }
    assert record["packages"]["torch"] == "2.12"
    assert record["started"] == first["started"]
    assert record["ended"] == second["ended"]
    assert record["model"] == {"a": "b"}


def test_a_session_that_was_killed_has_no_end(run: Run) -> None:
    run.begin(FIRST, {})
    run.begin(FIRST, {})
    killed, now = run.record()["sessions"]
    assert killed["state"] == "killed"
    assert "ended" not in killed
    assert now["state"] == "running"


def test_what_others_have_noted_stays(run: Run) -> None:
    run.note(wandb_id="w", packages={"torch": "2.12"})
    run.begin(FIRST, {})
    assert run.record()["wandb_id"] == "w"
    assert run.record()["packages"] == {"torch": "2.12"}


def fail(run: Run, begins: bool) -> None:
    with run.claimed({"seed": 1}):
        if begins:
            run.begin(FIRST, {})
        raise RuntimeError


@pytest.mark.parametrize("begins", [True, False])
def test_a_process_that_fails_says_so_of_its_own_session(run: Run, begins: bool) -> None:
    with run.claimed({"seed": 1}):
        run.begin(FIRST, {})
        run.end("preempted")
        run.begin(FIRST, {})  # and is killed
    with pytest.raises(RuntimeError):
        fail(Run(run.directory), begins)
    states = [session["state"] for session in run.record()["sessions"]]
    assert states == (["preempted", "killed", "failed"] if begins else ["preempted", "running"])
