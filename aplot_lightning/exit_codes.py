"""Exit codes of the command line."""

from __future__ import annotations

USER_MISTAKE = 2  # something the user can fix: one line, no traceback
FAILURE = 1
INTERRUPTED = 130  # ctrl-C
TERMINATED = 143  # SIGTERM
