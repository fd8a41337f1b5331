"""What an experiment takes before it runs: memory by part, the largest micro-batch, time and disk; of one process or
many."""

from ftlab.planning.devices import DEVICES, Device, device_named, operations_of, size_in_bytes
from ftlab.planning.ledger import PARTS, Ledger, Part
from ftlab.planning.plan import EFFICIENCY, Plan, Processes, memory_of, plan, ways_on
from ftlab.planning.processes import Cost, Shape, Weights, ddp, fsdp, fsdp2
from ftlab.planning.rehearsal import Batch, Rehearsal, Step, rehearse
from ftlab.planning.skeleton import SHAPES, shape_of, skeleton, without_values

__all__ = [
    "DEVICES",
    "EFFICIENCY",
    "PARTS",
    "SHAPES",
    "Batch",
    "Cost",
    "Device",
    "Ledger",
    "Part",
    "Plan",
    "Processes",
    "Rehearsal",
    "Shape",
    "Step",
    "Weights",
    "ddp",
    "device_named",
    "fsdp",
    "fsdp2",
    "memory_of",
    "operations_of",
    "plan",
    "rehearse",
    "shape_of",
    "size_in_bytes",
    "skeleton",
    "ways_on",
    "without_values",
]
