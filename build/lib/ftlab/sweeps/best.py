"""The best trial of a sweep: its configuration as a file."""

from __future__ import annotations

import yaml
from optuna.trial import FrozenTrial

from ftlab.errors import UserError
from ftlab.runs import write_atomically
from ftlab.sweeps.ledger import SAID
from ftlab.sweeps.study import Study

_OF_ONE_RUN = ("root", "experiment", "name", "resume")


def write_best(study: Study) -> FrozenTrial:
    """Writes best.yaml, which `ftlab fit -c` takes, and returns the trial.

    Raises:
        UserError: No trial has finished, or the run of the best is gone.
    """
    best = study.ledger().best
    if best is None:
        raise UserError(f"no trial of {study.directory.path} has finished: there is no best one yet")
    said = best.user_attrs[SAID]
    run = study.directory.run(said["run"])
    if not run.config.is_file():
        raise UserError(f"{run.directory}, the best run, has no config.yaml: put it back")
    config = run.configuration()
    config["run"] = {key: value for key, value in config.get("run", {}).items() if key not in _OF_ONE_RUN}
    config.pop("wandb", None)
    head = f"# {run.directory}: {study.file.metric} {best.value:.6g}, trial {best.number} of {study.name}\n"
    write_atomically(study.directory.best, head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return best
