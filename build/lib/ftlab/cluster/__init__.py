"""SLURM: profiles of a cluster, scripts filled from the templates in slurm/, jobs submitted once and found again.

Only SLURM's own commands are called, and none that needs accounting. Nothing here knows what a job computes.
"""

from ftlab.cluster.profile import Profile, load_profile
from ftlab.cluster.progress import Progress, progress
from ftlab.cluster.scripts import Task, array_script, script
from ftlab.cluster.slurm import Job, jobs
from ftlab.cluster.submission import job_of, submit_array, submit_once

__all__ = [
    "Job",
    "Profile",
    "Progress",
    "Task",
    "array_script",
    "job_of",
    "jobs",
    "load_profile",
    "progress",
    "script",
    "submit_array",
    "submit_once",
]
