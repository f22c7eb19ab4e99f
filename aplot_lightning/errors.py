"""The two kinds of failure that a user reads as one line instead of a traceback."""


class UserError(Exception):
    """A mistake in what the user gave: the command line turns it into one line on stderr and exit code 2.

    The message says what is wrong, where (path and line, or key), and how to mend it.
    """


class NotFiniteError(ValueError):
    """A NaN or infinite value met in computing: training stops with the step and the likely causes."""


class RunError(Exception):
    """A run that cannot go on (for example a loss that is not finite): one line on stderr and exit code 1."""
