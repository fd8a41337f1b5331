"""What runs beside the training: checkpoints, the saved model, throughput and memory, checks of the base."""

from ftlab.callbacks.checkpoints import Checkpoints
from ftlab.callbacks.companions import Companions
from ftlab.callbacks.first_step import FirstStep
from ftlab.callbacks.frozen_base import FrozenBase
from ftlab.callbacks.metrics_csv import MetricsCSV
from ftlab.callbacks.model_writer import ModelWriter
from ftlab.callbacks.neftune import NEFTune
from ftlab.callbacks.nonfinite_steps import NonfiniteSteps
from ftlab.callbacks.preemption import Preemption
from ftlab.callbacks.sample_answers import SampleAnswers
from ftlab.callbacks.step_profile import StepProfile
from ftlab.callbacks.throughput import Throughput, peak_memory
from ftlab.callbacks.trackio import TrackioLogger
from ftlab.callbacks.training_bar import TrainingBar
from ftlab.callbacks.whereabouts import Whereabouts

__all__ = [
    "Checkpoints",
    "Companions",
    "FirstStep",
    "FrozenBase",
    "MetricsCSV",
    "ModelWriter",
    "NEFTune",
    "NonfiniteSteps",
    "Preemption",
    "SampleAnswers",
    "StepProfile",
    "Throughput",
    "TrackioLogger",
    "TrainingBar",
    "Whereabouts",
    "peak_memory",
]
