"""LightningModules: one per objective, none per method."""

from ftlab.modules.finetune import FinetuneModule
from ftlab.modules.fsdp import FSDPStrategy
from ftlab.modules.fsdp2 import FSDP2Strategy
from ftlab.modules.schedules import Constant, Cosine, Linear, Schedule

__all__ = ["Constant", "Cosine", "FSDP2Strategy", "FSDPStrategy", "FinetuneModule", "Linear", "Schedule"]
