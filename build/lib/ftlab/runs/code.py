"""The code that a run was made by: the commit and the changes of a git repository."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

from ftlab.runs.files import digest_of
from ftlab.runs.redaction import redacted

MOST_BYTES = 1_000_000
"""Of a diff: a longer one is known by its digest alone."""
MOST_NAMES = 1000
"""Of files that git does not track."""
_SECONDS = 10


def code(directory: Path) -> dict[str, Any] | None:
    """The state of the repository that a directory belongs to; None where it belongs to none, or git does not answer.

    commit: None before the first. diff: of tracked files against it, secrets redacted; None where it takes more than
    `MOST_BYTES`, which `note` then says. diff_bytes, diff_digest: of the same, whole. untracked: names, of a directory
    without tracked files that of the directory.
    """
    root = _git(directory, "rev-parse", "--show-toplevel")
    if not root:
        return None
    top = Path(root.rstrip("\n"))
    commit = _git(top, "rev-parse", "--verify", "--quiet", "HEAD")
    against = ["HEAD"] if commit else ["--cached"]
    diff = _git(top, "diff", "--no-ext-diff", "--no-textconv", "--no-color", *against)
    untracked = _git(top, "ls-files", "--others", "--exclude-standard", "--directory", "-z")
    names = [redacted(name) for name in (untracked or "").split("\0") if name]
    state: dict[str, Any] = {"commit": commit.strip() if commit else None}
    if diff is None:
        state["note"] = f"git diff did not answer within {_SECONDS} s: the changes are not known"
    else:
        state |= _described(_without_secrets(diff))
    state["untracked"] = names[:MOST_NAMES]
    if len(names) > MOST_NAMES:
        state["untracked_more"] = len(names) - MOST_NAMES
    return state


def own_code(package: Path) -> dict[str, Any]:
    """Commit, and digest of the changes, of a package that is run from a checkout; nothing where it is installed."""
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {}
    state = code(package) or {}
    return {key: state[key] for key in ("commit", "diff_digest") if state.get(key)}


def _without_secrets(diff: str) -> str:
    """The diff redacted: then without the digests of the files, too, against which a secret could be guessed."""
    without = redacted(diff)
    return diff if without == diff else re.sub(r"^index .*\n", "", without, flags=re.MULTILINE)


def _described(diff: str) -> dict[str, Any]:
    size = len(diff.encode())
    state: dict[str, Any] = {"diff": diff, "diff_bytes": size, "diff_digest": digest_of(diff) if diff else None}
    if size > MOST_BYTES:
        state |= {"diff": None, "note": f"the diff takes more than {MOST_BYTES:,} bytes: its digest alone is kept"}
    return state


def _git(directory: Path, *arguments: str) -> str | None:
    """What a git command prints; None where it fails, there is no git, or it takes too long. Changes nothing."""
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", errors="replace")
