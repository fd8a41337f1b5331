"""LightningModules: one per objective, none per method."""

from ftlab.modules.finetune import FinetuneModule
from ftlab.modules.schedules import Constant, Cosine, Linear, Schedule

__all__ = ["Constant", "Cosine", "FinetuneModule", "Linear", "Schedule"]
