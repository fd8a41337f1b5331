"""Energy: what a driver's library is asked, and that a run which is gone on with has used the sum. No GPU is here."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ftlab.callbacks import energy, throughput
from ftlab.callbacks.throughput import Throughput


class Library:
    """Answers as NVML does: through pointers, with 0 where it can."""

    def __init__(self, millijoules: int, code: int = 0) -> None:
        self.millijoules, self.code = millijoules, code
        self.names: list[bytes] = []

    def nvmlDeviceGetHandleByUUID(self, name: Any, handle: Any) -> int:  # noqa: N802
        self.names.append(name.value)
        handle._obj.value = 77
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, used: Any) -> int:  # noqa: N802
        assert handle.value == 77
        used._obj.value = self.millijoules
        return self.code


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Properties of a GPU that is not there."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"0-{device.index}"))
    return torch.device("cuda", 1)


def test_the_driver_is_asked_by_the_boards_own_name(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(1500)
    monkeypatch.setattr(energy, "_nvml", lambda: library)
    assert energy.joules(gpu) == 1.5
    assert library.names == [b"GPU-0-1"]


def test_what_does_not_tell_has_none(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert energy.joules(torch.device("cpu")) is None
    monkeypatch.setattr(energy, "_nvml", lambda: Library(1500, code=3))  # not supported
    assert energy.joules(gpu) is None
    monkeypatch.setattr(energy, "_nvml", lambda: None)
    assert energy.joules(gpu) is None


def trained(callback: Throughput, used: list[float | None], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(used)
    monkeypatch.setattr(throughput, "joules", lambda device: next(answers))
    trainer: Any = SimpleNamespace(global_step=0, global_rank=0)
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    callback.on_train_start(trainer, module)
    callback.on_train_end(trainer, module)


def test_a_run_that_is_gone_on_with_has_used_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Throughput(), Throughput()
    trained(first, [100.0, 130.0, 131.0], monkeypatch)
    assert first.joules == 30.0
    state = first.state_dict()
    assert state["joules"] == 31.0  # a little later
    second.load_state_dict(state)
    trained(second, [5.0, 7.0], monkeypatch)
    assert second.joules == 33.0


def test_what_was_not_counted_at_first_is_not_known_later(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Throughput(), Throughput()
    trained(first, [None, None, None], monkeypatch)
    assert "joules" not in first.state_dict()
    second.load_state_dict({"supervised": 1, "total": 1, "seconds": 1.0})
    trained(second, [5.0, 7.0], monkeypatch)
    assert second.joules is None
