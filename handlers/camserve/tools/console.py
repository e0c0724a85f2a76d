"""What the tools print: steps while they work, and errors that a user can act on."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, TextIO, cast

from camserve.core.errors import MissingPackageError
from camserve.core.text import in_one_line

if TYPE_CHECKING:  # the client does without rich
    from rich.console import Console

TRUST = (
    "let the archive's own code run, with your rights: its model's file, its handler, a program that it holds. Without it only "
    "archives are opened whose code is camserve's own"
)
"""What the flag `--trust` means, in each tool that loads an archive."""

DEBUG = "CAMSERVE_DEBUG"
LONGEST = 400
"""Characters of an exception's message that are repeated: torch lists every tensor that does not fit."""


class ToolError(Exception):
    """A tool cannot do what it was asked; the message says what is wrong and what would do."""


class Progress:
    """Prints steps, one line each when done; on anything but a terminal only notes."""

    def __init__(self, console: Console | None = None) -> None:
        self._given = console

    @cached_property
    def console(self) -> Console:
        """The console that all is printed to."""
        return self._given or _console()

    @contextmanager
    def step(self, text: str) -> Iterator[Callable[[str], None]]:
        """Shows that `text` is being done, and afterwards how many seconds it took; what it yields shows a part of the work."""
        if not self.console.is_terminal:
            yield lambda _part: None
            return
        start = time.perf_counter()
        with self.console.status(f"{text} ...") as status:
            yield lambda part: status.update(f"{text} ({time.perf_counter() - start:.0f} s): {make_printable(part)} ...")
        self.console.print(f"[green]✓[/] {text} [dim]({time.perf_counter() - start:.1f} s)[/]")

    def note(self, text: str) -> None:
        """Prints what was decided or found, `text` as it is, except what is no text to a terminal."""
        self.console.print(make_printable(text), markup=False)


class _Unfailing:
    """A stream that loses what cannot be written: see `unfailing`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        """Writes all of `text` that can be written."""
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):  # no file but a test's memory
            return self._stream.write(text)
        rest = text.encode(self.encoding or "utf-8", "replace")
        with suppress(OSError):
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        return len(text)

    def flush(self) -> None:
        """Does nothing: nothing is buffered."""

    def isatty(self) -> bool:
        """Returns whether this is a terminal."""
        return self._stream.isatty()


def unfailing(stream: TextIO) -> IO[str]:
    """Wraps a standard stream so that writing to it never fails: where the disk is full or the reader gone, text is lost.

    Nothing is buffered: Python would try to write it again at exit, fail, and make the exit status 120.
    """
    return cast(IO[str], _Unfailing(stream))


def make_printable(text: str) -> str:
    """Escapes what a terminal would obey or could not show: a server's message and a file's name may hold anything."""
    kept = (each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode() for each in text)
    return "".join(kept)


def command_of(name: str) -> str:
    """Returns how a command is called here: `scripts/serve.py` in the repository, else `camserve serve`."""
    script = Path(__file__).resolve().parents[3] / "scripts" / f"{name}.py"
    return f"scripts/{name}.py" if script.is_file() else f"camserve {name}"


def name_pip(text: str) -> str:
    """Names this Python's own pip in a message that says `pip install`, where the shell's is another's.

    A clone's scripts go on in its `.venv`, which nobody has activated.
    """
    found, own = shutil.which("pip"), Path(sys.executable)
    if found and Path(found).parent == own.parent:
        return text
    here = Path.cwd()
    python = shlex.quote(str(own.relative_to(here) if own.is_relative_to(here) else own))
    return re.sub(r"(?<!-m )\bpip install\b", lambda _: f"{python} -m pip install", text)


def fail(message: object) -> int:
    """Prints an error to standard error; returns the exit status."""
    text = make_printable(name_pip(str(message)))
    try:
        _console(stderr=True).print(f"error: {text}", style="red", markup=False)
    except ModuleNotFoundError:
        print(f"error: {text}", file=sys.stderr)
    return 1


def report_unforeseen(error: Exception) -> int:
    """Prints an exception in one line, after its traceback where `CAMSERVE_DEBUG` is set; returns the exit status.

    Of a package that is missing, the message alone.
    """
    if isinstance(error, MissingPackageError):
        return fail(error)
    text = in_one_line(error)
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    if os.environ.get(DEBUG):
        traceback.print_exception(error, file=sys.stderr)
        return fail(text)
    return fail(f"{text} ({DEBUG}=1 shows where)")


def _console(stderr: bool = False) -> Console:
    from rich.console import Console  # noqa: PLC0415 the client does without it

    return Console(stderr=stderr, highlight=False, soft_wrap=True)
