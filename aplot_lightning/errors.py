"""Errors that the command line reports as one line instead of a traceback."""


class UserError(Exception):
    """A mistake in the user's input: the command line prints one line on stderr and exits with code 2.

    The message says what is wrong, where (path and line, or key), and how to fix it.
    """


class NotFiniteError(ValueError):
    """A NaN or infinite value in a computation: training stops and reports the step and the likely causes."""


class RunError(Exception):
    """A run that cannot continue, for example after a loss that is not finite: one line on stderr, exit code 1."""


class LostRankError(RunError):
    """Another rank of the run died or does not answer: not the fault of this rank, nor of the run's config."""
