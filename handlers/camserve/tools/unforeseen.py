"""What no tool foresaw: one line for who ran it, and the traceback for who asks for it."""

from __future__ import annotations

import os
import sys
import traceback

from camserve.tools.console import fail
from camserve.tools.fresh.worker import words

DEBUG = "CAMSERVE_DEBUG"
LONGEST = 400
"""Characters of an exception's message that are repeated: torch lists every tensor that does not fit."""


def unforeseen(error: Exception) -> int:
    """Prints an exception in one line, its traceback before it where `CAMSERVE_DEBUG` is set; the exit status to return."""
    text = words(error)
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    if os.environ.get(DEBUG):
        traceback.print_exception(error, file=sys.stderr)
        return fail(text)
    return fail(f"{text} ({DEBUG}=1 shows where)")
