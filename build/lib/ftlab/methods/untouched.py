"""The base by itself, as a method holds it: what forgetting is measured from."""

from __future__ import annotations

from ftlab.methods.base import Method
from ftlab.methods.zero_shot import ZeroShot


def base_of(method: Method) -> Method:
    """What leaves the network as `method` finds it, held in the same bits, with nothing of the method's.

    To switch adapters off would leave the base without what some of them have taken out of it, such as PiSSA's.
    """
    base = ZeroShot()
    base.quantization = method.quantization
    base.bases = ZeroShot.bases | method.bases
    return base
