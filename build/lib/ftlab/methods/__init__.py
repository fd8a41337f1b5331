"""How a pretrained network becomes trainable, and what is kept of it. Needs torch and peft, never Lightning."""

from ftlab.methods.adalora import AdaLoRA
from ftlab.methods.base import Method
from ftlab.methods.full import Full
from ftlab.methods.lisa import LISA
from ftlab.methods.lora import LoRA
from ftlab.methods.peft import Peft
from ftlab.methods.qlora import QLoRA
from ftlab.methods.xlora import XLoRA
from ftlab.methods.zero_shot import ZeroShot

__all__ = ["LISA", "AdaLoRA", "Full", "LoRA", "Method", "Peft", "QLoRA", "XLoRA", "ZeroShot"]
