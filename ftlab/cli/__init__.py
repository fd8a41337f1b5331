"""The command line. Nothing heavy is imported here: `ftlab --help` answers at once, a verb imports what it needs."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from ftlab import __version__
from ftlab.cli import quiet
from ftlab.errors import Preempted, UserError

VERBS = {
    "fit": "fine-tune a network as an experiment says; the same command again goes on where it stopped",
    "validate": "score a run on its validation records",
    "test": "score a run on its test records",
    "predict": "answer the prompts of a file with a run",
    "prepare": "run the data of an experiment alone: what was read, left out and why, split, leaked, how long",
    "plan": "say before it runs what an experiment takes: memory by part, the largest micro-batch, time, disk",
    "generate": "answer one prompt, a file of prompts, or chat",
    "export": "write a run's adapter, or the merged model, and check it against the run",
    "serve": "print, and check, the command by which vLLM or transformers serves a run or an export",
    "sweep": "run many trials of an experiment as a sweep file says, and find the best",
    "compare": "methods side by side: quality with its uncertainty, cost, and which cannot be told apart",
    "diff": "say in what two runs differ, and whether their results are equal",
    "ls": "list the runs there are: state, method, score, size, date",
    "show": "say what a run is: network, data, method, seeds, scores, cost, how it ended, what can be done with it",
    "rm": "delete runs",
    "jobs": "list the runs that are running or queued, and how far they are",
    "check-method": "try a method of your own on all that ftlab relies on",
    "init": "write a small project of your own: experiment, method, metric, tests, data",
    "completion": "have a shell complete verbs, options and runs",
    "import-config": "turn a configuration of TRL, LLaMA-Factory or Axolotl into one of ftlab's",
    "schema": "print every configuration key as a JSON Schema, by which editors complete and check YAML",
}

ON_SLURM = """With --on slurm, or --on slurm:PROFILE, a job is submitted that trains, and is queued again until it has
come to its end; the profile is that of slurm/profiles/, by default default.yaml. The same command again finds the job.
--dry-run prints the script and submits nothing; --after JOB has the job wait for another's good end"""

HARNESS = """With --harness TASK,… the run is judged by tasks of lm-evaluation-harness instead, or by YAML files that
describe some; the package comes with pip install 'ftlab[harness]'"""

SCORES = "With --json the scores are printed for programs"

BESIDE = {
    "fit": ("--profile", "--on", "--dry-run", "--after"),
    "validate": ("--json",),
    "test": ("--json", "--harness"),
}
"""Options that say what is done with an experiment, beside those that describe it."""

_MODULES = {
    "prepare": "ftlab.cli.prepare",
    "plan": "ftlab.cli.plan",
    "generate": "ftlab.cli.generate",
    "export": "ftlab.cli.export",
    "serve": "ftlab.cli.serve",
    "sweep": "ftlab.cli.sweep",
    "compare": "ftlab.cli.compare",
    "diff": "ftlab.cli.diff",
    "ls": "ftlab.cli.ls",
    "show": "ftlab.cli.show",
    "rm": "ftlab.cli.rm",
    "jobs": "ftlab.cli.jobs",
    "check-method": "ftlab.cli.check_method",
    "init": "ftlab.cli.init",
    "completion": "ftlab.cli.completion",
    "import-config": "ftlab.cli.importing",
    "schema": "ftlab.cli.schema",
}

_USAGE = """usage: ftlab [-h] [--version] [-v] VERB ...

Fine-tuning of language models with numbers one can trust: full, LoRA, QLoRA and your own method.

verbs:
{verbs}

ftlab VERB --help lists the options of a verb; -v, before the verb or after it, shows the whole trace of an error."""
VERBOSE = ("-v", "--verbose")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0, 1 where it could not be done, 2 for a command that makes no sense, 75
    where a signal has stopped training and the same command goes on, 130 where the user has, 141 where nobody reads on
    what it prints."""
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _unread()


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = arguments[:1] != ["completion"] and any(word in VERBOSE for word in arguments)
    if verbose:
        arguments = [word for word in arguments if word not in VERBOSE]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE.format(verbs="\n".join(f"  {verb:<14}{does}" for verb, does in VERBS.items())))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"ftlab {__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        return _refuse(f"unknown verb {verb!r}: the verbs are {', '.join(VERBS)}", 2)
    try:
        with _known_for_an_interrupt():
            quiet.silence()
            sys.path.insert(0, "")  # a user's own methods and metrics lie where the command is given
            if argv is None and verb == "fit":
                _say_what_begins(rest)
            module = _imported(verb, rest, argv is None)
        return module.run(verb, rest)
    except UserError as error:
        if verbose:
            raise
        return _refuse(str(error), 1)
    except Preempted as stop:
        return _refuse(str(stop), Preempted.EXIT_CODE)
    except KeyboardInterrupt as stop:
        return _stopped(str(stop))
    except SystemExit as stop:  # after --help and --print_config
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning has answered it
            return _stopped()
        if isinstance(stop.__context__, BrokenPipeError):  # so has rich
            return _unread()
        return stop.code if isinstance(stop.code, int) else 0


def _stopped(sentence: str = "") -> int:
    """Says that it was the user; nothing is imported, which an import that was broken off might not let be."""
    print(f"ftlab: {sentence or 'stopped by the user'}", file=sys.stderr)
    return 130


def _unread() -> int:
    """Ends as quietly as other programs whose output nobody reads on, such as `head`'s, and with their code: 141."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try once more at its end
    return 128 + signal.SIGPIPE


def _say_what_begins(arguments: Sequence[str]) -> None:
    """Says at once what is to be trained: some seconds go by until all that it takes is imported."""
    from ftlab.cli.compose import config_files

    other = {"--help", "-h", "--print_config", "--on"} & {word.partition("=")[0] for word in arguments}
    first = all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    if first and not other:
        files = ", ".join(map(str, config_files(arguments))) or "what the command line says"
        print(f"ftlab: fit {files}: importing torch and Lightning", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _known_for_an_interrupt() -> Iterator[None]:
    """Has an import that Ctrl-C breaks off end as that, whatever error a half-made module makes of it."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    alone = threading.current_thread() is threading.main_thread()  # no other may listen to signals
    if not alone or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if asked:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _imported(verb: str, arguments: Sequence[str], alone: bool) -> Any:
    """The module of a verb, with all that it imports: the collector, which would go through it over and over as it
    grows, rests meanwhile. Where the process is there for the verb `alone`, it leaves it alone afterwards, too."""
    module = _MODULES.get(verb, "ftlab.cli.verbs")
    if module in sys.modules:  # what this process has made since may be garbage
        return sys.modules[module]
    on = gc.isenabled()
    gc.disable()
    try:
        if verb == "fit":
            importlib.import_module("ftlab.cli.wandb").import_first(arguments)
        return importlib.import_module(module)
    finally:
        if alone:
            gc.freeze()
        if on:
            gc.enable()


def _refuse(sentence: str, code: int) -> int:
    """Says why, unless another process does, and returns the code."""
    from ftlab.runs.redaction import redacted

    if sentence:
        print(f"ftlab: {redacted(sentence)}", file=sys.stderr)  # it may quote the command
    return code
