"""Reads a server's token from a file, never from the command line, where every user of the machine could see it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from camserve.tools.console import ToolError

WANTED = (
    "the server wants a token (TorchServe's default): give --token-file key_file.json, which lies in the folder where the server "
    "was started"
)
REFUSED = (
    "the server refuses the token that was given: it is another server's, or has expired. TorchServe's expire after an hour and "
    "at each start: key_file.json in the folder where the server was started holds the present ones, and "
    "GET /token?type=inference on the management address, with the key named API, writes new ones into it"
)


def open_token_file(path: Path | None) -> Callable[[], str] | None:
    """Returns a function that reads the present token from the file; None for no file.

    The file holds the token, or is TorchServe's own `key_file.json`. It is read each time, because TorchServe's tokens expire
    and are replaced there.

    Raises:
        ToolError: there is no token in the file now.
    """
    if path is None:
        return None
    _read(path)
    return lambda: _read(path)


def explain_refusal(status: int | None, kind: str, given: bool) -> str | None:
    """Says what to do about an answer that refuses the token, TorchServe's or a proxy's; None for any other answer.

    Args:
        kind: the error's type.
        given: whether a token was sent.
    """
    if status not in (401, 403) and kind != "InvalidKeyException":
        return None
    return REFUSED if given else WANTED


def _read(path: Path) -> str:
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ToolError(f"cannot read the token file {path} ({type(error).__name__})") from None
    if text.startswith("{"):
        try:
            text = str(json.loads(text)["inference"]["key"])
        except (ValueError, KeyError, TypeError):
            raise ToolError(f"{path} is neither a token nor TorchServe's key_file.json") from None
    if not text.isascii() or not text.isprintable() or " " in text or not text:
        raise ToolError(f"{path} does not hold a token: one word of printable ASCII")
    return text
