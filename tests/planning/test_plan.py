"""The largest micro-batch, by brute force; time, checkpoint and several processes, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.plugins.precision import HalfPrecision, Precision
from torch.optim import AdamW

from ftlab.errors import UserError
from ftlab.methods import Full, LoRA
from ftlab.networks import Network
from ftlab.planning import DEVICES, Batch, Device, Processes, Step, ddp, device_named, operations_of, plan, rehearse
from ftlab.planning.plan import EFFICIENCY, MOST_ROWS, largest_batch


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 10**7), st.integers(1, 64), st.integers(0, 10**6))
def test_the_largest_batch_is_that_of_trying_all(room: int, fixed: int, row: int, start: int, other: int) -> None:
    """Memory is the larger of two lines: which part of a step holds the most depends on the rows."""

    def left(rows: int) -> float:
        return room - max(fixed + row * rows, 2 * fixed + other * rows)

    tried = [rows for rows in range(1, MOST_ROWS + 1) if left(rows) >= 0]
    found = largest_batch(left, start)
    best = max(tried, default=0)
    assert left(found) >= 0 or found == 0
    if row >= other:  # one line, from some size on
        assert found == best
    assert found <= best
    assert found >= best - max(1, best // 20)


def step(network: Network, batch: Batch = Batch(2, 32)) -> Step:  # noqa: B008  # frozen
    precision = HalfPrecision("bf16-true")
    return Step(network, LoRA(r=4), lambda g: AdamW(g, lr=1e-3, fused=True), precision, batch, on_gpu=False)


def test_a_plan_fits_to_the_row(network: Network) -> None:
    small = step(network)
    five, six = (rehearse(step(network, batch=Batch(rows, 32))).memory for rows in (5, 6))
    found = plan(small, Device("small", (five + six) / 2, 1e12, is_gpu=False))
    assert (found.largest, found.fits) == (5, True)
    assert found.checkpoint == found.rehearsal.trained_bytes + found.rehearsal.optimizer_bytes
    assert found.seconds == pytest.approx(found.rehearsal.operations / (EFFICIENCY * 1e12))
    assert found.tokens_a_second == pytest.approx(2 * 32 / found.seconds)


def test_peaks_are_those_of_bfloat16(network: Network) -> None:
    found = plan(replace(step(network), precision=Precision()), Device("large", 1e12, 1e12))
    assert (found.fits, found.seconds, found.tokens_a_second) == (True, None, None)


def test_a_plan_that_does_not_fit(network: Network) -> None:
    found = plan(step(network), Device("tiny", 1000, is_gpu=False))
    assert (found.largest, found.fits, found.seconds, found.tokens_a_second) == (0, False, None, None)


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_in_shards_a_process_holds_less(strategy: str, network: Network) -> None:
    device = Device("large", 1e12, 1e12, is_gpu=False)
    alone, two = (plan(step(network), device, Processes(count, strategy)) for count in (1, 2))
    cost, peak = two.processes.cost(two.rehearsal), two.rehearsal.peak
    whole = ddp(two.rehearsal.shape, 1)
    kept = 0.5 if strategy == "fsdp2" else 1.0  # of gradients and moments: fsdp has those of an adapter whole
    less = whole.weights - cost.weights + (1 - kept) * (peak["gradients"] + peak["optimizer"])
    assert whole.weights > cost.weights
    assert two.memory == pytest.approx(two.rehearsal.memory - less + cost.buffers)
    assert two.tokens_a_second == pytest.approx(2 * (alone.tokens_a_second or 0))


def test_with_ddp_each_holds_all(network: Network) -> None:
    device = Device("large", 1e12, is_gpu=False)
    assert plan(step(network), device, Processes(8)).memory == plan(step(network), device).memory


def test_devices_by_name() -> None:
    assert device_named("RTX 4090") is device_named("NVIDIA GeForce RTX 4090") is device_named("rtx4090")
    assert device_named("24 GB").memory == 24e9
    assert device_named("40GiB").memory == 40 * 2**30
    with pytest.raises(UserError, match=r"there is no 'RTX 4080'; did you mean RTX 4090"):
        device_named("RTX 4080")
    with pytest.raises(UserError, match=r"there is no 'abacus': give its memory, such as '24 GB', or one of T4, L4"):
        device_named("abacus")
    assert len({device.name for device in DEVICES}) == len(DEVICES)


@pytest.mark.parametrize(("name", "peak"), [
    ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A100-PCIE-40GB", 312e12), ("NVIDIA A100 80GB PCIe", 312e12),
    ("NVIDIA A10", 125e12), ("NVIDIA A10G", None), ("NVIDIA L4", 121e12), ("NVIDIA L40", None), ("NVIDIA L40S", 362e12),
    ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 NVL", 835e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA GH200 480GB", None), ("NVIDIA GeForce RTX 4090", 165e12), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ("NVIDIA RTX A6000", 155e12), ("NVIDIA RTX 6000 Ada Generation", None), ("Tesla T4", None), ("NVIDIA T400", None),
    ("Tesla V100-SXM2-32GB", None), ("AMD Instinct MI300X", 1307e12), ("cpu", None),
])  # fmt: skip
def test_peaks_by_what_drivers_call_devices(name: str, peak: float | None) -> None:
    assert operations_of(name, 79.2 * 2**30) == peak


def test_a_gpu_keeps_some_for_itself() -> None:
    assert device_named("24 GB").usable == pytest.approx((24e9 - 0.6e9) * 0.97)
    assert Device("CPU", 24e9, is_gpu=False).usable == 24e9


def test_full_training_takes_sixteen_bytes_a_parameter(network: Network) -> None:
    """Weights, gradients and two moments in float32, by hand."""
    found = rehearse(Step(network, Full(), lambda g: AdamW(g, fused=True), Precision(), Batch(1, 2), on_gpu=False))
    held = found.peak["weights"] + found.peak["gradients"] + found.peak["optimizer"]
    buffers_and_counts = 4096
    assert 16 * found.parameters <= held <= 16 * found.parameters + buffers_and_counts
    assert found.trained == found.parameters
