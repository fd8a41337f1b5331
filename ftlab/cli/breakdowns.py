"""What breaks under a command, through no fault of what was asked for: memory, disk, other processes."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from ftlab.cli.open_choices import evenly
from ftlab.errors import UserError, out_of_memory

if TYPE_CHECKING:
    from ftlab.cli.experiment import Experiment

_ASKED = re.compile(r"(?:tried to|unable to) allocate ([\d.]+) ?([KMGTPE]iB|bytes)", re.IGNORECASE)
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
_PEER = re.compile(r"gloo|nccl|connection (?:closed|reset)|socket|TCPStore|broken pipe", re.IGNORECASE)
_OS_ERROR = re.compile(r"os error (\d+)")  # as libraries in Rust say it
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM}

_LOST = (dist.DistNetworkError, dist.DistStoreError) if dist.is_available() else ()


@dataclass(frozen=True)
class Situation:
    """What a command was at when something broke.

    Args:
        doing: Such as "training, at step 12".
        shape: Rows and tokens of each of the batch under way; None where there is none.
        less_memory: What takes less memory, each a part of a sentence.
        next: What stands, and what the same command does.
        with_less: The same, with what takes less memory.
    """

    doing: str
    shape: tuple[int, int] | None
    less_memory: Sequence[str]
    next: str
    with_less: str


def situation_of(experiment: Experiment, verb: str) -> Situation:
    """What an experiment is at."""
    at, data, config = experiment.whereabouts, experiment.datamodule, experiment.config
    if not at.doing:
        less = ["take model.network.dtype bfloat16", "a method over a base in few bits, such as QLoRA"]
    elif not at.doing.startswith("training"):
        less = [f"lower data.eval_batch_size ({data.eval_batch_size})"]
        less += [f"model.decoding.max_new_tokens ({experiment.model.decoding.max_new_tokens})"] if at.generates else []
    else:
        by = "batch_size" if data.batch_tokens is None else "batch_tokens"
        fits = _what_fits(experiment)
        again = config.model.gradient_checkpointing or any("gradient_checkpointing" in way for way in fits)
        less = [
            *fits,
            f"lower data.{by} ({getattr(data, by)}) and raise trainer.accumulate_grad_batches "
            f"({config.trainer.accumulate_grad_batches}) by as much",
            "lower data.max_length",
            *([] if again else ["set model.gradient_checkpointing to true"]),
        ]
    then = with_less = "the run is as it was"
    if verb == "fit":
        then, with_less = experiment.run.next_start(), experiment.run.next_start(changed=True)
    return Situation(at.doing or "the opening of data and network", at.shape, less, then, with_less)


def _what_fits(experiment: Experiment) -> list[str]:
    """What ftlab plan finds room for, of rows as long as may be; nothing where it finds room for what there was."""
    from ftlab.cli.plan import other_ways
    from ftlab.cli.planned import device_of_this_machine, processes_of, step_of
    from ftlab.planning import plan

    shape, data = experiment.whereabouts.shape, experiment.datamodule
    if shape is None or data.batch_tokens is not None:
        return []
    rows, length = shape
    try:
        device = device_of_this_machine(str(experiment.config.trainer.accelerator))
        step = step_of(experiment, device.is_gpu, rows=rows, length=max(length, data.encoding.max_length or 0))
        found = plan(step, device, processes_of(experiment))
        if found.fits:
            return []
        of_step = data.batch_size * experiment.config.trainer.accumulate_grad_batches
        pieces = f"data.micro_batch {evenly(of_step, found.largest)}" if found.largest else ""
        ways = [pieces] if pieces else []
        ways += [told for told, fits in other_ways(found, experiment.model.compiled) if fits]
    except Exception:  # the one error that is to be told is that memory is out
        return []
    return [f"give {' or '.join(ways)}, which fits {device.name} by plan"] if ways else []


@contextlib.contextmanager
def breakdowns(situation: Callable[[], Situation]) -> Iterator[None]:
    """Has what breaks in the block be told in one sentence.

    Raises:
        UserError: Memory or disk were full, or a process of this run has ended before its time.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = _told(error, situation)
        if told is None:
            raise
        raise told from error


def _told(error: Exception, situation: Callable[[], Situation]) -> UserError | None:
    if out_of_memory(error):
        return UserError(_memory(error, situation()))
    if worker := _killed_worker(error):
        return UserError(
            f"data.workers: {worker} of those that put batches together was killed, most likely for "
            f"want of memory, in {situation().doing}: give fewer data.workers; {situation().next}"
        )
    if (number := _of_the_disk(error)) is not None:
        # what was being told when the disk, again, was in the way
        earlier = next((each for each in _before(error) if isinstance(each, UserError)), None)
        return earlier or UserError(
            f"{getattr(error, 'filename', None) or 'a file'} cannot be written ({os.strerror(number)}) in "
            f"{situation().doing}: make room or mend the disk; {situation().next}"
        )
    if isinstance(error, _LOST) or (
        isinstance(error, RuntimeError) and dist.is_available() and dist.is_initialized() and _PEER.search(str(error))
    ):
        return UserError(
            f"another process of this run has ended, or cannot be reached, in {situation().doing}: see what it said; "
            f"{situation().next}"
        )
    return None


def _killed_worker(error: Exception) -> str | None:
    """Which process that puts batches together has ended; torch does not name it where it was just handing one over."""
    if named := _WORKER.search(str(error)):
        return f"process {named[1].strip()}"
    if not isinstance(error, (ConnectionError, EOFError)):
        return None
    files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    return "one" if torch.utils.data.dataloader.__file__ in files else None


def _memory(error: Exception, situation: Situation) -> str:
    which = "GPU memory" if isinstance(error, torch.OutOfMemoryError) else "memory"
    asked = _ASKED.search(str(error))
    more = f": {_in_units(asked[1], asked[2])} more were asked for" if asked else ""
    batch = f", on a batch of {situation.shape[0]} rows of {situation.shape[1]} tokens" if situation.shape else ""
    less = ", or ".join(situation.less_memory)
    return f"out of {which} in {situation.doing}{more}{batch}; {less}; {situation.with_less}"


def _in_units(number: str, unit: str) -> str:
    return f"{number} {unit}" if unit != "bytes" else f"{float(number) / 2**30:,.2f} GiB"


def _of_the_disk(error: Exception) -> int | None:
    """The number of the error where a file could not be written."""
    if isinstance(error, OSError):
        said = error.errno
    else:
        found = _OS_ERROR.search(str(error))
        said = int(found[1]) if found else None
    return said if said in _DISK else None


def _before(error: BaseException) -> Iterator[BaseException]:
    while (earlier := error.__cause__ or error.__context__) is not None:
        yield earlier
        error = earlier
