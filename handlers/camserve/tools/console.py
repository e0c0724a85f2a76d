"""What the tools print: steps while they work, and errors that a user can act on."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TextIO, cast

from rich.console import Console

from camserve.core.text import in_one_line

DEBUG = "CAMSERVE_DEBUG"
LONGEST = 400
"""Characters of an exception's message that are repeated: torch lists every tensor that does not fit."""


class ToolError(Exception):
    """A tool cannot do what it was asked; the message says what is wrong and what would do."""


class Progress:
    """Steps, one line each when done; on anything but a terminal only notes are printed."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Shows that `text` is being done, and when it is done, in how many seconds."""
        if not self.console.is_terminal:
            yield
            return
        start = time.perf_counter()
        with self.console.status(f"{text} ..."):
            yield
        self.console.print(f"[green]✓[/] {text} [dim]({time.perf_counter() - start:.1f} s)[/]")

    def note(self, text: str) -> None:
        """Says something that was decided or found; `text` is printed as it is."""
        self.console.print(text, markup=False)


class _Unfailing:
    """What `unfailing` gives."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        """Writes all of `text` that can be written."""
        try:
            number = self._stream.fileno()
        except (OSError, ValueError):  # no file but a test's memory
            return self._stream.write(text)
        rest = text.encode(self.encoding or "utf-8", "replace")
        with suppress(OSError):
            while rest:
                rest = rest[os.write(number, rest) :]
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""

    def isatty(self) -> bool:
        """Whether somebody looks on."""
        return self._stream.isatty()


def unfailing(stream: TextIO) -> IO[str]:
    """A standard stream for what must go on when its disk is full or its reader is gone: such text is lost, and no more.

    Nothing is kept back for later, because Python would try it again at the end, and make the exit status 120 of it.
    """
    return cast(IO[str], _Unfailing(stream))


def command_of(name: str) -> str:
    """How a command is called here: `scripts/serve.py` in the repository, `camserve serve` where the package is installed."""
    script = Path(__file__).resolve().parents[3] / "scripts" / f"{name}.py"
    return f"scripts/{name}.py" if script.is_file() else f"camserve {name}"


def fail(message: object) -> int:
    """Prints an error to standard error; the exit status to return."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {message}", style="red", markup=False)
    return 1


def report_unforeseen(error: Exception) -> int:
    """Prints an exception in one line, its traceback before it where `CAMSERVE_DEBUG` is set; the exit status to return."""
    text = in_one_line(error)
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    if os.environ.get(DEBUG):
        traceback.print_exception(error, file=sys.stderr)
        return fail(text)
    return fail(f"{text} ({DEBUG}=1 shows where)")
