"""`ftlab show RUN`: what a run is, what came of it, and the commands that go on with it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ftlab.cli import VERBS
from ftlab.cli.facts_of_runs import RunFacts, clock, size
from ftlab.cli.sentences import own_parser, parse
from ftlab.cluster.progress import progress
from ftlab.console import new_console
from ftlab.errors import UserError
from ftlab.runs import Run
from ftlab.runs.checkpoint_files import step_of
from ftlab.runs.identity import flat

_DESCRIPTION = f"""{VERBS["show"]}.

Reads the run's files alone."""

_SEEDS = ("seed_everything", "seeds.order", "seeds.weights", "seeds.dropout")
_DIGITS = 6


def run(verb: str, arguments: Sequence[str]) -> int:
    """Prints what a run is."""
    parser = own_parser(verb, _DESCRIPTION)
    parser.add_argument("run", type=Path, help="directory of a run")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parse(parser, arguments)
    if not (options.run / "config.yaml").is_file():
        raise UserError(f"there is no run at {options.run}: it has no config.yaml; ftlab ls lists the runs there are")
    found = Run(options.run)
    found.configuration(), found.record()  # or a sentence says what is damaged
    said = what_it_is(RunFacts(found))
    if options.json:
        date = said["date"] and said["date"].isoformat()
        print(json.dumps(said | {"date": date}, indent=2, ensure_ascii=False, default=str))
    else:
        _print(said)
    return 0


def what_it_is(facts: RunFacts) -> dict[str, Any]:
    """All that is shown of a run, for programs: sizes in bytes, times in seconds, dates as ISO 8601."""
    run, record, config = facts.run, facts.record, facts.config
    model, data = config.get("model") or {}, config.get("data") or {}
    sessions = record.get("sessions") or []
    return {
        "run": str(run.directory),
        "experiment": facts.experiment,
        "state": facts.state,
        "started": record.get("started"),
        "ended": record.get("ended"),
        "date": facts.date,
        "sessions": [
            {key: session.get(key) for key in ("started", "ended", "state", "hostname", "from_step", "devices")}
            for session in sessions
        ],
        "network": {key: value for key, value in (model.get("network") or {}).items() if value not in (None, False)},
        "data": {key: data[key] for key in ("path", "sources") if data.get(key)} | dict(record.get("data") or {}),
        "method": facts.method,
        "settings": {
            **_settings("method", model.get("method")),
            **_settings("optimizer", model.get("optimizer")),
            **_settings("schedule", model.get("schedule")),
            **{key: data.get(key) for key in ("batch_size", "batching") if data.get(key) is not None},
        },
        "seeds": {key: value for key, value in flat(config).items() if key in _SEEDS and value is not None},
        "steps": {"done": (far := progress(run)).step, "of": far.steps},
        "scores": facts.scores,
        "cost": record.get("cost") or {},
        "checkpoints": dict(_checkpoints(run)),
        "model": sorted(record.get("model") or {}),
        "bytes": facts.bytes,
        "commands": dict(_commands(facts)),
    }


def _settings(name: str, said: Any) -> dict[str, Any]:
    """Class and arguments, flat, of what a configuration instantiates; those that are not set left out."""
    if not isinstance(said, Mapping):
        return {}
    plain = {key.replace("init_args.", ""): value for key, value in flat({name: said}).items()}
    return {key: value for key, value in plain.items() if value is not None}


def _checkpoints(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, link in (("last", run.last), ("best", run.best)):
        if link.is_file():
            yield name, {"step": step_of(link.resolve()), "bytes": link.stat().st_size, "file": str(link)}


def _commands(facts: RunFacts) -> Iterator[tuple[str, str]]:
    """What can be done with the run as it is, each to be pasted into a shell."""
    directory, config = shlex.quote(str(facts.run.directory)), shlex.quote(str(facts.run.config))
    if facts.state not in ("finished", "running"):
        yield "go on", f"ftlab fit -c {config}"
    if facts.run.model.is_dir() or facts.run.last.is_file():
        yield "score it on the test records", f"ftlab test -c {config}"
    if facts.run.model.is_dir() and facts.state == "finished":
        yield "talk to it", f"ftlab generate {directory}"
        yield "export it", f"ftlab export {directory} DIR"
    if facts.state != "running":
        yield "delete it", f"ftlab rm {directory}"


def _print(said: Mapping[str, Any]) -> None:
    console = new_console()
    console.print(Text(f"{said['run']}: {said['state']}", style="bold"), soft_wrap=True)
    for title, lines in _tables(said).items():
        if lines := [(key, value) for key, value in lines if value]:
            console.print()
            console.print(_table(title, lines))
    console.print()
    for what, command in said["commands"].items():  # in no table, which would fold them: they are to be pasted
        console.print(Text(f"to {what}:  {command}"), soft_wrap=True)


def _tables(said: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    steps, sessions = said["steps"], [str(each["state"]) for each in said["sessions"]]
    return {
        "what": [
            ("network", _listed(said["network"])),
            ("data", str(said["data"].get("path", ""))),
            ("rows", ", ".join(_rows(said["data"]))),
            ("method", said["method"]),
            *((key, _value(value)) for key, value in [*said["settings"].items(), *said["seeds"].items()]),
        ],
        "how it went": [
            ("steps", f"{steps['done']:,} of {steps['of']:,}" if steps["of"] else f"{steps['done']:,}"),
            ("sessions", f"{len(sessions)}: {', '.join(sessions)}" if sessions else ""),
            ("last at work", clock(said["date"])),
            *((key.replace("_", " "), _cost(key, value)) for key, value in said["cost"].items()),
        ],
        "scores": [(key, _value(value)) for key, value in said["scores"].items()],
        "on the disk": [
            *(
                (f"checkpoint {name}", f"step {each['step']:,}, {size(each['bytes'])}")
                for name, each in said["checkpoints"].items()
            ),
            ("model/", ", ".join(said["model"])),
            ("in all", size(said["bytes"])),
        ],
    }


def _rows(data: Mapping[str, Any]) -> Iterator[str]:
    for split in ("train", "validation", "test"):
        if data.get(f"{split}_rows"):
            yield f"{split} {data[f'{split}_rows']:,}"


def _table(title: str, lines: Sequence[tuple[str, str]]) -> Table:
    table = Table(title, "", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for key, value in lines:
        table.add_row(Text(key), Text(value))
    return table


def _listed(said: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in said.items() if not isinstance(value, Mapping | list))


def _value(value: Any) -> str:
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else f"{value:,}" if _counts(value) else str(value)


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _cost(name: str, value: Any) -> str:
    return (
        size(value) if name.endswith("bytes") else f"{_value(value)} s" if name.endswith("seconds") else _value(value)
    )
