"""A bad request, in the forms in which requests are sent, and what may answer it."""

from __future__ import annotations

import base64
import io
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ts.protocol import otf_message_handler

from camserve.tools.archive.archive import Row

OK, BAD, LARGE = 200, 400, 413
Draw = Callable[[random.Random], "Case"]


@dataclass(frozen=True)
class Case:
    """One request, and what may answer it.

    Attributes:
        allowed: statuses.
        kinds: types of its error; empty: all that the status has.
        file: the picture that a 200 must be about.
        raw: the body that a client sends, where the request is one.
    """

    row: Row
    allowed: tuple[int, ...]
    kinds: tuple[str, ...] = ()
    file: bytes | None = None
    raw: bytes | None = None


def received(body: bytes, content_type: str = "") -> Any:
    """A body as TorchServe's worker hands it on: parsed where the content type says JSON or text."""
    name, kind = b"body", content_type.encode()
    message = b"".join(struct.pack("!i", len(part)) + part for part in (name, kind, body))
    return otf_message_handler._retrieve_input_data(_Socket(message))["value"]


class _Socket:
    """What the worker reads from: one message."""

    def __init__(self, message: bytes) -> None:
        self._file = io.BytesIO(message)

    def recv(self, length: int) -> bytes:
        return self._file.read(length)


def sent(draw: random.Random, file: bytes, *statuses: int, **headers: str) -> Case:
    """A picture's file in one of the ways in which pictures are sent."""
    text = base64.b64encode(file).decode()
    ways: list[Callable[[], dict[str, Any]]] = [
        lambda: {"body": bytearray(file)},
        lambda: {"body": bytearray(file)},
        lambda: {"data": bytearray(file)},
        lambda: {"body": {"data": text}},
        lambda: {"body": {"instances": [text]}},
        lambda: {"body": received(text.encode(), "text/plain")},
    ]
    return Case(Row(draw.choice(ways)(), headers, explain=draw.random() < 0.7), statuses, file=file, raw=file)


def json_case(draw: random.Random, text: str, *statuses: int, explain: bool | None = None) -> Case:
    """A JSON body, with its content type or without; in either mode, unless `explain` says which."""
    kind = draw.choice(["application/json", ""])
    wanted = draw.random() < 0.7 if explain is None else explain
    raw = text.encode("utf-8", "replace")
    return Case(Row({"body": received(raw, kind)}, {"Content-Type": kind}, explain=wanted), statuses, raw=raw)
