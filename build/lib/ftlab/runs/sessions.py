"""The sessions of a run, one for each process that worked on it, as its provenance tells them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from ftlab.runs.identity import differences, flat

_TEXTS = ("code.diff",)  # its digest tells whether it differs


def begun(record: Mapping[str, Any], facts: Mapping[str, Any], session: Mapping[str, Any]) -> dict[str, Any]:
    """The record with one more session, under way.

    Args:
        record: Before.
        facts: Of code, machine, data and so on. Those of the first session are the run's; a later session says under
            `differs` what was not as in the first.
        session: What holds for this session alone; `command` is also the run's.
    """
    facts = json.loads(json.dumps(facts))  # as it is read back
    sessions = [dict(earlier) for earlier in record.get("sessions", [])]
    if sessions and "ended" not in sessions[-1]:
        sessions[-1]["state"] = "killed"
    now = {"started": _now(), "state": "running", **session}
    known = {key: value for key, value in facts.items() if key in record}
    if changed := differences(_compared({key: record[key] for key in known}), _compared(known)):
        now["differs"] = {key: {"first": first, "now": here} for key, (first, here) in changed.items()}
    rest = {key: value for key, value in record.items() if key != "ended"}
    return {
        "started": now["started"],
        **facts,
        **rest,
        "state": "running",
        "command": session.get("command"),
        "sessions": [*sessions, now],
    }


def told(record: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The record with more about its last session; as it is, where none has begun."""
    *before, last = record.get("sessions", []) or [None]
    return {**record, "sessions": [*before, {**last, **facts}]} if last else dict(record)


def ended(record: Mapping[str, Any], state: str) -> dict[str, Any]:
    """The record with its last session, and the run with it, at an end.

    Args:
        record: Before.
        state: finished, preempted, interrupted or failed.
    """
    end = {"state": state, "ended": _now()}
    *before, last = record.get("sessions", []) or [None]
    return {**record, **end} | ({"sessions": [*before, last | end]} if last else {})


def _compared(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat(facts).items() if key not in _TEXTS}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
