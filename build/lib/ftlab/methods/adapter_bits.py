"""A saved adapter in 4 or 8 bits: a directory of its own layout, and back to the one that peft opens.

Matrices are stored in blocks of 64 values: for each block its largest magnitude, for each value which of 16 or 256
fractions of that is nearest. In 4 bits the fractions are those of nf4 (Dettmers et al. 2023, arXiv 2305.14314), and a
value is off by at most 15.2 % of its block's maximum; in 8 bits those of the dynamic type (Dettmers et al. 2022, arXiv
2110.02861), and it is off by at most 0.71 %. A maximum is kept in the matrix's own type: as it is the magnitude of one
of the matrix's values, nothing of it is lost. So a value takes 4.5 or 8.5 bits where it had 32, 4.25 or 8.25 where it
had 16.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from ftlab.errors import UserError, one_line

FILE = "adapter_quantized.safetensors"
"""Holds one row of bytes, the codes and then the maxima of each matrix, and by their names the tensors that are no
matrices. What the row is made of stands in the metadata, so that a matrix's name is written once."""

PLAIN = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
FORMAT = 1
BLOCK = 64

_PACKED = "__packed__"  # the row's name, and that of its description
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class _Matrix:
    """How one matrix lies in the row of bytes."""

    name: str
    dtype: str
    shape: list[int]

    @property
    def maxima_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == "float64" else _DTYPES[self.dtype]

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    @property
    def blocks(self) -> int:
        return -(-self.values // BLOCK)

    def sizes(self, bits: int) -> tuple[int, int]:
        """Bytes of the codes and of the maxima."""
        return -(-self.values * bits // 8), self.blocks * self.maxima_dtype.itemsize


def is_quantised(directory: Path) -> bool:
    """Whether `directory` holds an adapter in few bits."""
    return (directory / FILE).is_file()


def quantise(directory: Path, to: Path, bits: Literal[4, 8]) -> None:
    """Writes an adapter in few bits, with all files that lie beside it.

    Floating matrices are rounded. What is one long row or column stays as it is, as vectors do: 4 bits of the scales
    of IA3, all of them near 1, are worse than no adapter.

    Args:
        directory: An adapter in peft's layout.
        to: A new directory.
        bits: Of a value, beside the maxima of the blocks.

    Raises:
        UserError: There is no such adapter, it is in few bits already, has no matrices, or values that are not finite.
    """
    _must_be_new(to)
    if is_quantised(directory):
        raise UserError(f"{directory} is stored in few bits already: take the adapter that it was made of")
    for name in (CONFIG, PLAIN):
        if not (directory / name).is_file():
            raise UserError(
                f"{directory} has no {name}: there is no adapter to store in few bits; take a directory that has one "
                "in peft's layout"
            )
    tensors, metadata = _read(directory / PLAIN)
    matrices, rest, row = [], {}, []
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if sum(size > 1 for size in tensor.shape) < 2 or dtype not in _DTYPES or not tensor.numel():
            rest[name] = tensor
            continue
        if not tensor.float().isfinite().all():
            raise UserError(
                f"{directory / PLAIN}: {name!r} has values that are not finite in float32: nothing would be left of "
                "the values beside them in few bits"
            )
        matrix = _Matrix(name, dtype, list(tensor.shape))
        matrices.append(matrix)
        row.append(_pack(tensor, matrix, bits))
    if not matrices:
        raise UserError(
            f"{directory / PLAIN} has vectors alone, as IA3 and LoRA of rank 1 have, and they are kept whole: there is "
            "nothing to store in few bits"
        )
    described = {"format": FORMAT, "bits": bits, "matrices": [[m.name, m.dtype, m.shape] for m in matrices]}
    metadata[_PACKED] = json.dumps(described, separators=(",", ":"))
    rest[_PACKED] = torch.cat(row)
    shutil.copytree(directory, to, ignore=_but(directory, PLAIN))
    save_file(rest, to / FILE, metadata=metadata)


def dequantise(directory: Path, to: Path) -> None:
    """Writes an adapter in few bits as a plain one, in the types that it had, with all files that lie beside it.

    Args:
        directory: As `quantise` wrote it.
        to: A new directory, which `peft.PeftModel.from_pretrained` opens.

    Raises:
        UserError: There is no such adapter, it is damaged, or a newer ftlab wrote it.
    """
    _must_be_new(to)
    path = directory / FILE
    for name in (CONFIG, FILE):
        if not (directory / name).is_file():
            raise UserError(f"{directory} holds no adapter in few bits: there is no {name} in it")
    tensors, metadata = _read(path)
    try:
        bits, matrices = _described(path, metadata.pop(_PACKED))
        row = tensors.pop(_PACKED)
        sizes = [size for matrix in matrices for size in matrix.sizes(bits)]
        if row.dtype != torch.uint8 or row.shape != (sum(sizes),):
            raise ValueError(f"{sum(sizes)} bytes of values are described, and it has {row.numel()}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error
    parts = iter(row.split(sizes))
    for matrix, codes, maxima in zip(matrices, parts, parts, strict=True):
        tensors[matrix.name] = _unpack(codes, maxima, matrix, bits)
    shutil.copytree(directory, to, ignore=_but(directory, FILE))
    save_file(tensors, to / PLAIN, metadata=metadata)


@contextmanager
def plain(directory: Path) -> Iterator[Path]:
    """The adapter of `directory` in peft's layout: `directory` itself, or a widened copy where it is in few bits.

    The copy is gone afterwards. What is wrong with either should be said of `directory`, which the user knows.
    """
    if not is_quantised(directory):
        yield directory
        return
    with TemporaryDirectory() as place:
        dequantise(directory, Path(place) / "adapter")
        yield Path(place) / "adapter"


def _pack(tensor: Tensor, matrix: _Matrix, bits: int) -> Tensor:
    """Codes and maxima as bytes."""
    import bitsandbytes.functional as bnb

    # whole blocks of zeros at the end: bitsandbytes compiles code anew for every other shape on the CPU
    blocks = pad(tensor.float().reshape(-1), (0, matrix.blocks * BLOCK - matrix.values)).view(-1, BLOCK)
    if bits == 4:
        codes, state = bnb.quantize_4bit(blocks, blocksize=BLOCK, quant_type="nf4")
    else:
        codes, state = bnb.quantize_blockwise(blocks, blocksize=BLOCK)
    kept, _ = matrix.sizes(bits)
    return torch.cat([codes.reshape(-1)[:kept], state.absmax.to(matrix.maxima_dtype).view(torch.uint8)])


def _unpack(codes: Tensor, maxima: Tensor, matrix: _Matrix, bits: int) -> Tensor:
    import bitsandbytes.functional as bnb

    shape = (matrix.blocks, BLOCK)
    absmax = maxima.clone().view(matrix.maxima_dtype).float()  # a copy begins at an address that fits the type
    codes = pad(codes, (0, math.prod(shape) * bits // 8 - len(codes)))
    if bits == 4:
        state = bnb.QuantState(absmax, shape, blocksize=BLOCK, quant_type="nf4", dtype=torch.float32)
        values = bnb.dequantize_4bit(codes.view(-1, 1), state)
    else:
        values = bnb.dequantize_blockwise(codes.view(shape), absmax=absmax, blocksize=BLOCK)
    return values.reshape(-1)[: matrix.values].to(_DTYPES[matrix.dtype]).reshape(matrix.shape)


def _described(path: Path, text: str) -> tuple[int, list[_Matrix]]:
    """The bits of a value, and the matrices in their order. Raises ValueError and the like where it is not so."""
    description: dict[str, Any] = json.loads(text)
    if description["format"] != FORMAT:
        raise UserError(
            f"{path} is of format {description['format']}, and this ftlab reads {FORMAT}: open it with the ftlab that "
            "wrote it"
        )
    if description["bits"] not in (4, 8):
        raise UserError(f"{path} is in {description['bits']} bits, and an adapter is stored in 4 or 8: export it again")
    matrices = [_Matrix(name, dtype, shape) for name, dtype, shape in description["matrices"]]
    for matrix in matrices:
        if matrix.dtype not in _DTYPES or not all(type(size) is int and size > 0 for size in matrix.shape):
            raise ValueError(f"{matrix.name} is {matrix.dtype} of {matrix.shape}")
    return description["bits"], matrices


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    why = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
    return UserError(f"{path} is damaged ({why}): export the adapter again")


def _must_be_new(to: Path) -> None:
    if to.exists():
        raise UserError(f"{to} exists: give a new directory")


def _but(directory: Path, file: str) -> Any:
    """For copytree: all but this file, which may have a namesake in a directory further down."""
    return lambda place, names: {file} & set(names) if Path(place) == directory else set()
