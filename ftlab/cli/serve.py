"""`ftlab serve`: the command by which an inference server serves an export, and what can be checked of it before."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import Namespace
from transformers.utils.import_utils import is_serve_available

from ftlab.cli import VERBS
from ftlab.cli.sentences import own_parser, parse
from ftlab.errors import UserError
from ftlab.methods.adapter_bits import is_quantised
from ftlab.methods.belonging import FILE, Base
from ftlab.methods.saved_config import read_config
from ftlab.methods.serving import misfit, vllm_rank, why_not_vllm
from ftlab.runs import Run
from ftlab.runs.files import read_json

_DESCRIPTION = f"""{VERBS["serve"]}.

Starts no server: the command is printed, to be run where the server is installed. It is refused what the server would
refuse or get wrong: adapters that it does not take, of another base or of several, files that are missing."""

_DEFAULT_RANK = 16
"""vLLM's own --max-lora-rank."""


@dataclass(frozen=True)
class Served:
    """What is to be served.

    Args:
        name: By which requests call it.
        directory: Where it lies.
        base: Of an adapter, the base that it names, or that was given; None for a whole network.
    """

    name: str
    directory: Path
    base: str | None


def run(verb: str, arguments: Sequence[str]) -> int:
    """Prints the command."""
    parser = own_parser(verb, _DESCRIPTION)
    parser.add_argument(
        "models",
        nargs="+",
        metavar="RUN | EXPORT",
        help="a finished run, or what ftlab export wrote; several adapters of one base for vLLM; NAME=… names one",
    )
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm", help="which server")
    parser.add_argument("--base", type=str | None, help="where the base of adapters lies, if not where they say")
    parser.add_argument("--host", type=str, default="localhost", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at")
    parser.add_argument("--json", action="store_true", help="print JSON: the command's words, and notes")
    options = parse(parser, arguments)
    served = [_find(word, options.base) for word in options.models]
    command = _of_vllm(served, options) if options.engine == "vllm" else _of_transformers(served, options)
    notes = list(_notes(served, options.engine))
    if options.json:
        print(json.dumps({"command": command, "notes": notes}, indent=2, ensure_ascii=False))
        return 0
    for note in notes:
        print(f"ftlab: {note}", file=sys.stderr)
    print(shlex.join(command))
    return 0


def _find(word: str, base: str | None) -> Served:
    """Raises:
    UserError: There is nothing that could be served.
    """
    path, own = Path(word), Path(word).resolve().name
    if "=" in word and not path.exists():
        own, _, place = word.partition("=")
        path = Path(place)
    if not path.is_dir():
        raise UserError(f"there is no directory {path}: give a finished run, or what ftlab export wrote")
    if is_quantised(path):
        raise UserError(f"{path} is an adapter in few bits, which no server takes: ftlab export {path} DIR widens it")
    directory = Run(path).saved_model() if (path / "config.yaml").is_file() else path
    if (directory / "adapter_config.json").is_file():
        config = read_config(directory)
        where = base or config.base_model_name_or_path
        if not where:
            raise UserError(f"{directory} does not say which base it belongs to: give --base")
        return Served(own, directory, where)
    if base:
        raise UserError(f"--base is about adapters, and {directory} holds none: leave it out")
    _must_be_whole(directory)
    return Served(own, directory, None)


def _must_be_whole(network: Path) -> None:
    """Raises:
    UserError: A file is missing without which no server opens a network.
    """
    if not (network / "config.json").is_file():
        raise UserError(f"{network} holds neither an adapter nor a network: there is no config.json in it")
    said = read_json(network / "model.safetensors.index.json").get("weight_map", {})
    for name in sorted({*said.values()} or {"model.safetensors"}):
        if not (network / name).is_file():
            raise UserError(f"{network} lacks {name}: give a network in safetensors, as ftlab export --merge writes it")
    if not (network / "tokenizer_config.json").is_file():
        raise UserError(f"{network} has no tokenizer: ftlab export RUN DIR --merge writes one beside the weights")


def _of_vllm(served: Sequence[Served], options: Namespace) -> list[str]:
    """Raises:
    UserError: vLLM cannot serve it, or not all of it at once.
    """
    listening = ["--host", options.host, "--port", str(options.port)]
    if any(each.base is None for each in served):
        if len(served) > 1:
            raise UserError("a server serves one network: give several adapters of one base, or one network alone")
        return ["vllm", "serve", str(served[0].directory), *listening]
    base = _base_of_all(served)
    for each in served:
        if why := why_not_vllm(each.directory):
            raise UserError(f"{each.directory}: {why}; ftlab export RUN DIR --merge makes a network that is served")
        if Path(base).is_dir() and (what := misfit(each.directory, Path(base))):
            raise UserError(f"{each.directory} is no adapter of {base}: {what}; give --base")
    rank = max(vllm_rank(each.directory) for each in served)
    ranked = ["--max-lora-rank", str(rank)] if rank > _DEFAULT_RANK else []
    several = ["--max-loras", str(len(served))] if len(served) > 1 else []
    modules = [f"{each.name}={each.directory}" for each in served]
    return ["vllm", "serve", base, "--enable-lora", *ranked, *several, "--lora-modules", *modules, *listening]


def _base_of_all(served: Sequence[Served]) -> str:
    """The base that one server opens for them.

    Raises:
        UserError: They have several, or it is not there, or two adapters have one name.
    """
    bases = {str(Path(each.base).resolve()) if Path(each.base or "").is_dir() else each.base: each for each in served}  # type: ignore[arg-type]
    if len(bases) > 1:
        (one, mine), (other, theirs), *_ = bases.items()
        raise UserError(f"the base is {one} for {mine.directory} and {other} for {theirs.directory}: serve one base's")
    names = [each.name for each in served]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{twice!r} names two adapters: give each a name, as in NAME={served[0].directory}")
    (base,) = {str(each.base) for each in bases.values()}
    path = Path(base)
    if path.is_dir():
        _must_be_whole(path)
    elif path.is_absolute() or base.startswith("."):
        raise UserError(f"the base {base} is not there: --base says where it lies now")
    return base


def _of_transformers(served: Sequence[Served], options: Namespace) -> list[str]:
    """Raises:
    UserError: It is more than one network, or an adapter, whose configuration `transformers serve` does not find.
    """
    if adapter := next((each for each in served if each.base is not None), None):
        raise UserError(
            f"{adapter.directory} is an adapter, and transformers serve takes whole networks alone: ftlab export RUN "
            "DIR --merge makes one, or --engine vllm serves adapters"
        )
    if len(served) > 1:
        raise UserError("transformers serve is given one network: give one")
    return ["transformers", "serve", str(served[0].directory), "--host", options.host, "--port", str(options.port)]


def _notes(served: Sequence[Served], engine: str) -> Iterator[str]:
    if engine == "vllm" and not shutil.which("vllm"):
        yield "vLLM is not installed here: the command is for where it is"
    if engine == "transformers" and not is_serve_available():
        yield "transformers serve lacks packages here: pip install 'ftlab[serve]'"
    for each in served:
        if each.base is None:
            continue
        if not Path(each.base).is_dir():
            yield f"the base {each.base} is on the hub, and whether {each.directory} fits it was not looked at"
        if (each.directory / FILE).is_file() and (held := Base.noted(each.directory).held) != "full":
            yield (
                f"{each.directory} was trained beside a base in {held}, and is served beside one in full precision: "
                "ftlab export RUN DIR --merge has the base as it was in training"
            )
