"""The conformance suite itself: a sound method passes it, and each broken promise is found and said."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.errors import UserError
from ftlab.methods import Method
from ftlab.networks import Network
from ftlab.testing import Report, check_method, examine, suite


class Scale(Method):
    """Multiplies what each attention gives by a trained vector that starts at one: a sound method to break.

    Args:
        size: What the start adds to one.
    """

    def __init__(self, size: float = 0.0) -> None:
        self.size = size
        self.steps = 0

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        network.requires_grad_(False)
        for layer in self.layers(network):
            layer.scale = nn.Parameter(torch.ones(layer.out_features) + self.size)
            layer.handle = layer.register_forward_hook(lambda layer, _, output: output * layer.scale)  # type: ignore[assignment]
        return network

    @staticmethod
    def layers(network: nn.Module) -> list[Any]:
        return [module for name, module in network.named_modules() if name.endswith("o_proj")]

    def save(self, network: nn.Module, directory: Path) -> None:
        save_file(
            {str(n): layer.scale.data for n, layer in enumerate(self.layers(network))}, directory / "x.safetensors"
        )

    def load(self, network: PreTrainedModel, directory: Path) -> nn.Module:
        adapted = self.adapt(network)
        weights = load_file(directory / "x.safetensors")
        for number, layer in enumerate(self.layers(adapted)):
            layer.scale.data = weights[str(number)]
        return adapted

    def merge(self, network: nn.Module) -> PreTrainedModel:
        assert isinstance(network, PreTrainedModel)
        for layer in self.layers(network):
            layer.weight.data *= layer.scale.data[:, None]
            layer.handle.remove()
            del layer.scale
        return network


class WritesToTheBase(Scale):
    """Decays a frozen norm."""

    def after_step(self, network: nn.Module, step: int) -> None:
        network.get_parameter("model.norm.weight").data.mul_(0.999)


class ChangesTheBaseAtTheStart(Scale):
    """Rounds a frozen weight, of which the answers show almost nothing."""

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        network.get_parameter("model.norm.weight").data.mul_(1 + 1e-7)
        return super().adapt(network)


class TrainsUndeclared(Scale):
    """Declares the scales of the first layer only."""

    def trained(self, network: nn.Module) -> set[str]:
        return {name for name in super().trained(network) if ".0." in name}


class DeclaresWhatIsNotThere(Scale):
    """Names a tensor that the network does not have."""

    def trained(self, network: nn.Module) -> set[str]:
        return super().trained(network) | {"zzz"}


class WithoutGradient(Scale):
    """Has a tensor on which nothing depends."""

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        network = super().adapt(network)  # type: ignore[assignment]
        network.unused = nn.Parameter(torch.ones(3))
        return network


class FrozenForEver(Scale):
    """Declares a tensor that never requires a gradient."""

    def trained(self, network: nn.Module) -> set[str]:
        return super().trained(network) | {"model.norm.weight"}

    def param_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [p for name, p in network.named_parameters() if name in self.trained(network)]}]


class NoIdentity(Scale):
    """Does not start at one."""

    def __init__(self, size: float = 0.1) -> None:
        super().__init__(size)


class ForgetsTheOptimiser(Scale):
    """Gives the optimiser one of its tensors."""

    def param_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [self.layers(network)[0].scale]}]


class ForgetsOnSave(Scale):
    """Saves all but the last layer, and loads what is there."""

    def load(self, network: PreTrainedModel, directory: Path) -> nn.Module:
        adapted = self.adapt(network)
        for number, weight in list(load_file(directory / "x.safetensors").items())[:-1]:
            self.layers(adapted)[int(number)].scale.data = weight
        return adapted


class SavingChanges(Scale):
    """Rounds the scales in place when it saves them."""

    def save(self, network: nn.Module, directory: Path) -> None:
        for layer in self.layers(network):
            layer.scale.data = layer.scale.data.bfloat16().float()
        super().save(network, directory)


class MergesWrongly(Scale):
    """Multiplies along the other side of the weight, which is square."""

    def merge(self, network: nn.Module) -> PreTrainedModel:
        for layer in self.layers(network):
            layer.weight.data *= layer.scale.data / layer.scale.data[:, None]
        return super().merge(network)


class LeavesItsHook(Scale):
    """Merges by leaving its hook in the network, which a saved one does not have."""

    def merge(self, network: nn.Module) -> PreTrainedModel:
        assert isinstance(network, PreTrainedModel)
        return network


class RefusesToMerge(Scale):
    """Says that it cannot be merged."""

    def merge(self, network: nn.Module) -> PreTrainedModel:
        raise UserError("Scale has no merged form: export the adapter instead")


class LosesItsState(Scale):
    """Scales down by a number of its own, which no checkpoint holds."""

    def after_step(self, network: nn.Module, step: int) -> None:
        self.steps += 1
        for layer in self.layers(network):
            layer.scale.data *= 1 - 0.01 * self.steps


class KeepsItsState(LosesItsState):
    """The same, with the number in the checkpoint."""

    def state(self, network: nn.Module) -> dict[str, Any]:
        return {"steps": self.steps}

    def restore(self, network: nn.Module, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class SharesItsState(Scale):
    """Keeps its layers on the class: the last network that is adapted is the one that after_step works on."""

    adapted: ClassVar[list[nn.Module]] = []

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        SharesItsState.adapted[:] = [network]
        return super().adapt(network)

    def after_step(self, network: nn.Module, step: int) -> None:
        for layer in self.layers(self.adapted[0]):
            layer.scale.data *= 0.99


class HalfPrecision(Scale):
    """Trains in bfloat16."""

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        adapted = super().adapt(network)
        for layer in self.layers(adapted):
            layer.scale.data = layer.scale.data.bfloat16()
        return adapted


class CannotTrain(Scale):
    """Raises what no user would understand."""

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        raise KeyError("rank")


class Unrecomputable(Scale):
    """Has a forward that is another each time it is called: checkpointing calls it twice."""

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        adapted = super().adapt(network)
        calls: Iterator[int] = iter(range(10**6))
        for layer in self.layers(adapted):
            layer.handle.remove()
            layer.handle = layer.register_forward_hook(
                lambda layer, _, output: output * (layer.scale + (next(calls) if layer.training else 0) % 7)
            )
        return adapted


class StopsUnderCheckpointing(Scale):
    """Begins to train under gradient checkpointing, and then says that it does not go."""

    def after_step(self, network: nn.Module, step: int) -> None:
        if network.is_gradient_checkpointing:
            raise UserError("it does not go")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the suite make these checks and no other, for time."""

    def choose(*names: str) -> None:
        chosen = {name: check for name, check in suite.CHECKS.items() if name in names}
        monkeypatch.setattr(suite, "CHECKS", chosen)

    return choose


