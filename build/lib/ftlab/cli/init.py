"""`ftlab init DIR`: a small project of the user's own, which runs as it stands."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import ftlab.cli
from ftlab.cli import VERBS
from ftlab.cli.sentences import own_parser, parse
from ftlab.errors import UserError

_DESCRIPTION = f"""{VERBS["init"]}.

An experiment, a method and a metric of one's own with tests, a profile for SLURM, a little data and a small network:
cd DIR; ftlab fit -c experiment.yaml; pytest."""

_ASSETS = Path(ftlab.__file__).parent / "assets"
_SUFFIX = ".txt"
"""Of what is no module of ftlab's own, or would act where it lies, but shall be one where it is written to."""


def run(verb: str, arguments: Sequence[str]) -> int:
    """Writes the project."""
    parser = own_parser(verb, _DESCRIPTION)
    parser.add_argument("directory", type=Path, help="where; it must be empty, or not there yet")
    directory = parse(parser, arguments).directory
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        what = "is not empty" if directory.is_dir() else "is a file"
        raise UserError(f"{directory} {what}: give an empty directory, or one that is not there yet")
    try:
        _write(directory)
    except OSError as error:
        raise UserError(f"{error.filename or directory} cannot be written ({error.strerror}): give another") from error
    for path in sorted(directory.iterdir()):
        print(path)
    print(
        f"ftlab: now cd {shlex.quote(str(directory))} and ftlab fit -c experiment.yaml; README.md says more",
        file=sys.stderr,
    )
    return 0


def _write(directory: Path) -> None:
    """All of it, or nothing: beside `directory` first."""
    unfinished = directory.resolve().with_name(f".{directory.resolve().name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        shutil.copytree(_ASSETS / "project", unfinished, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(_ASSETS / "network", unfinished / "network")
        for path in unfinished.glob(f"*{_SUFFIX}"):
            path.rename(path.with_name(".gitignore") if path.stem == "gitignore" else path.with_suffix(""))
        directory.mkdir(parents=True, exist_ok=True)  # one that is there is kept: a shell may stand in it
        for path in unfinished.iterdir():
            path.replace(directory / path.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
