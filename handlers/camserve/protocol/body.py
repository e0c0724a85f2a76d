"""What a body or a field holds: JSON, base64, an encoded picture, a tensor."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.geometry import Rect
from camserve.core.messages import Encoded, Image
from camserve.core.text import show
from camserve.core.values import Values, parse_numbers
from camserve.pictures.files.formats import is_picture, sniff
from camserve.protocol.tensors import is_npy, read_npy, read_tensor

HOW_TO_SEND = """send the picture's bytes (curl -T cat.jpg), a form field (curl -F data=@cat.jpg), or JSON {"data": "<base64>"}"""

MAX_PARTS = 200_000
"""Lists, objects and keys of a body: 64 tensors of 1,000 rows each. 32 MiB of empty lists take seconds and 700 MB to parse."""

MAX_PARSED = 1 << 20
"""Bytes of JSON that a host parses by itself. What is longer is priced first: 32 MiB of numbers take two seconds."""

NUMBER, NUMBERS, LONGEST = 0.0005, 30.0, 25
"""Units of work of a number in JSON and of a megabyte of numbers (`pictures/bounds/work`), and a long number's characters."""

_STRUCTURE = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*([\[{])")
_WHITESPACE = b" \t\r\n\f\v"
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=" + _WHITESPACE
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def as_bytes(value: bytes | bytearray | str) -> bytes:
    """Encodes text in UTF-8; half a surrogate pair, which JSON can spell, becomes `?`."""
    return value.encode("utf-8", "replace") if isinstance(value, str) else bytes(value)


def starts_json(raw: bytes) -> bool:
    """Tells whether bytes start as a JSON object or list, which no picture format does."""
    return _STRUCTURE.match(raw) is not None


def has_too_many_parts(raw: bytes) -> bool:
    """Tells, without parsing it, whether JSON holds more than `MAX_PARTS` lists, objects and keys."""
    return raw.count(b"[") + raw.count(b"{") + raw.count(b":") > MAX_PARTS


def price_numbers(fields: Mapping[str, object]) -> float:
    """Return the units of work of reading the numbers that a request's fields hold as JSON text; base64 has no commas."""
    work = 0.0
    for value in fields.values():
        if isinstance(value, (bytes, bytearray, str)) and not is_picture(as_bytes(value[:64])):
            count = value.count(",") if isinstance(value, str) else value.count(b",")
            work += count * NUMBER + min(len(value), count * LONGEST) / 1e6 * NUMBERS
    return work


class SparingJson:
    """Stands in for `json` in TorchServe's codec, which parses a body before any handler sees it.

    A long body, or one of many lists and keys, is left as it came: eight of them would keep the worker busy for half a minute,
    or end it. Ours is parsed within the batch's allowance of work, or refused.
    """

    def __getattr__(self, name: str) -> Any:
        """Return everything else of `json`."""
        return getattr(json, name)

    def loads(self, text: str) -> Any:
        """Parse text, or return it in UTF-8 where it is long or has too many parts."""
        raw = text.encode("utf-8", "surrogatepass")
        return raw if len(raw) > MAX_PARSED or has_too_many_parts(raw) else json.loads(text)


def read_json(raw: bytes, place: str = "the body") -> Any:
    """Parses JSON in UTF-8, UTF-16 or UTF-32; of a repeated key the last value counts.

    NaN and Infinity pass here, as they pass the host's own parser: whatever reads a number refuses them.

    Raises:
        RequestError: 400 `InvalidJSON`, with the position; or for more than `MAX_PARTS` lists, objects and keys.
    """
    if has_too_many_parts(raw):
        raise _invalid_json(f"{place} is not accepted as JSON: expected at most {MAX_PARTS:,} lists, objects and keys, got more")
    try:
        return json.loads(raw)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno} (character {error.pos})"
        raise _invalid_json(f"{place} is not valid JSON: {error.msg} at {where}") from None
    except UnicodeDecodeError as error:
        raise _invalid_json(f"{place} is not valid JSON: byte {error.start} is not valid {error.encoding}") from None
    except RecursionError:
        raise _invalid_json(f"{place} is not accepted as JSON: its lists and objects are nested too deeply") from None
    except ValueError:
        raise _invalid_json(f"{place} is not accepted as JSON: a number in it has too many digits") from None


def name_repeated(name: str) -> RequestError:
    """Names the field that a form gives more than once: whoever sends two pictures, or two targets, expects two answers."""
    message = (
        f"the form gives the field {name[:40]!r} twice; one request takes one picture, and each option once: several pictures go "
        'as KServe\'s {"instances": [{"data": "<base64>"}, ...]}, several targets as target=[1,2]'
    )
    return RequestError(400, "NoImage" if name in ("data", "body") else "InvalidOption", message)


def _invalid_json(message: str) -> RequestError:
    return RequestError(400, "InvalidJSON", message)


def decode_base64(text: bytes) -> bytes | None:
    """Decodes base64 in the standard or the URL-safe alphabet; None where the text is none.

    Whitespace is skipped, and padding may be left out altogether.
    """
    compact = text.translate(_TO_STANDARD, _WHITESPACE)
    if b"=" not in compact:
        compact += b"=" * (-len(compact) % 4)
    try:
        return base64.b64decode(compact, validate=True)
    except ValueError:
        return None


def _stock_base64(text: bytes) -> bytes | None:
    """Decodes as the stock handler does, which drops what is not of the alphabet; None unless a picture comes out."""
    try:
        decoded = base64.b64decode(text)
    except ValueError:
        return None
    return decoded if is_picture(decoded) else None


def _read_text(text: bytes, place: str, stock: bool) -> Encoded:
    start = text[:256].lstrip(_WHITESPACE)
    if start.startswith(b"@"):
        message = f"{place}: {show(start)} is a file's name; curl sends the file itself with -F data=@cat.jpg"
        raise RequestError(400, "NoImage", message)
    encoded: bytes | None = text
    if start[:5].lower() == b"data:":
        head, comma, encoded = text.partition(b",")
        if not comma or not head.rstrip(_WHITESPACE).lower().endswith(b";base64"):
            encoded = None
    decoded = None if encoded is None else decode_base64(encoded)
    if decoded is None and stock:
        decoded = _stock_base64(text)
    if decoded is None:
        message = f"{place}: expected base64 or a data: URL of base64, got {show(start)}"
        raise RequestError(400, "InvalidBase64", message)
    return Encoded(_check_filled(decoded, place), f"after base64 decoding of {len(encoded or text)} characters")


def _check_filled(raw: bytes, place: str) -> bytes:
    if not raw:
        raise RequestError(400, "NoImage", f"{place}: no image came; {HOW_TO_SEND}")
    return raw


def read_image(value: object, config: Config, place: str = "data", stock: bool = False) -> Image:
    """Reads an image: an encoded picture, or a normalised tensor, float32 `[channels, H, W]`.

    Bytes are a picture or an `.npy` file, unless all of them are base64 text, a `data:` URL or a JSON list. Text is base64, a
    `data:` URL or a JSON list. A list is a tensor, as an `.npy` file is.

    Args:
        value: bytes, str or parsed JSON.
        config: the limits of a tensor.
        place: what error messages call it.
        stock: a str came where the stock handler takes one, and is decoded as leniently where nothing else works.

    Raises:
        RequestError: 400 `NoImage`, `InvalidBase64`, `InvalidJSON`, `InvalidTensor`.
    """
    if isinstance(value, list):
        return read_tensor(value, config)
    if not isinstance(value, (bytes, bytearray, str)):
        tensor = f"a tensor [{config.channels}][H][W]"
        message = f"{place}: expected base64, a data: URL or {tensor}, got {show(value)}; {HOW_TO_SEND}"
        raise RequestError(400, "NoImage", message)
    raw = _check_filled(as_bytes(value), place)
    if is_npy(raw):
        return read_npy(raw, config)
    if starts_json(raw):
        return read_image(read_json(raw, place), config, place)  # a list or an object, so this is not repeated
    if isinstance(value, str) or _is_text(raw):
        encoded = _read_text(raw, place, stock and isinstance(value, str))
        return read_npy(encoded.data, config) if is_npy(encoded.data) else encoded
    return Encoded(raw)


def read_area(value: object) -> Rect | Encoded:
    """Reads an area of a picture: a box `[left, top, right, bottom]`, or a PNG, as it is or as base64 or a `data:` URL.

    Raises:
        RequestError: 400 `InvalidOption`, the box has no extent; `InvalidBase64`.
        ValueError, TypeError: it is anything else.
    """
    if isinstance(value, (bytes, bytearray, str)):
        raw = value if isinstance(value, (bytes, bytearray)) else _read_text(as_bytes(value), "inside", stock=False).data
        if sniff(raw) != "PNG":
            raise ValueError
        return Encoded(bytes(raw))
    if not isinstance(value, (list, tuple)) or any(isinstance(edge, (bool, str)) for edge in value):
        raise TypeError
    try:
        left, top, right, bottom = map(float, value)
    except OverflowError:
        raise ValueError from None
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise ValueError
    if not (left < right and top < bottom):
        advice = "where the last two are a width and a height, send [x, y, x + width, y + height]"
        message = f"inside: expected [left, top, right, bottom] with left < right and top < bottom, got {show(value)}; {advice}"
        raise RequestError(400, "InvalidOption", message)
    return Rect(left, top, right, bottom)


def _is_text(raw: bytes) -> bool:
    if is_picture(raw):
        return False
    start = raw[:256]
    if start.lstrip(_WHITESPACE)[:5].lower() == b"data:" or (start[:1] == b"@" and start.isascii()):
        return True
    return not start.translate(None, _ALPHABET) and not raw.translate(None, _ALPHABET)


_BOX = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
_MASK = {"type": "string", "format": "mask", "contentEncoding": "base64", "contentMediaType": "image/png"}
AREA = Values("a box [left, top, right, bottom], or a mask: a PNG in base64", read_area, {"anyOf": [_BOX, _MASK]}, parse_numbers)
"""Areas of a picture, as `read_area` reads them."""
