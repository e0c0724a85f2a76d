"""Reads from TorchServe's log why a worker could not load its model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

_LINE = re.compile(r"\S+ \[\w+ *\] (?P<thread>\S+) (?P<logger>\S+) - (?P<message>.*)")
_THREAD = re.compile(r"W-\d+-(?P<model>.+)_[^_]*-std(?:out|err)")
_TRACEBACK = "Traceback (most recent call last):"
_ENDS = (
    "Backend worker process died.",
    "During handling of the above",
    "The above exception was",
    "s_name_part0=",
    _TRACEBACK,
)
# What TorchServe makes of the cause: the retry under its own handlers' names, and the code it sent before it ended.
_MISLEADING = re.compile(r"ModuleNotFoundError: No module named 'ts\.torch_handler\.|RuntimeError: 50[07] - ")
_LATE_THREAD = re.compile(r"W-\d+-(?P<model>.+)_[^_]*")
_LATE = "Backend worker startup time out"
_OURS = re.compile(r"^camserve\.(?:core\.)?errors\.ConfigError: ")


def find_reason(lines: Iterable[str], model: str) -> str | None:
    """Finds the exception that stopped the load of `model`, on one line; None when the log holds none.

    Of several, the last one counts, except those by which TorchServe hides the cause: after an import error it tries
    the handler's name among its own handlers, and reports that failure last.
    """
    exceptions = list(_exceptions(_messages(lines, model)))
    causes = [text for text in exceptions if not _MISLEADING.match(text)] or exceptions
    return _OURS.sub("", causes[-1]) if causes else None


def find_late_workers(lines: Iterable[str]) -> list[str]:
    """Finds the models of whose workers TorchServe ended one since it had not begun within two minutes, an entry each time.

    No setting changes that time, and TorchServe starts another: on a busy machine this says nothing about the model.
    """
    parsed = [_parse(line) for line in lines]
    found = [_LATE_THREAD.fullmatch(thread) for thread, message in parsed if _LATE in message]
    return [match["model"] for match in found if match]


def _messages(lines: Iterable[str], model: str) -> Iterator[str]:
    """Yields what workers of `model` wrote; lines of a log that does not name the model count for all."""
    for line in lines:
        thread, message = _parse(line)
        worker = _THREAD.fullmatch(thread)
        if not thread or (worker and worker["model"] == model):
            yield message


def _parse(line: str) -> tuple[str, str]:
    """Reads the thread and the message of one line of the log: `log4j2.xml`'s, or JSON with `thread` and `message`."""
    match = _LINE.match(line)
    if match:
        return match["thread"], match["message"]
    if line.startswith("{"):
        try:
            record = json.loads(line)
            return str(record.get("thread", "")), str(record.get("message", ""))
        except ValueError:
            pass
    return "", line


def _exceptions(messages: Iterable[str]) -> Iterator[str]:
    """Yields the exceptions of all tracebacks, oldest first, each with the lines of its message, joined."""
    inside, parts = False, list[str]()
    for message in messages:
        if parts and (not message.strip() or message.startswith(_ENDS)):
            yield _join(parts)
            inside, parts = False, []
        if message == _TRACEBACK:
            inside = True
        elif inside and (parts or (message and not message[0].isspace())):
            parts.append(message)
    if parts:
        yield _join(parts)


def _join(parts: list[str], limit: int = 800) -> str:
    text = " ".join(" ".join(parts).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
