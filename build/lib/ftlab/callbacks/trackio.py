"""Trackio as a logger: Lightning has none of its own."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ftlab.errors import UserError


class TrackioLogger(Logger):
    """Writes curves where Trackio keeps them: on this machine (`TRACKIO_DIR`), or in a space of the hub.

    A run that is there under this name is gone on with; `trackio show` shows it. The package is the extra `trackio`.

    Args:
        project: Its name.
        name: Of the run.
        group: Of runs that belong together.
        space: Of the hub, owner/name; None for this machine.
    """

    def __init__(self, project: str, name: str, group: str | None = None, space: str | None = None) -> None:
        super().__init__()
        try:
            import trackio
        except ModuleNotFoundError as error:
            raise UserError("trainer.logger TrackioLogger: trackio is missing: pip install 'ftlab[trackio]'") from error
        self._trackio: Any = trackio
        self._project, self._name = project, name
        self._options = {"group": group, "space_id": space}
        self._run: Any = None

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self._name

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a point to each curve."""
        if self._run is None:
            with contextlib.redirect_stdout(io.StringIO()):  # where results of ftlab go, it greets in colours
                self._run = self._trackio.init(self._project, self._name, resume="allow", embed=False, **self._options)
        self._run.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Waits until all is written."""
        if self._run is not None:
            with contextlib.redirect_stdout(io.StringIO()):
                self._trackio.finish()  # the run's own would be called again as the process ends
            self._run = None
