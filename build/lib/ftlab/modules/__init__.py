"""LightningModules: one per objective, none per method."""

from ftlab.modules.finetune import FinetuneModule
from ftlab.modules.schedules import Constant, Cosine, Linear, Schedule
from ftlab.modules.sharding.fsdp import FSDP2Strategy, FSDPStrategy

__all__ = ["Constant", "Cosine", "FSDP2Strategy", "FSDPStrategy", "FinetuneModule", "Linear", "Schedule"]
