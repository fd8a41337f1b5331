"""Which base an adapter was made on: noted beside it, and compared before it is put onto another."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.errors import UserError, one_line
from ftlab.networks import base_kind, fingerprint

FILE = "base.json"
_SAMPLE = 4096


@dataclass(frozen=True)
class Base:
    """A base as it was opened.

    Of a tensor, digests take 4,096 values, evenly spaced: all of a large network's would take as long as opening it.

    Args:
        base_model_name_or_path: Where it lies, or its name on the hub.
        revision: Its commit on the hub.
        held: How its matrices are held, as `base_kind` says it.
        dtype: The type of all else in memory.
        untouched: Digest of what no quantisation touches: input embeddings, norms, biases.
        rounded: Of the same in bfloat16, by which a base is known again in float32 and in bfloat16.
        matrices: Of the matrices, as they are held.
    """

    base_model_name_or_path: str
    revision: str | None
    held: str
    dtype: str
    untouched: str
    rounded: str
    matrices: str

    @classmethod
    def of(cls, network: PreTrainedModel) -> Base:
        """The base that `network` is, freshly opened and not adapted."""
        embeddings: Any = network.get_input_embeddings().weight
        vectors = [(name, tensor) for name, tensor in network.named_parameters() if tensor.ndim == 1]
        untouched = [(name, _sample(tensor)) for name, tensor in [("embeddings", embeddings), *vectors]]
        matrices = [(name, tensor) for name, tensor in network.named_parameters() if tensor.ndim > 1]
        return cls(
            str(network.name_or_path),
            getattr(network.config, "_commit_hash", None),
            base_kind(network),
            str(embeddings.dtype).removeprefix("torch."),
            fingerprint(untouched),
            fingerprint((name, tensor.bfloat16()) for name, tensor in untouched),
            fingerprint((name, _sample(tensor)) for name, tensor in matrices),
        )

    def is_another(self, other: Base) -> bool:
        """Whether the weights are not those of `other`, as far as two that are held in different ways can be
        compared."""
        if self.dtype == other.dtype:
            held_alike = self.held == other.held
            return self.untouched != other.untouched or (held_alike and self.matrices != other.matrices)
        return "float16" not in (self.dtype, other.dtype) and self.rounded != other.rounded

    @classmethod
    def noted(cls, directory: Path) -> Base:
        """The one noted beside an adapter.

        Raises:
            UserError: The note cannot be read.
        """
        try:
            return cls(**json.loads((directory / FILE).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:  # no JSON, or other fields
            raise UserError(
                f"{directory / FILE} is damaged or of another version of ftlab ({one_line(error)}): get it anew, or "
                "delete it to have the adapter opened on whatever base it is given"
            ) from error

    def write(self, directory: Path) -> None:
        """Writes it beside an adapter."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


def check_base(directory: Path, network: nn.Module) -> None:
    """Refuses an adapter that was made on another base; says nothing where none is noted.

    Raises:
        UserError: The weights under the adapter are others, or another commit of the hub.
    """
    if (directory / FILE).is_file():
        assert isinstance(network, PreTrainedModel)
        check_noted(directory, Base.of(network))


def check_noted(directory: Path, ours: Base) -> None:
    """The same, of a base of which is known what it was when it was opened.

    Raises:
        UserError: As `check_base`.
    """
    if not (directory / FILE).is_file():
        return
    theirs = Base.noted(directory)
    if theirs.is_another(ours):
        raise UserError(
            f"{directory} was made on {_named(theirs)}, whose weights are not those of {_named(ours)}: open it on "
            "the base that it belongs to"
        )
    if theirs.revision and ours.revision and theirs.revision != ours.revision:
        raise UserError(
            f"{directory} was made on revision {theirs.revision} of {theirs.base_model_name_or_path}, and this is "
            f"{ours.revision}: give network.revision"
        )


def _named(base: Base) -> str:
    return base.base_model_name_or_path + (f" at {base.revision}" if base.revision else "")


def _sample(tensor: Tensor) -> Tensor:
    if hasattr(tensor, "__tensor_flatten__"):  # of torchao: whole, as it is
        return tensor
    values = tensor.detach().flatten()
    return values[:: max(1, len(values) // _SAMPLE)]
