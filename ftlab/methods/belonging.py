"""Which base an adapter was made on: noted beside it, and compared before it is put onto another."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ftlab.errors import UserError
from ftlab.networks import fingerprint

FILE = "base.json"


@dataclass(frozen=True)
class Base:
    """A base as it was opened.

    Args:
        base_model_name_or_path: Where it lies, or its name on the hub.
        revision: Its commit on the hub.
        dtype: The type of its weights in memory: digests of two types cannot be compared.
        digest: Of the weights that no quantisation touches: input embeddings, norms, biases.
    """

    base_model_name_or_path: str
    revision: str | None
    dtype: str
    digest: str

    @classmethod
    def of(cls, network: PreTrainedModel) -> Base:
        """The base that `network` is, freshly opened and not adapted."""
        embeddings: Any = network.get_input_embeddings().weight
        untouched = [(name, tensor) for name, tensor in network.named_parameters() if tensor.ndim == 1]
        return cls(
            str(network.name_or_path),
            getattr(network.config, "_commit_hash", None),
            str(embeddings.dtype).removeprefix("torch."),
            fingerprint([("embeddings", embeddings), *untouched]),
        )

    def write(self, directory: Path) -> None:
        """Writes it beside an adapter."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


def check_base(directory: Path, network: nn.Module) -> None:
    """Refuses an adapter that was made on another base; says nothing where none is noted.

    Raises:
        UserError: The weights under the adapter are others, or another commit of the hub.
    """
    if not (directory / FILE).is_file():
        return
    assert isinstance(network, PreTrainedModel)
    theirs, ours = Base(**json.loads((directory / FILE).read_text())), Base.of(network)
    if theirs.dtype == ours.dtype and theirs.digest != ours.digest:
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
