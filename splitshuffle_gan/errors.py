"""The one exception that a user's input can cause."""


class UserError(ValueError):
    """Bad input: the message names what was found, what was wanted and what to do.

    The command line prints it without a traceback and ends with exit code 1.
    """
