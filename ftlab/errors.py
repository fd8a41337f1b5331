"""The one exception that a user is meant to read."""

import re


class UserError(Exception):
    """Something the user asked for cannot be done: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence alone and exits with 1; a notebook shows it as any exception.
    """


class Preempted(BaseException):
    """Training was stopped by a signal, in good order: the same command goes on. The command line exits with 75."""

    EXIT_CODE = 75
    """EX_TEMPFAIL of sysexits.h: a batch script that sees it puts the job back into the queue."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, on whatever device: torch says so in errors of several classes."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|_ALLOC_FAILED", re.IGNORECASE)


def one_line(error: Exception) -> str:
    """The message of an error, without its line breaks and last full stop, to stand within a sentence."""
    return " ".join(str(error).split()).rstrip(".")


def first_misfit(error: Exception) -> str:
    """The same of an error by which torch lists every tensor that does not fit: the first, and how many more."""
    misfits = str(error).splitlines()[1:]
    misfits = [line.strip().rstrip(".") for line in misfits if line.strip()]
    if not isinstance(error, RuntimeError) or len(misfits) < 2:
        return one_line(error)
    first = misfits[0] if len(misfits[0]) <= 200 else f"{misfits[0][:200]}…"
    return f"{first}, and {len(misfits) - 1:,} more"
