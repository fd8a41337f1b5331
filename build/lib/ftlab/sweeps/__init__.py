"""Sweeps: a file in W&B's format, a study on a shared disk, and workers that run its trials as ordinary runs.

There is no server: `SweepDirectory` is all that workers share. `Study.take` gives a worker a trial, `work` runs it as a
process of its own and tells the study. `local` starts workers here; whatever can start `worker.command` elsewhere, with
the same disk, is a launcher, too.
"""

from ftlab.sweeps.directory import Plan, SweepDirectory
from ftlab.sweeps.local import Launcher, local
from ftlab.sweeps.status import Status, status
from ftlab.sweeps.study import Study
from ftlab.sweeps.sweep_file import SweepFile, read_sweep_file
from ftlab.sweeps.worker import work

__all__ = [
    "Launcher",
    "Plan",
    "Status",
    "Study",
    "SweepDirectory",
    "SweepFile",
    "local",
    "read_sweep_file",
    "status",
    "work",
]
