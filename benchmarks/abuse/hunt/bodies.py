"""Grammars of requests: files in every protocol, numbers, JSON that is long or deep, and options that take passes or pictures."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.abuse.hunt.files import FILES, LIMIT, save, scene
from benchmarks.abuse.hunt.grammar import Recipe

WHOLE = 32 << 20
"""Bytes of a request: `max_request_size`."""

NUMBERS = ("0", "0.5", "-1e-9", "0.12345678901234567", "1234567890123456789012", "1e308", "true", "[]", '""')
UNITS = ("[]", "{}", '""', "0", '"\\u00e9"', '"\\ud83d\\ude00"', "9" * 4_000, "null", '{"a":1}', "[[[[]]]]", "1e99")
AROUND = (("[", "]"), ('{"instances": [', "]}"), ('{"data": [', "]}"), ('{"inputs": [{"shape": [', "]}]}"))


@dataclass(frozen=True)
class Body:
    """A request as it is sent: its bytes, and as what."""

    raw: bytes
    kind: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    explain: bool = False
    name: str = "body"


def _plain() -> bytes:
    return save(scene("flat", 9, 9, "RGB"), "PNG")


def _file(recipe: Recipe) -> bytes:
    if recipe.flag("plain file"):
        side = recipe.number("side", 1, 3_000)
        size = side, max(1, side // recipe.choice("flat", (1, 40, 900)))
        kind = recipe.choice("plain kind", ("PNG", "JPEG", "WEBP", "GIF", "BMP"))
        return save(scene(recipe.choice("scene", ("flat", "smooth")), *size, "RGB"), kind)
    return FILES[recipe.choice("format", sorted(FILES))](recipe)


def _options(recipe: Recipe) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if recipe.flag("options"):
        options["top_k"] = recipe.number("top_k", 1, 10)
        options["method"] = recipe.choice("method", ("gradcam++", "contrast", "layercam"))
    if recipe.flag("overlay"):
        options |= {"overlay": True, "opacity": recipe.choice("opacity", (0.0, 0.5))}
    return options


def _json(text: str, recipe: Recipe) -> Body:
    raw = text.encode()[:WHOLE]
    return Body(raw, "application/json", {"Content-Type": "application/json"}, recipe.flag("explain"))


def picture(recipe: Recipe) -> Body:
    """A file by itself, drawn on or not."""
    headers = {"Accept": recipe.choice("accept", ("application/json", "image/png", "image/webp", "image/jpeg"))}
    headers["X-Explain-Top-K"] = str(recipe.number("top_k", 1, 10))
    return Body(_file(recipe), "", headers, recipe.flag("explain"))


def v1(recipe: Recipe) -> Body:
    """Many instances of one file."""
    instance = json.dumps({"data": base64.b64encode(_file(recipe)).decode(), **_options(recipe)})
    count = max(1, min(recipe.number("instances", 1, 64), WHOLE // len(instance)))
    return _json(f'{{"instances": [{", ".join([instance] * count)}]}}', recipe)


def v2(recipe: Recipe) -> Body:
    """Files or numbers in the binary extension."""
    if recipe.flag("numbers"):
        count, side = recipe.number("instances", 1, 64), recipe.number("side", 1, 1_600)
        side = max(1, min(side, int((WHOLE / 12 / count) ** 0.5)))
        tail, shape, kind = bytes(12 * count * side * side), [count, 3, side, side], "FP32"
    else:
        file = _file(recipe)[:LIMIT]
        count = max(1, min(recipe.number("instances", 1, 64), WHOLE // (len(file) + 4)))
        tail, shape, kind = (struct.pack("<I", len(file)) + file) * count, [count], "BYTES"
    given = {"name": "x", "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(tail)}}
    head = json.dumps({"inputs": [given], "parameters": {**_options(recipe), "overlay": False}}).encode()
    return Body(head + tail, "", {"Inference-Header-Content-Length": str(len(head))}, recipe.flag("explain"))


def numbers(recipe: Recipe) -> Body:
    """A tensor as JSON, in long and in short numbers."""
    number = recipe.choice("number", NUMBERS)
    side = max(1, min(recipe.number("side", 1, 4_096), int((WHOLE / 3 / (len(number) + 1)) ** 0.5)))
    channel = _channel(number, side)
    form = recipe.choice("form", ("T", '{"data": T}', '{"instances": [T]}', '{"data": "T"}'))
    return _json(form.replace("T", f"[{channel},{channel},{channel}]"), recipe)


def _channel(number: str, side: int) -> str:
    row = f"[{','.join([number] * side)}]"
    return f"[{','.join([row] * side)}]"


def structure(recipe: Recipe) -> Body:
    """JSON that is long, deep, or full of keys, text and digits."""
    unit = recipe.choice("unit", UNITS)
    count = min(recipe.number("count", 1, 20_000_000), WHOLE // (len(unit) + 1) - 20)
    first, last = recipe.choice("around", AROUND)
    text = first + ",".join([unit] * count) + last
    if recipe.flag("keys"):
        text = "{" + ",".join(f'"k{each}": {unit}' for each in range(min(count, 400_000))) + "}"
    return _json(json.dumps({"data": text}) if recipe.flag("text") else text, recipe)


def text(recipe: Recipe) -> Body:
    """Base64 that is long, broken by white space, or none at all; and many parameters of a form's type."""
    piece = recipe.choice("text", (b"AAAA", b"A \n", b"data:image/png;base64,", b"\xc3\xa9", b"BM", b"\xff\xd8\xff"))
    raw = (piece * (recipe.number("count", 1, 24_000_000) // len(piece) + 1))[:WHOLE]
    kind = recipe.choice("content type", ("", "text/plain", "application/json", "application/x-www-form-urlencoded"))
    name = recipe.choice("field", ("body", "data"))
    return Body(raw, kind, {"Content-Type": kind} if kind else {}, recipe.flag("explain"), name)


def options(recipe: Recipe) -> Body:
    """Labels that do not exist, targets without end, long headers."""
    kind = recipe.choice("option", ("label", "labels", "targets", "unknown", "headers"))
    length, count = recipe.number("length", 1, 1_000_000), recipe.number("count", 1, 2_000_000)
    word = recipe.choice("letters", ("a", "label 99", "\u00e9")) * max(1, length // 8)
    if kind == "headers":
        headers = {
            "X-Explain-Target": "[" + "1," * min(count, 3_900) + "1]",
            "Accept": "image/*;q=0.1," * min(count, 500) + "*/*",
        }
        return Body(_plain(), "", headers, explain=True)
    many = max(1, min(count, WHOLE // 2 // (6 * len(word) + 4)))
    choices: dict[str, dict[str, Any]] = {
        "label": {"target": word},
        "labels": {"target": [word] * many},
        "targets": {"target": list(range(count))},
        "unknown": {f"{word[:200]}{each}": 1 for each in range(min(many, 100_000))},
    }
    return _json(json.dumps({"data": base64.b64encode(_plain()).decode(), **choices[kind]}), recipe)


BODIES: dict[str, Callable[[Recipe], Body]] = {
    "picture": picture,
    "V1": v1,
    "V2": v2,
    "numbers": numbers,
    "structure": structure,
    "text": text,
    "options": options,
}
"""By what they are."""
