"""`ftlab generate`: one prompt, a file of prompts, or a chat on the terminal.

A run's saved model answers, or one base with several adapters on it, each as if it were alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ftlab.cli.adapters import Undescribed, find, find_beside, named, open_all, read_combination
from ftlab.cli.answers import Model, Voice
from ftlab.cli.chat import Chat
from ftlab.cli.experiment import Experiment
from ftlab.cli.files_of_prompts import answer_file, refuse_existing
from ftlab.cli.sentences import own_parser, parse
from ftlab.errors import UserError
from ftlab.evaluation.generation import Decoding, DecodingChanges
from ftlab.methods.adapters import Combination
from ftlab.networks import DType, Quantization
from ftlab.runs.files import digest, files_under


def run(verb: str, arguments: Sequence[str]) -> int:
    """Answers on standard output: text for one prompt and in a chat, a JSON line for each prompt of a file."""
    options = parse(_parser(verb), arguments)
    _must_make_sense(options)
    model, open_adapter = _adapters_of(options) if options.adapter else (_model_of_run(options), None)
    if options.file:
        identity = _identity(options) if options.to else {}
        return 1 if answer_file(model, options.file, options.to, identity) else 0
    if options.prompt is not None:
        model.say(sys.stdin.read() if options.prompt == "-" else options.prompt)
    elif not options.save:
        Chat(model, open_adapter).run()
    return 0


def _parser(verb: str) -> ArgumentParser:
    parser = own_parser(verb, "Answers prompts with a run's saved model, or with several adapters on one base.")
    parser.add_argument("run", type=Path | None, nargs="?", help="directory of a finished run")
    parser.add_argument("--prompt", type=str | None, help="the prompt to answer; '-' reads standard input")
    parser.add_argument(
        "--file",
        type=Path | None,
        help="prompts: a line each, or .jsonl with a column `prompt`, and `adapter` where one is to answer",
    )
    parser.add_argument(
        "--to",
        type=Path | None,
        help="file for the answers to --file, not standard output: the same command goes on where it was killed",
    )
    parser.add_argument("--batch_size", type=int, default=16, help="prompts answered at once")
    told = "how to decode; by default, and where a key of it is not given, as the run was scored"
    parser.add_argument("--decoding", type=DecodingChanges | None, help=told)
    parser.add_argument(
        "--adapter",
        type=str,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="instead of RUN, and as often as there are adapters of one base: a run, its model/, an export, or any "
        "directory in peft's layout",
    )
    parser.add_argument("--use", type=str | None, help="the adapter that answers; by default each does, by its name")
    parser.add_argument("--base", type=str | None, help="the base of all adapters; by default the one that they name")
    of_bare = "for adapters that no run describes: "
    parser.add_argument("--dtype", type=DType | None, help=f"{of_bare}type of the base's weights (default: float32)")
    parser.add_argument("--quantization", type=Quantization | None, help=f"{of_bare}how the base is held in few bits")
    parser.add_argument("--template", type=str | None, help=f"{of_bare}as data.template (default: auto)")
    parser.add_argument(
        "--trust_remote_code", type=bool, default=False, help=f"{of_bare}as model.network.trust_remote_code"
    )
    parser.add_argument(
        "--combine", type=str | None, metavar="NAME=A:WEIGHT,B:WEIGHT", help="one more adapter, made of these"
    )
    parser.add_argument(
        "--combination",
        type=Combination,
        default="cat",
        help="how peft combines them: cat is the weighted sum of their updates",
    )
    parser.add_argument("--density", type=float | None, help="share of values that TIES, DARE and pruning keep")
    parser.add_argument("--save", type=Path | None, help="new directory for the combined adapter, in peft's layout")
    return parser


def _must_make_sense(options: Namespace) -> None:
    if options.to and not options.file:
        raise UserError("--to is for the answers to --file: give that too")
    if options.to:
        refuse_existing(options.to)
    if options.batch_size < 1:
        raise UserError(f"--batch_size is {options.batch_size}: give a number from 1 on")
    if options.run is None and not options.adapter:
        raise UserError("run is missing: give the directory of a finished run, or adapters with --adapter NAME=DIR")
    if options.run and options.adapter:
        raise UserError(f"{options.run} and --adapter are given: a run is an adapter too, --adapter NAME={options.run}")
    if not options.combine and (options.save or options.density is not None or options.combination != "cat"):
        raise UserError("--save, --density and --combination are about a combination: give --combine too")
    if options.adapter:
        if options.save and options.save.exists():
            raise UserError(f"--save: {options.save} exists: give a new directory")
        return
    for name in ("use", "base", "dtype", "quantization", "template", "trust_remote_code", "combine"):
        if getattr(options, name) not in (None, False):
            raise UserError(f"--{name} is about adapters: give --adapter NAME={options.run} instead of the run alone")


def _decoded(options: Namespace, own: Decoding) -> Decoding:
    """What a run's decoding becomes by what is said of it."""
    return options.decoding.of(own) if options.decoding else own


def _model_of_run(options: Namespace) -> Model:
    experiment = Experiment.of_run(options.run)
    network = experiment.open_trained(experiment.trainer.strategy.root_device)
    voice = Voice(experiment.datamodule.encoder, _decoded(options, experiment.model.decoding))
    return Model(network, {"": voice}, [""], None, options.batch_size)


def _identity(options: Namespace) -> dict[str, Any]:
    """What decides the answers, beside the prompts: the options, and the weights of all that is named."""
    said = {key: value for key, value in options.as_flat().__dict__.items() if key not in ("to", "file")}
    places = [options.run] if options.run else [named(word, "--adapter")[1] for word in options.adapter]
    files = [file for place in places for file in files_under(place / "model" if (place / "model").is_dir() else place)]
    return said | {"files": {str(file): digest(file) for file in files}}


def _adapters_of(options: Namespace) -> tuple[Model, Callable[[str, Path], Voice]]:
    name, weights = read_combination(options.combine) if options.combine else ("", {})
    undescribed = Undescribed(options.dtype, options.quantization, options.template, options.trust_remote_code)
    sources = find(options.adapter, options.base, undescribed)
    names = [*(source.name for source in sources), *([name] if weights else [])]
    if options.use and options.use not in names:
        raise UserError(f"--use: there is no adapter {options.use!r}: there are {', '.join(names)}")
    adapters = open_all(sources)
    voices = {source.name: Voice(source.voice.encoder, _decoded(options, source.voice.decoding)) for source in sources}
    if weights:
        adapters.combine(name, weights, options.combination, options.density)
        first = next(source for source in sources if source.name == next(iter(weights)))
        voices[name] = voices[first.name]
        if options.save:
            adapters.save(name, options.save)
            first.tokenized_by.tokenizer().save_pretrained(options.save)

    def open_adapter(name: str, directory: Path) -> Voice:
        source = find_beside(sources[0], name, directory, options.base, undescribed)
        adapters.add(name, source.directory)
        return Voice(source.voice.encoder, _decoded(options, source.voice.decoding))

    chosen = [options.use] if options.use else names
    return Model(adapters.network, voices, chosen, adapters, options.batch_size), open_adapter
