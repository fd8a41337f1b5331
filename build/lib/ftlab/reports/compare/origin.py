"""Where runs come from: when, by which code, on which machine and with which packages they were made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ftlab.reports.compare.groups import Group


def origin(groups: Sequence[Group]) -> tuple[str, ...]:
    """A sentence each for time, code, machine and packages; of what runs do not tell, none."""
    records = [run.record for group in groups for run in group.runs]
    began, ended = (sorted(_known(record.get(key) for record in records)) for key in ("started", "ended"))
    said = [f"made between {_minute(began[0])} and {_minute(ended[-1])} UTC" if began and ended else ""]
    said.append(_said("by ftlab at commit ", (_commit(record.get("ftlab", {})) for record in records)))
    said.append(_said("on ", (_machine(record.get("hardware", {})) for record in records)))
    said.append(_said("with ", (_versions(record.get("versions", {})) for record in records)))
    return tuple(sentence for sentence in said if sentence)


def _known(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value]


def _said(beginning: str, values: Iterable[str]) -> str:
    """Each value once."""
    each = dict.fromkeys(_known(values))
    return beginning + "; ".join(each) if each else ""


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def _commit(code: dict[str, Any]) -> str:
    if not (commit := code.get("commit")):
        return ""
    return commit[:12] + (" with changes that are not committed" if code.get("diff_digest") else "")


def _machine(hardware: dict[str, Any]) -> str:
    gpus = [device["name"] for device in (hardware.get("gpus") or {}).get("devices", [])]
    parts = [", ".join(gpus), hardware.get("cpu", "")]
    if cores := hardware.get("cores"):
        parts.append(f"{cores} core{'s' if cores > 1 else ''}")
    if size := hardware.get("memory_bytes"):
        parts.append(f"{size / 1e9:.0f} GB of memory")
    return ", ".join(_known(parts))


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