def failures(report: Report) -> dict[str, str]:
    return {outcome.check: outcome.remark for outcome in report.failures}


def test_a_sound_method_passes(network: Network) -> None:
    report = check_method(Scale(), network, parameters=2 * 64)
    assert {outcome.status for outcome in report.outcomes} == {"passed"}
    assert [outcome.check for outcome in report.outcomes] == [
        "training", "identity", "declared", "gradient", "base", "count", "load", "merge", "resume", "checkpointing",
        "bf16-mixed", "packing", "instances",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "check", "said"),
    [
        (WritesToTheBase(), "base", "model.norm.weight changed during training: the method writes to weights that it "),
        (ChangesTheBaseAtTheStart(), "base", "model.norm.weight was changed by adapt(), and the method declares"),
        (TrainsUndeclared(), "declared", "model.layers.1.self_attn.o_proj.scale trains and trained() does not name it"),
        (DeclaresWhatIsNotThere(), "declared", "trained() names zzz, and the network has no parameter of that name"),
        (WithoutGradient(), "gradient", "unused is declared in trained(), but its gradient was zero at every step"),
        (FrozenForEver(), "gradient", "model.norm.weight is declared in trained(), but it required no gradient in 100"),
        (NoIdentity(), "identity", "from the base's: begin with an update of zero, or declare identity_at_start"),
        (ForgetsTheOptimiser(), "count", "1.self_attn.o_proj.scale is declared in trained(), but param_groups() does"),
        (ForgetsOnSave(), "load", "from the trained one: save() forgets something, or load() does not put it back"),
        (SavingChanges(), "load", "save() changed the network that it wrote"),
        (MergesWrongly(), "merge", "and merge_tolerance is 0.0001: merge() does not add what the method computes"),
        (LeavesItsHook(), "merge", "merge() leaves something in it that save_pretrained does not keep"),
        (
            LosesItsState(),
            "resume",
            "is another than without the stop: what the method keeps from step to step belongs",
        ),
        (SharesItsState(), "instances", "is trained to another value where a second instance has trained meanwhile"),
        (HalfPrecision(), "bf16-mixed", "is held in torch.bfloat16: steps smaller than its rounding would be lost"),
        (Unrecomputable(), "checkpointing", "with gradient checkpointing differs by"),
        (StopsUnderCheckpointing(), "checkpointing", "training begins, and then stops: it does not go"),
        (CannotTrain(), "training", "KeyError: 'rank'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else "",
)
def test_a_broken_promise_is_found_and_said(
    method: Method, check: str, said: str, network: Network, only: Callable[..., None]
) -> None:
    only("load" if check == "merge" else check, check)
    found = failures(examine(method, network))
    assert found.keys() == {check}
    assert said in found[check]
    assert "\n" not in found[check]


def test_a_state_that_is_kept_passes(network: Network, only: Callable[..., None]) -> None:
    only("resume", "instances")
    assert failures(examine(KeepsItsState(), network)) == {}


def test_another_start_may_be_declared(network: Network, only: Callable[..., None]) -> None:
    class Declared(NoIdentity):
        identity_at_start = False

    only("identity")
    identity = check_method(Declared(), network).outcomes[-1]
    assert (identity.status, identity.remark[:12]) == ("not tried", "declared not")


def test_a_merge_may_be_refused(network: Network, only: Callable[..., None]) -> None:
    only("load", "merge")
    merge = check_method(RefusesToMerge(), network).outcomes[-1]
    assert (merge.status, merge.remark) == ("refused", "Scale has no merged form: export the adapter instead")


def test_all_failures_are_said_at_once(network: Network, only: Callable[..., None]) -> None:
    only("identity", "declared", "count")
    with pytest.raises(AssertionError) as error:
        check_method(NoIdentity(), network, parameters=100)
    first, identity, count = str(error.value).splitlines()
    assert first == "NoIdentity breaks what ftlab relies on:"
    assert identity.startswith("identity: before the first step a logit differs by ")
    assert count == "count: 128 parameters are trained, and 100 were stated"


def test_a_class_makes_instances_of_its_own(network: Network, only: Callable[..., None]) -> None:
    """A copy of an instance has a list of its own where two calls of the class share one."""

    class Shares(Scale):
        def __init__(self, seen: list[int] = []) -> None:  # noqa: B006
            super().__init__()
            self.seen = seen

        def after_step(self, network: nn.Module, step: int) -> None:
            self.seen.append(step)
            for layer in self.layers(network):
                layer.scale.data *= 1 - 0.01 * len(self.seen)

    only("instances")
    assert failures(examine(Shares(), network)) == {}
    assert "instances" in failures(examine(Shares, network))


def test_only_bases_that_are_declared_can_be_asked_for(network: Network) -> None:
    with pytest.raises(UserError, match="Scale declares the bases full, and nf4 is none of them"):
        check_method(Scale(), network, bases=["nf4"])


def test_the_suite_leaves_the_method_as_it_was(network: Network, only: Callable[..., None]) -> None:
    only("resume")
    method = KeepsItsState()
    before = json.dumps(vars(method))
    check_method(method, network)
    assert json.dumps(vars(method)) == before


@pytest.mark.slow
def test_what_only_other_processes_show(network: Network) -> None:
    report = check_method(KeepsItsState(), network, processes=True)
    assert [(o.check, o.status) for o in report.outcomes[-2:]] == [
        ("fresh process", "passed"),
        ("two devices", "passed"),
    ]


@pytest.mark.slow
def test_a_gradient_that_devices_do_not_share_is_found(network: Network) -> None:
    report = examine(MovesByRank(), network, processes=True)
    assert "on two devices differs by" in failures(report)["two devices"]


class MovesByRank(Scale):
    """Changes a gradient's weight on one device alone, behind the back of whoever adds them up."""

    def after_step(self, network: nn.Module, step: int) -> None:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        for layer in self.layers(network):
            layer.scale.data += 0.01 * (1 - 2 * torch.distributed.is_initialized()) * (1 + rank)
