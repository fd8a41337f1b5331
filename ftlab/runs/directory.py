"""One run's directory: who may work in it, and what is kept there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from ftlab.errors import UserError, one_line
from ftlab.runs.checkpoint_files import CheckpointFiles
from ftlab.runs.files import digest, files_under, read_json, write_atomically
from ftlab.runs.identity import differences, identity
from ftlab.runs.lock import locked
from ftlab.runs.sessions import begun, ended, told

_UNFINISHED = re.compile(r"\..+\.\d+|\.model")
LOGS_OF_JOBS = "slurm"
"""What a job's submission writes into a run's directory, before the run is there, and what the job prints."""
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where PyYAML has it: a tenth of the time."""
_LATER_IS_LONGER = ("trainer.max_steps", "trainer.max_epochs", "model.skip_nonfinite")


class Run:
    """One run's directory.

    Args:
        directory: Where it lies, or will lie.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config.yaml"
        self.provenance = directory / "provenance.json"
        self.metrics = directory / "metrics.csv"
        self.nonfinite = directory / "nonfinite.jsonl"
        self.checkpoints = CheckpointFiles(directory / "checkpoints")
        self.last = self.checkpoints.last
        self.best = self.checkpoints.best
        self.model = directory / "model"
        self.scores = directory / "scores.json"
        self._at_work = False

    def predictions(self, split: str) -> Path:
        """Where the answers to the records of `split` are kept."""
        return self.directory / "predictions" / f"{split}.jsonl"

    def retention(self, name: str) -> Path:
        """Where is kept what base and trained network come to on each document of a retention set."""
        return self.directory / "retention" / f"{name}.jsonl"

    def retention_of_base(self, name: str, key: str) -> Path:
        """Where is kept what the base comes to on a retention set, as it was when its hash was `key`."""
        return self.directory / "retention" / "base" / f"{name}-{key}.json"

    @property
    def finished(self) -> bool:
        """Whether its training has come to its end."""
        return self.record().get("state") == "finished"

    def finished_as(self, config: Mapping[str, Any]) -> bool:
        """Whether the run that `config` describes has come to its end: one that is to train longer has not.

        The configuration is read before the state, which another process that begins at the same time writes first.
        """
        return self.config.is_file() and not self.differences(config) and self.finished

    def next_start(self, changed: bool = False) -> str:
        """What the command that trains this run does when it is given again, to end a sentence with.

        Args:
            changed: Whether with another value of a key that makes another run.
        """
        if not self.last.is_file():
            return "there is no checkpoint yet: the same command starts anew"
        command = f"ftlab fit -c {shlex.quote(str(self.directory / 'config.yaml'))} with that and --run.resume force"
        return f"{command if changed else 'the same command'} goes on from {self.last.resolve()}"

    def record(self) -> dict[str, Any]:
        """The provenance written so far."""
        return read_json(self.provenance)

    def note(self, **facts: Any) -> None:
        """Adds facts to the provenance."""
        self._write_record(self.record() | facts)

    def note_of_session(self, **facts: Any) -> None:
        """Adds facts to what the provenance says of the process that works on the run."""
        self._write_record(told(self.record(), facts))

    def begin(self, facts: Mapping[str, Any], session: Mapping[str, Any]) -> None:
        """Notes that a process begins to work on the run: see `sessions.begun`."""
        self._write_record(begun(self.record(), facts, session))
        self._at_work = True

    def end(self, state: str, **facts: Any) -> None:
        """Notes that it has ended: finished, preempted, interrupted or failed; and adds facts to the provenance."""
        self._write_record(ended(self.record(), state) | facts)

    def _write_record(self, record: Mapping[str, Any]) -> None:
        write_atomically(self.provenance, json.dumps(record, indent=2) + "\n")

    @contextmanager
    def claimed(self, config: Mapping[str, Any], owner: bool = True, force: bool = False) -> Iterator[None]:
        """Takes the directory for the run that `config` describes, for as long as the context lasts.

        A configuration that only trains longer, or leaves out more steps, is the same run: it is noted as no longer
        finished, and config.yaml says so. Leaves nothing behind where the run is new and fails before its first
        checkpoint, but the logs of its jobs; and the run as it was where a changed one fails before the next.

        Args:
            config: Resolved.
            owner: False for every process but one: they work in the directory and leave it alone.
            force: Take any configuration for the same run; in what it differs is noted.

        Raises:
            UserError: The directory holds another run, or another process works in it.
        """
        if not owner:
            yield
            return
        new = not self.config.is_file()
        changed = self.admitted(config, force)
        self.directory.mkdir(parents=True, exist_ok=True)
        with locked(self.directory):
            stood = self.last.resolve()
            said = [
                (path, path.read_text(encoding="utf-8"))
                for path in (self.config, self.provenance)
                if changed and path.is_file()
            ]
            try:
                self._clean()
                if changed:
                    self._note_change(changed)
                if new or changed:
                    write_atomically(self.config, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
                yield
            except BaseException:
                if self.last.resolve() == stood:
                    for path, text in said:
                        write_atomically(path, text)
                if new and not self.last.is_file() and not self.best.is_file():
                    self._remove()
                else:
                    with suppress(OSError):  # on a disk that is full there is something else to be told
                        if self._at_work and self.record().get("state") == "running":  # not one killed before
                            self.end("failed")
                raise

    def admitted(self, config: Mapping[str, Any], force: bool = False) -> dict[str, tuple[Any, Any]]:
        """In what the run that `config` describes differs from the one in the directory, where it may go on as that.

        Args:
            config: Resolved.
            force: Take any configuration for the same run.

        Raises:
            UserError: The directory holds another run, or something else.
        """
        if not self.config.is_file():
            there = self.directory.iterdir() if self.directory.exists() else ()
            if any(not path.name.startswith(".") and path.name != LOGS_OF_JOBS for path in there):
                raise UserError(f"{self.directory} is not empty and holds no run: choose another --run.name")
            return {}
        changed = self.differences(config)
        if not force:
            self._refuse_other(changed)
        return changed

    def _remove(self) -> None:
        for path in self.directory.iterdir():
            if path.name == LOGS_OF_JOBS:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # there are logs of a job, or others have runs there
            self.directory.rmdir()
            self.directory.parent.rmdir()
            self.directory.parent.parent.rmdir()

    def _clean(self) -> None:
        """Removes what processes that were killed were about to write."""
        for path in [
            *self.directory.iterdir(),
            *self.directory.glob("checkpoints/.*"),
            *self.directory.glob("predictions/.*"),
            *self.directory.glob("retention/**/.*"),
        ]:
            if _UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _refuse_other(self, changed: Mapping[str, tuple[Any, Any]]) -> None:
        other = {key: values for key, values in changed.items() if not _is_later(key, *values)}
        if other:
            listed = "; ".join(f"there {key} is {theirs!r}, here {ours!r}" for key, (theirs, ours) in other.items())
            raise UserError(
                f"{self.directory} holds another run: {listed}; choose another --run.name, or have it go on as this "
                "one (--run.resume force)"
            )

    def _note_change(self, changed: Mapping[str, tuple[Any, Any]]) -> None:
        forced = any(not _is_later(key, *values) for key, values in changed.items())
        noted = {key: {"before": before, "now": now} for key, (before, now) in changed.items()}
        self.note(state="forced" if forced else "extended", changes=[*self.record().get("changes", []), noted])

    def differences(self, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Keys in which `config` is another run than this one, each with the value there and here."""
        return differences(identity(self.configuration()), identity(config))

    def configuration(self) -> dict[str, Any]:
        """What config.yaml says.

        Raises:
            UserError: It is damaged.
        """
        try:
            said = yaml.load(self.config.read_text(encoding="utf-8"), _Loader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{self.config} is damaged ({one_line(error)}): put it back as it was") from error
        if not isinstance(said, dict):
            raise UserError(f"{self.config} is damaged (it holds no configuration): put it back as it was")
        return said

    def model_digests(self) -> dict[str, str]:
        """The digest of every file under `model/`, by its path from there."""
        return {str(path.relative_to(self.model)): digest(path) for path in files_under(self.model)}

    def saved_model(self) -> Path:
        """`model/`, as the run wrote it.

        Raises:
            UserError: Training has not come to its end, or the files are not as they were written.
        """
        if not self.model.is_dir():
            raise UserError(f"{self.directory} has no model/: let ftlab fit come to its end")
        there, written = self.model_digests(), self.record().get("model", {})
        damaged = [name for name, digest in written.items() if there.get(name) != digest]
        if damaged:
            raise UserError(
                f"{self.model / damaged[0]} is not as the run wrote it: it is damaged, or was changed by hand; ftlab "
                "fit with another --run.name makes it again"
            )
        return self.model

    def add_scores(self, scores: Mapping[str, float], suffix: str = "") -> None:
        """Writes scores beside those that are there; a score of the same name is replaced.

        Args:
            scores: Names to numbers.
            suffix: Of the file's name, for scores that are not of the run's own configuration.
        """
        path = self.scores.with_stem(self.scores.stem + suffix)
        write_atomically(path, json.dumps(read_json(path) | dict(scores), indent=2) + "\n")

    def write_predictions(self, split: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Writes the answers to the records of `split`, a line each."""
        return self.write_lines(self.predictions(split), rows)

    def write_lines(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Writes a file of JSON lines."""
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return path


def _is_later(key: str, theirs: Any, ours: Any) -> bool:
    return key in _LATER_IS_LONGER and theirs is not None and ours is not None and 0 <= theirs < ours
