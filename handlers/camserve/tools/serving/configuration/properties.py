"""Reads a properties file as Java does: what is read otherwise here would be checked for one value and served with another."""

from __future__ import annotations

import re
from collections.abc import Iterator

BLANKS = " \t\f"
_LINE_END = re.compile(r"\r\n|\r|\n")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def parse_properties(text: str) -> dict[str, str]:
    r"""Reads `key=value`, `key: value` and `key value`, with comments, continued lines and escapes; the last of a key counts.

    Source: `java.util.Properties.load(Reader)`. Blanks behind a value belong to it.

    Args:
        text: the file, decoded as Latin-1.

    Raises:
        ValueError: a `\u` that four hexadecimal digits do not follow, at which Java fails too.
    """
    return dict(_split(line) for line in _read_lines(text))


def _read_lines(text: str) -> Iterator[str]:
    """Yields the logical lines: without comments and blank ones, each with those that continue it."""
    line, continued = "", False
    for natural in _LINE_END.split(text):
        part = natural.lstrip(BLANKS)
        if not continued and (not part or part[0] in "#!"):
            continue
        backslashes = len(part) - len(part.rstrip("\\"))
        line += part[:-1] if backslashes % 2 else part
        continued = bool(backslashes % 2 and line)  # what continues nothing begins anew, and may be a comment
        if line and not continued:
            yield line
            line = ""
    if line:
        yield line


def _split(line: str) -> tuple[str, str]:
    """Splits a line at the first blank, `=` or `:` that is not escaped; around one of these signs there may be blanks."""
    at = 0
    while at < len(line) and line[at] not in f"{BLANKS}=:":
        at += 2 if line[at] == "\\" else 1
    value = line[at:].lstrip(BLANKS)
    if value[:1] in ("=", ":"):
        value = value[1:].lstrip(BLANKS)
    return _unescape(line[:at]), _unescape(value)


def _unescape(text: str) -> str:
    def replace(found: re.Match[str]) -> str:
        code = found[1]
        if code == "u":
            raise ValueError(f"\\u without four hexadecimal digits in {text[:60]!r}")
        return chr(int(code[1:], 16)) if len(code) == 5 else _CONTROLS.get(code, code)

    return _ESCAPE.sub(replace, text)
