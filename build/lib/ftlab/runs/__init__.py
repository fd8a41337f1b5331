"""The run directory: what is written, where, and how it is read back.

runs/<experiment>/<run>/
  config.yaml          the resolved configuration: running it again is the same run
  provenance.json      code, packages, machine, fingerprints, seeds, sessions; what it cost, how it ended
  metrics.csv          the curves
  nonfinite.jsonl      the optimiser steps whose loss or gradient was NaN or infinite, a line each; not where none was
  checkpoints/         last.ckpt and best.ckpt, each a link to a file whose name holds its digest
  model/               what the method saved: loads with transformers and peft alone
  predictions/*.jsonl  a line a record
  retention/           what base and trained network come to on each document of a retention set
  scores.json          metric name to number
  slurm/               of a run that was submitted: what its jobs print, job.sh, job.json
"""

from ftlab.runs.checkpoint_files import CheckpointFiles
from ftlab.runs.directory import Run
from ftlab.runs.files import files_under, write_atomically
from ftlab.runs.identity import identity, short_hash
from ftlab.runs.options import CheckpointOptions, RunOptions, Seeds

__all__ = [
    "CheckpointFiles",
    "CheckpointOptions",
    "Run",
    "RunOptions",
    "Seeds",
    "files_under",
    "identity",
    "short_hash",
    "write_atomically",
]
