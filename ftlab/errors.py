"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user asked for cannot be done: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence alone and exits with 1; a notebook shows it as any exception.
    """
