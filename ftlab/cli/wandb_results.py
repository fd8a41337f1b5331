"""What W&B is given of a run that has come to its end or been scored: scores, and model and answers as artifacts."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ftlab.cli.wandb import WandbOptions, open_session
from ftlab.errors import one_line
from ftlab.runs import Run
from ftlab.runs.files import read_json

if TYPE_CHECKING:
    from wandb import Artifact
    from wandb import Run as Session


def tell_samples(session: Session, rows: list[list[str]], step: int) -> None:
    """Logs answers of a validation as a table."""
    import wandb

    table = wandb.Table(columns=["prompt", "reference", "prediction"], data=rows)
    session.log({"answers": table, "trainer/global_step": step})


def conclude(session: Session, options: WandbOptions, run: Run) -> None:
    """Gives the scores and costs of a run that has come to its end, and what it saved; the W&B run ends.

    Args:
        session: Its W&B run.
        options: Which say what of it.
        run: Has come to its end.
    """
    with _whatever_becomes_of_it():
        try:
            session.summary.update({**_scores(run), "cost": run.record()["cost"]})
            if options.log_model != "none":
                _take_inputs(session, run)
                session.log_artifact(_artifact(run, "model", "model"), aliases=["best"])
            if options.log_model == "all":
                session.log_artifact(_artifact(run, "checkpoints", "checkpoint"))
        finally:
            session.finish()


def tell_scores(options: WandbOptions, run: Run, split: str) -> None:
    """Gives the scores of a run to its W&B run, which it must have had in training, and the answers.

    Args:
        options: Which say whether.
        run: Has been scored.
        split: test or validation.
    """
    if "wandb_id" not in run.record():
        return
    with _whatever_becomes_of_it():
        if (session := open_session(options, run, run.configuration())) is None:
            return
        try:
            session.summary.update(_scores(run))
            if options.log_predictions and run.predictions(split).is_file():
                _take_inputs(session, run)
                session.log_artifact(_artifact(run, f"predictions/{split}.jsonl", "predictions"))
        finally:
            session.finish()


@contextlib.contextmanager
def _whatever_becomes_of_it() -> Iterator[None]:
    """The run's own files hold all of it: a server that cannot be reached is told of, and stops nothing."""
    try:
        yield
    except Exception as error:
        print(f"ftlab: W&B has not been told all of it ({one_line(error)}); the run's files have it", file=sys.stderr)


def _scores(run: Run) -> dict[str, Any]:
    return read_json(run.scores)


def _artifact(run: Run, part: str, kind: str) -> Artifact:
    """A file or a directory of a run, with what it came of."""
    import wandb

    experiment, name = run.directory.parent.name, run.directory.name
    record = run.record()
    metadata = {"scores": _scores(run), "fingerprints": record.get("fingerprints"), "code": record.get("code")}
    made = wandb.Artifact(f"{experiment}-{name}-{kind}"[-128:], type=kind, metadata=metadata)
    place = run.directory / part
    if place.is_dir():
        made.add_dir(str(place))
    else:
        made.add_file(str(place))
    return made


def _take_inputs(session: Session, run: Run) -> None:
    """Has W&B draw the way from base and data to what is logged; both are known by their digests, and not copied."""
    import wandb

    config, fingerprints = run.configuration(), run.record().get("fingerprints", {})
    data = [source["path"] for source in config["data"]["sources"] or [config["data"]]]
    places = {"network": config["model"]["network"]["path"], "data": "+".join(data)}
    for kind, place in places.items():
        name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in str(place)).strip("-")
        made = wandb.Artifact(f"{kind}-{name}"[-128:], type=kind, metadata={"fingerprints": fingerprints.get(kind)})
        with made.new_file("fingerprints.txt") as file:  # by which a version of it is told from another
            file.write(f"{place}\n{fingerprints.get(kind)}\n")
        # what `use_artifact` does, which refuses to where nobody is logged in
        session._log_artifact(made, is_user_created=True, use_after_commit=True)
