"""The log of `serve`: notes for people on standard error, or one JSON object a line on standard output, for a collector of logs.

All of it is written in one piece a line, past Python's buffers, so that threads do not mix up their lines, and a full disk or a
closed pipe stops nothing.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from camserve.tools.console import unfailing

PREFIXES = {"WARNING": "warning: ", "ERROR": "error: "}
LEVEL = "DEBUG|INFO|WARNING|ERROR|CRITICAL"
OWN = re.compile(
    rf"(?s)(?:(?P<level>{LEVEL}) (?P<logger>(?:camserve|uvicorn)[\w.]*) (?P<message>.*)"
    rf"|(?:\[\S+-\w+\] (?:(?P<second>{LEVEL}) )?.*))"
)
"""A line of a host of ours: its own, or a worker's behind the model's name and the worker's number."""
LOG4J_LEVELS = {"WARNING": "WARN"}
"""As TorchServe's log spells levels, where Python's differs."""


class TextFormatter(logging.Formatter):
    """Says what is a warning and what an error, the latter in red on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats one event."""
        text = PREFIXES.get(record.levelname, "") + record.getMessage()
        red = record.levelno >= logging.ERROR and sys.stderr.isatty() and "NO_COLOR" not in os.environ
        return f"\x1b[31m{text}\x1b[0m" if red else text


class JsonFormatter(logging.Formatter):
    """Writes an event as JSON: `time` in UTC, `level`, `logger`, `message`, and the `fields` that it has besides."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats one event."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc).isoformat(timespec="milliseconds")
        event = {
            "time": time.replace("+00:00", "Z"),
            "level": LOG4J_LEVELS.get(record.levelname, record.levelname),
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(event | getattr(record, "fields", {}))


def open_log(form: str) -> logging.Logger:
    """Makes the log of one server, as `text` or `json`."""
    handler = logging.StreamHandler(unfailing(sys.stdout if form == "json" else sys.stderr))
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    log = logging.Logger("camserve.serve")
    log.addHandler(handler)
    return log


def as_json(line: str) -> str:
    """Leaves TorchServe's objects as they are, reads our own host's lines, and wraps what is printed past the log."""
    if _is_object(line):
        return line
    own = OWN.fullmatch(line)
    if own:
        level = getattr(logging, own["level"] or own["second"] or "INFO")
        record = logging.LogRecord(own["logger"] or "MODEL_LOG", level, "", 0, own["message"] or line, None, None)
        return JsonFormatter().format(record)
    return JsonFormatter().format(logging.LogRecord("stdout", logging.WARNING, "", 0, line, None, None))


def _is_object(line: str) -> bool:
    try:
        return line.startswith("{") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


class LineHandler(logging.Handler):
    """Hands each event on as one line: level, logger, message; an exception's lines after it."""

    def __init__(self, take: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        """Hands on one event."""
        for line in self.format(record).splitlines():
            self._take(line)


def write_line(line: str, stream: TextIO | None = None) -> None:
    """Prints a line (on standard output) in one piece, whether or not there is room for it."""
    unfailing(stream or sys.stdout).write(f"{line}\n")


class _LogFile(RotatingFileHandler):
    """Drops lines that find no room, and goes on when there is some again."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 logging's own name
        """Says nothing: a report for each line would fill the next disk."""


def open_log_file(path: Path) -> Callable[[str], None]:
    """Returns what writes lines to a file that is rolled over at 10 MB and kept three times; lines without room are dropped."""
    handler = _LogFile(path, maxBytes=10_000_000, backupCount=3, encoding="utf-8", delay=True)
    return lambda line: handler.emit(logging.makeLogRecord({"msg": line}))
