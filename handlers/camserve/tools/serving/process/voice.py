"""How `serve` speaks: in words for people, or as one JSON object a line, like its log then, for a collector of logs."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

from rich.console import Console

from camserve.tools.console import Progress, fail, unfailing


class Voice:
    """Notes and errors on standard error, `ready URL` on standard output."""

    log_config: Path | None = None  # the server's own

    def __init__(self) -> None:
        self._progress = Progress(Console(file=unfailing(sys.stderr), highlight=False, soft_wrap=True))

    def note(self, text: str) -> None:
        """Says what is being done."""
        self._progress.note(text)

    def warn(self, text: str) -> None:
        """Says what may do harm later."""
        self.note(f"warning: {text}")

    def step(self, text: str) -> AbstractContextManager[None]:
        """Shows that `text` is being done."""
        return self._progress.step(text)

    def ready(self, url: str) -> None:
        """Says that every worker has loaded its model."""
        say(f"ready {url}")

    def fail(self, error: object) -> int:
        """Says what went wrong; the exit status."""
        return fail(error)

    def line(self, text: str) -> str:
        """A line of the server's output, as it is logged."""
        return text


class JsonVoice(Voice):
    """Everything on standard output, an object a line: `time`, `level`, `logger`, `message`, and what the event has besides."""

    log_config = Path(__file__).resolve().parents[1] / "configuration" / "log4j2-json.xml"

    def note(self, text: str) -> None:
        """An INFO."""
        self._say("INFO", text)

    def warn(self, text: str) -> None:
        """A WARN."""
        self._say("WARN", text)

    def ready(self, url: str) -> None:
        """An INFO with the URL in a field of its own."""
        self._say("INFO", "ready", url=url)

    def fail(self, error: object) -> int:
        """An ERROR."""
        self._say("ERROR", str(error))
        return 1

    def line(self, text: str) -> str:
        """TorchServe's objects as they are; what Java or a worker prints past the log, wrapped."""
        return text if is_object(text) else record("WARN", "stdout", text)

    def _say(self, level: str, message: str, **more: str) -> None:
        say(record(level, "camserve.serve", message, **more))


def voice(form: str) -> Voice:
    """The voice for `text` or `json`."""
    kinds: dict[str, Callable[[], Voice]] = {"text": Voice, "json": JsonVoice}
    return kinds[form]()


def say(line: str, stream: TextIO | None = None) -> None:
    """Prints a line (on standard output) in one piece, whatever other threads print, and whether or not there is room for it."""
    unfailing(stream or sys.stdout).write(f"{line}\n")


def record(level: str, logger: str, message: str, **more: str) -> str:
    """One event as JSON on one line, with the time in UTC."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": now, "level": level, "logger": logger, "message": message} | more)


def is_object(text: str) -> bool:
    """Whether a line is a JSON object."""
    try:
        return text.startswith("{") and isinstance(json.loads(text), dict)
    except ValueError:
        return False
