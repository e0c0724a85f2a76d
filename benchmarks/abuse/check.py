"""What an answer to a bad request must be, and what may be logged meanwhile."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from typing import NoReturn

from PIL import Image

from benchmarks.abuse.case import Case
from camserve.core.errors import KINDS
from camserve.tools.archive.archive import Response

TELLTALE = re.compile(r"(?<![\w./])/(?:[a-z_]+/)+[a-z_]+|\.py\b|0x[0-9a-f]{6,}|Traceback|object at ")
"""What shows the inside of the server in a message: paths, tracebacks, addresses."""


def complain(sent: Case, answer: Response) -> str:
    """Say what is wrong with an answer; "" for nothing."""
    if answer.status not in sent.allowed:
        return f"status {answer.status}: {answer.body[:200]!r}"
    if not all(value.isascii() and value.isprintable() for value in answer.headers.values()):
        return f"headers {dict(answer.headers)}"
    if answer.status == 200:
        return _complain_of_good(sent, answer)
    error = json.loads(answer.body)
    if list(error) != ["code", "type", "message"] or error["code"] != answer.status:
        return f"not the shape of an error: {answer.body[:200]!r}"
    if error["type"] not in (sent.kinds or KINDS[answer.status]):
        return f"type {error['type']}: {error['message']}"
    message = error["message"]
    bad = not message.isprintable() or len(message) > 2000 or TELLTALE.search(message)
    return f"message {message!r}" if bad else ""


def _complain_of_good(sent: Case, answer: Response) -> str:
    """Say what is wrong with a 200: it must be strict JSON, about the picture that Pillow sees too."""
    if answer.content_type != "application/json":
        return ""
    found = json.loads(answer.body, parse_constant=_refuse)
    image = found.get("image") if isinstance(found, dict) else None
    if sent.file is None or not image:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(sent.file)) as picture:
            picture.load()
            fits = sorted(picture.size) == sorted((image["width"], image["height"]))
            return "" if fits else f"the picture is {picture.size}, the answer says {image}"


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} in JSON")


class Faults(logging.Handler):
    """Keeps what is logged as a fault, and what would make lines of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Looks at one record."""
        if record.levelno >= logging.ERROR or not record.getMessage().isprintable():
            self.found.append(f"logged: {record.getMessage()!r} {record.exc_info and record.exc_info[1]!r}")


@contextlib.contextmanager
def watch_log() -> Iterator[list[str]]:
    """Collect the faults that camserve logs meanwhile. TorchServe's own codec is kept quiet, and warnings are errors."""
    faults, ours, root = Faults(), logging.getLogger("camserve"), logging.getLogger()
    level = root.level
    ours.addHandler(faults)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    root.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield faults.found
    finally:
        ours.removeHandler(faults)
        ours.setLevel(logging.NOTSET)
        ours.propagate = True
        root.setLevel(level)
