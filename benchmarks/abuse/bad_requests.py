"""Bad options, headers, forms, tensors, and bodies of KServe's protocols."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from tests.support.build import encoded

from benchmarks.abuse.bad_text import GOOD
from benchmarks.abuse.case import BAD, LARGE, OK, Case, Draw, json_case
from camserve.tools.archive.archive import Row

LARGE_PICTURE = base64.b64encode(encoded(Image.new("1", (7000, 7000)))).decode()
"""49 megapixels in some kilobytes."""

WRONG: dict[str, Sequence[Any]] = {
    "target": (
        None,
        True,
        1.5,
        -1,
        10**9,
        10**30,
        {},
        [],
        [[0]],
        [None],
        "no such label \r\n",
        "\x1b[31m",
        [0] * 2000,
        ["x" * 9000],
    ),
    "top_k": (None, False, 0, -3, 1.5, 10**9, "1", "two", [], {}, [1]),
    "method": (None, 1, "", "GradCAM++", "gradcam+", "x" * 5000, [], ["gradcam"], {"gradcam": 1}),
    "layer": (None, 3, "", "__class__", "../../layer", "layer\x00", [], {}, "x" * 5000),
    "format": (None, 1, "svg", "PNG ", "text/html", [], {"png": 1}),
    "overlay": (None, 0, 1, "yes", "true ", [], {}),
    "colormap": (None, 2, "rainbow", "", [], {}),
    "opacity": (None, True, -0.01, 1.01, 1e300, "half", [], {}, "0x1"),
}


def wrong_option(draw: random.Random) -> Case:
    """A value of the wrong type or out of range, as a JSON key, and where text can spell it so too as a field or a header."""
    name = draw.choice(list(WRONG))
    value = draw.choice(WRONG[name])
    kinds = ("InvalidOption", "UnknownLabel")
    place = draw.randrange(3)
    text = value if isinstance(value, str) else json.dumps(value)
    if place == 0 or (name in ("top_k", "overlay", "opacity") and isinstance(value, str)):
        return Case(Row({"body": {"data": GOOD, name: value}}, explain=True), (BAD,), kinds)
    if place == 1:
        return Case(Row({"data": GOOD, name: bytearray(text.encode())}, explain=True), (BAD,), kinds)
    printable = "".join(each for each in text if each.isprintable())
    header = f"x-explain-{name.replace('_', '-')}"
    return Case(Row({"body": {"data": GOOD}}, {draw.choice([header, header.title()]): printable}, explain=True), (BAD,), kinds)


def unknown_option(draw: random.Random) -> Case:
    """A name that is no option."""
    name = draw.choice(
        ["Target", "targets", "top-k", "__proto__", "", "data ", "\r\n", "𝓽arget", "x" * 20_000, "format\x00", "$where"]
    )
    if draw.random() < 0.5:
        return Case(Row({"body": {"data": GOOD, name: 1}}, explain=True), (BAD,), ("UnknownOption",))
    return Case(Row({"data": GOOD, name: bytearray(b"1")}, explain=True), (BAD,), ("UnknownOption",))


def header_garbage(draw: random.Random) -> Case:
    """Headers of any name and value."""
    names = [
        "Accept",
        "accept",
        "Content-Type",
        "X-Explain-Target",
        "X-Explain-",
        "x-explain-describe",
        "describe",
        "Explain",
        "url_path",
    ]
    names += ["Inference-Header-Content-Length", "Content-Encoding", "Host", "X-Explain-Format", "Authorization", "body", "data"]
    values = [
        "",
        "*/*;q=0",
        '"' * 3000,
        ",;=" * 500,
        "\x7f",
        "application/json",
        "True",
        "-1",
        "9" * 4000,
        "image/png;q=nan",
        "é\xff",
        "text/html",
    ]
    values += [
        "multipart/form-data; boundary=" + "-" * 3000,
        "a/b;" * 900,
        "image/*, " * 400,
        "${jndi:ldap://x}",
        "{{7*7}}",
        "%0d%0aSet-Cookie: a=b",
    ]
    headers = {draw.choice(names): draw.choice(values) for _ in range(draw.randint(1, 6))}
    body: Any = draw.choice(
        [bytearray(base64.b64decode(GOOD)), {"data": GOOD}, bytearray(json.dumps({"data": GOOD}).encode()), bytearray()]
    )
    return Case(Row({"body": body}, headers, explain=draw.random() < 0.8), (OK, BAD, 403, 406, LARGE))


# ------------------------------------------------------------------ protocols, forms, tensors


def garbage(draw: random.Random, depth: int = 3) -> Any:
    """Any JSON value."""
    kind = draw.randrange(8 if depth else 6)
    if kind == 6:
        return [garbage(draw, depth - 1) for _ in range(draw.randrange(4))]
    if kind == 7:
        names = ["data", "b64", "instances", "inputs", "name", "shape", "datatype", "target", "x", "parameters", "outputs"]
        return {draw.choice(names): garbage(draw, depth - 1) for _ in range(draw.randrange(4))}
    return [
        None,
        draw.random() < 0.5,
        draw.randrange(-9, 9),
        draw.uniform(-1e9, 1e9),
        draw.choice(["", "x", "FP32", "\ud800"]),
        10**25,
    ][kind]


def kserve_garbage(draw: random.Random) -> Case:
    """V1 and V2 bodies with something wrong in them."""
    shape = [draw.choice([-1, 0, 1, 2, 3, 2**31, 2**63, 10**30, True, 1.0, None]) for _ in range(draw.randrange(6))]
    tensor = {
        "name": "x",
        "datatype": draw.choice(["BYTES", "FP32", "FP64", "INT8", None]),
        "shape": shape,
        "data": draw.choice([[], [GOOD], [1, 2], garbage(draw)]),
    }
    bodies = [
        {"instances": garbage(draw)},
        {"instances": [GOOD, garbage(draw)], garbage_name(draw): 1},
        {"instances": [{"data": GOOD, "b64": GOOD}]},
        {"inputs": garbage(draw)},
        {"inputs": [tensor]},
        {"inputs": [tensor, tensor]},
        {"inputs": [{**tensor, "parameters": {"binary_data_size": draw.choice([0, -1, 10**12, "7", None])}}]},
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": [GOOD]}], "outputs": [{"name": "nothing"}]},
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": [GOOD]}], "parameters": {garbage_name(draw): 1}},
    ]
    return json_case(draw, json.dumps(draw.choice(bodies)), OK, BAD, LARGE)


def garbage_name(draw: random.Random) -> str:
    """A key that no protocol has."""
    return draw.choice(["option", "Parameters", "", "x" * 3000, "\r\n"])


def kserve_pixels(draw: random.Random) -> Case:
    """Many large pictures in few bytes: together they have more pixels than a request may."""
    many = [LARGE_PICTURE] * draw.randint(5, 60)
    if draw.random() < 0.5:
        instances: list[Any] = [draw.choice([text, {"data": text, "overlay": True, "top_k": 3}]) for text in [*many, GOOD]]
        body: dict[str, Any] = {"instances": draw.sample(instances, len(instances))}
    else:
        body = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [len(many)], "data": many}]}
    return Case(Row({"body": body}, explain=draw.random() < 0.7), (LARGE,), ("ImageTooLarge",))


def kserve_binary(draw: random.Random) -> Case:
    """The binary extension with lengths that lie."""
    file = base64.b64decode(GOOD)
    tail = struct.pack("<I", draw.choice([len(file), 0, 2**32 - 1, len(file) + 1])) + file[: draw.choice([None, 10, 0])]
    size = draw.choice([len(tail), len(tail) + 1, 0, -5, 2**40])
    head = {
        "inputs": [
            {
                "name": "x",
                "datatype": draw.choice(["BYTES", "FP32"]),
                "shape": draw.choice([[1], [2], [1, 3, 64, 64]]),
                "parameters": {"binary_data_size": size},
            }
        ]
    }
    part = json.dumps(head).encode()
    length = draw.choice([str(len(part)), str(len(part) - 1), "-1", "9" * 30, "", "0x10", "١٢", str(len(part) + len(tail))])
    headers = {"Inference-Header-Content-Length": length, "Content-Type": "application/octet-stream"}
    return Case(Row({"body": bytearray(part + tail)}, headers, explain=draw.random() < 0.7), (OK, BAD))


def form_garbage(draw: random.Random) -> Case:
    """Forms without a picture, or with the wrong one."""
    values = [
        bytearray(draw.randbytes(draw.choice([0, 5, 2000]))),
        bytearray(b"@cat.jpg"),
        "text",
        "",
        bytearray(b"cat.jpg"),
        {"a": 1},
        [1],
        7,
        None,
    ]
    names = ["data", "body", "image", "file", "", "target", "explain", "describe", "Data", "data[]"]
    fields = {draw.choice(names): draw.choice(values) for _ in range(draw.randrange(5))}
    kind = draw.choice(["multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
    return Case(
        Row(fields, {"Content-Type": kind, "describe": draw.choice(["True", "False"])}, explain=draw.random() < 0.7), (BAD,)
    )


SMALL = ((3, 1, 1), (3, 2, 3), (3, 7, 7))  # some models run on these
ODD = ((3, 0, 5), (1, 64, 64), (4, 64, 64), (3, 64), (3, 5000, 1), (2, 3, 8, 8), (3,), ())
NO_NUMBERS: Sequence[Any] = ("1", None, True, [], {}, 1e39, 10**40, [0.5])


def bad_tensor(draw: random.Random) -> Case:
    """Tensors of other shapes, ragged, of other things than numbers, and too small for many models."""
    sides = draw.choice([*SMALL, *ODD])
    statuses = (OK, BAD) if sides in SMALL else (BAD,)
    value = np.round(np.random.default_rng(draw.randrange(2**32)).normal(size=sides), 1).tolist()
    if draw.random() < 0.5:
        value, statuses = np.zeros((3, 64, 64)).tolist(), (BAD,)
        value[draw.randrange(3)][draw.randrange(64)][draw.randrange(64)] = draw.choice(NO_NUMBERS)
    body = draw.choice([value, {"data": value}, {"instances": [value]}, {"data": json.dumps(value)}])
    return Case(Row({"body": body}, explain=draw.random() < 0.7), statuses)


CATEGORIES: dict[str, Draw] = {
    "wrong option values": wrong_option,
    "unknown options": unknown_option,
    "header garbage": header_garbage,
    "KServe garbage": kserve_garbage,
    "KServe binary": kserve_binary,
    "KServe pixels": kserve_pixels,
    "form garbage": form_garbage,
    "bad tensors": bad_tensor,
}
