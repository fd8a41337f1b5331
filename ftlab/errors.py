"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user asked for cannot be done: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence alone and exits with 1; a notebook shows it as any exception.
    """


def one_line(error: Exception) -> str:
    """The message of an error, without its line breaks and last full stop, to stand within a sentence."""
    return " ".join(str(error).split()).rstrip(".")
