"""Adapters named on the command line: where each lies, which base it belongs to, how it is asked."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from ftlab.cli.answers import Voice
from ftlab.cli.experiment import Experiment
from ftlab.data import Encoder
from ftlab.data.encoder import Encoding
from ftlab.errors import UserError
from ftlab.evaluation.generation import Decoding
from ftlab.methods.adapters import Adapters
from ftlab.methods.saved_config import read_config
from ftlab.networks import DType, Network, Quantization


@dataclass(frozen=True)
class Undescribed:
    """What holds for adapters that no run describes.

    Args:
        dtype: Type of the base's weights in memory; float32 by default.
        quantization: How the base is held; in full precision by default.
        template: How prompts are rendered, as `data.template`; auto by default.
        trust_remote_code: Whether code that comes with the base is run, as `model.network.trust_remote_code`.
    """

    dtype: DType | None = None
    quantization: Quantization | None = None
    template: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Source:
    """A saved adapter.

    Args:
        name: Given on the command line.
        directory: In peft's layout.
        network: The base it belongs to.
        quantization: How that is held.
        device: Where it answers.
        voice: How it is asked.
        tokenized_by: Where the tokenizer of that lies.
        run: Whether a run describes it.
    """

    name: str
    directory: Path
    network: Network
    quantization: Quantization | None
    device: torch.device
    voice: Voice
    tokenized_by: Network
    run: bool


def find(given: Iterable[str], base: str | None, undescribed: Undescribed) -> list[Source]:
    """The adapters of `--adapter NAME=DIR`, all of one base.

    Args:
        given: As on the command line.
        base: Where the base of all of them lies; by default they say it.
        undescribed: What holds for those that no run describes.

    Raises:
        UserError: One is no adapter, or they belong to different bases.
    """
    directories: dict[str, Path] = {}
    for word in given:
        name, directory = named(word, "--adapter")
        if name in directories:
            raise UserError(f"--adapter: {name!r} is given twice: give each adapter a name of its own")
        directories[name] = directory
    sources = []
    for name, directory in directories.items():
        with _about(f"--adapter {name}"):
            sources.append(_source(name, directory, base, undescribed))
    if undescribed != Undescribed() and all(source.run for source in sources):
        raise UserError(
            "--dtype, --quantization, --template and --trust_remote_code: every adapter is of a run, which says them "
            "itself"
        )
    for other in sources[1:]:
        if differ := _bases_differ(sources[0], other):
            raise UserError(
                f"--adapter: {differ}: leave one out, or say with --base, --dtype and --quantization what they do "
                "not say"
            )
    return sources


def find_beside(first: Source, name: str, directory: Path, base: str | None, undescribed: Undescribed) -> Source:
    """One more adapter, to stand beside `first`, as `/adapter NAME=DIR` of a chat asks; args are those of `find`.

    Raises:
        UserError: It is no adapter, or belongs to another base.
    """
    with _about(f"/adapter {name}"):
        source = _source(name, directory, base, undescribed)
        if differ := _bases_differ(first, source):
            raise UserError(f"{differ}: a chat of its own can have it answer")
    return source


def open_all(sources: Sequence[Source]) -> Adapters:
    """One base with all the adapters on it."""
    transformers.utils.logging.disable_progress_bar()  # as in an experiment, which there need not be
    first = sources[0]
    base = first.network.model(first.quantization, first.device)
    adapters = Adapters(base, {source.name: source.directory for source in sources})
    if not first.quantization:
        adapters.network.to(first.device)
    return adapters


def read_combination(text: str) -> tuple[str, dict[str, float]]:
    """The name and the weights of `mix=a:0.7,b:0.3`. Raises UserError where it is none."""
    name, equals, parts = text.partition("=")
    weights: dict[str, float] = {}
    try:
        for part in parts.split(","):
            adapter, _, weight = part.strip().rpartition(":")
            if not adapter or adapter in weights or not math.isfinite(float(weight)):
                raise ValueError
            weights[adapter] = float(weight)
        if not name or not equals or set(name) & set(":, \t"):
            raise ValueError
    except ValueError as error:
        raise UserError(
            f"--combine is {text!r}: give NAME=ADAPTER:WEIGHT,ADAPTER:WEIGHT, each adapter once, such as "
            "mix=a:0.7,b:0.3"
        ) from error
    return name, weights


def named(word: str, asked: str) -> tuple[str, Path]:
    """The two parts of NAME=DIR, given to the option or the command `asked`. Raises UserError where it is none."""
    name, _, place = word.partition("=")
    if not (name and place) or set(name) & set(":, \t"):
        raise UserError(f"{asked} is {word!r}: give NAME=DIR, the name without spaces, commas and colons")
    return name, Path(place)


@contextlib.contextmanager
def _about(asked: str) -> Iterator[None]:
    """Has what is refused begin with what was asked for."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{asked}: {error}") from error


def _source(name: str, directory: Path, base: str | None, undescribed: Undescribed) -> Source:
    """A run (its own directory, or its model/), or any other directory in peft's layout."""
    run = directory.parent if directory.name == "model" else directory
    if (run / "config.yaml").is_file():
        return _of_run(name, run, base)
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}")
    config = read_config(directory)
    where = base or config.base_model_name_or_path
    if not where:
        raise UserError(f"{directory} does not say which base it belongs to: give --base")
    network = Network(where, None if base else config.revision, undescribed.dtype or "float32")
    network = dataclasses.replace(network, trust_remote_code=undescribed.trust_remote_code)
    own = (directory / "tokenizer_config.json").is_file()
    tokenized_by = Network(str(directory)) if own else network
    try:
        network.config()
    except UserError as error:
        raise UserError(f"{error}; --base says where the base of all adapters lies now") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    voice = Voice(Encoder(tokenized_by.tokenizer(), Encoding(undescribed.template or "auto")), Decoding())
    return Source(name, directory, network, undescribed.quantization, device, voice, tokenized_by, run=False)


def _of_run(name: str, run: Path, base: str | None) -> Source:
    experiment = Experiment.of_run(run)
    directory = experiment.run.saved_model()
    read_config(directory)  # refuses what is none
    network = experiment.model.pretrained
    if base:
        network = dataclasses.replace(network, path=base, revision=None)
        experiment.datamodule.network = network
    voice = Voice(experiment.datamodule.encoder, experiment.model.decoding)
    device = experiment.trainer.strategy.root_device
    quantization = experiment.model.method.quantization
    return Source(name, directory, network, quantization, device, voice, network, run=True)


def _bases_differ(one: Source, other: Source) -> str | None:
    """In what two adapters do not stand on the same base, held in the same way."""
    for what, mine, theirs in (
        ("base is", _place(one.network), _place(other.network)),
        ("base is held in", _held(one), _held(other)),
        ("attention kernel is", str(one.network.attention), str(other.network.attention)),
    ):
        if mine != theirs:
            return f"the {what} {mine} for {one.name} and {theirs} for {other.name}, and one base serves all adapters"
    return None


def _place(network: Network) -> str:
    path = Path(network.path)
    where = str(path.resolve()) if path.is_dir() else network.path
    return f"{where} at {network.revision}" if network.revision else where


def _held(source: Source) -> str:
    few = source.quantization
    if not few:
        return source.network.dtype
    double = "double " if few.double and few.kind != "int8" else ""
    return f"{double}{few.kind} (computed in {few.compute_dtype}, the rest in {source.network.dtype})"
