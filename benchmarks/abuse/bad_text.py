"""Bad text: base64 and JSON that are none, or too much, or too deep."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

from benchmarks.abuse.bad_pictures import good_picture
from benchmarks.abuse.case import BAD, LARGE, OK, Case, Draw, json_case

GOOD = base64.b64encode(good_picture()).decode()


def bad_base64(draw: random.Random) -> Case:
    """Base64 with foreign characters, lost or doubled padding, cut off, as odd data: URLs."""
    at = draw.randrange(len(GOOD))
    texts = [
        GOOD[:at] + draw.choice("%#\x00é😀'\"<") * draw.randint(1, 9) + GOOD[at:],
        GOOD[:at],
        GOOD + "=" * draw.randint(1, 5),
        GOOD[:at] + "=" + GOOD[at:],
        f"data:{draw.choice(['', 'image/png', 'x' * 500])};base64{draw.choice([',', ';', ''])}{GOOD[:at]}",
        f"data:image/png,{GOOD}",
        "data:image/png;base64," * draw.randint(2, 50) + GOOD,
        "@" + GOOD[:at],
        "A" * draw.randint(1, 100_000),
        " \n" * draw.randint(1, 1000),
    ]
    text = draw.choice(texts)
    ways: list[Any] = [
        {"data": text},
        {"instances": [text]},
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": [text]}]},
    ]
    return json_case(draw, json.dumps(draw.choice(ways)), OK, BAD, LARGE)


def beside(*more: str) -> str:
    """A JSON object with a good picture and these members."""
    return "{" + ", ".join([f'"data": "{GOOD}"', *more]) + "}"


def deep_json(draw: random.Random) -> Case:
    """Lists and objects in each other, closed or not."""
    depth = draw.choice([5, 50, 900, 1100, 20_000, 200_000])
    opened, closed = draw.choice([("[", "]"), ('{"data":', "}"), ('{"instances":[', "]}"), ('[{"a":', "}]")])
    text = opened * depth + draw.choice(["", "1", "null"]) + (closed * depth if draw.random() < 0.7 else "")
    return json_case(draw, draw.choice([text, beside(f'"target": {text}'), f'{{"inputs": {text}}}']), BAD, explain=True)


def huge_json(draw: random.Random) -> Case:
    """Numbers of thousands of digits, names and lists without end."""
    digits = "9" * draw.choice([20, 400, 4000, 5000, 100_000])
    many = draw.choice([1000, 30_000])
    size = draw.choice([digits[:15], "64", "1"])
    numbers = ",".join([draw.choice(["1e400", "-1e308", "1" + "0" * 330, "1e-400"])] * 9)
    texts = [
        beside(f'"{draw.choice(["target", "top_k", "opacity"])}": {digits}'),
        beside(f'"target": [{",".join(["0"] * many)}]'),
        beside(*(f'"k{index}": 1' for index in range(many))),
        beside(f'"{"k" * many}": 1'),
        beside(f'"target": "{chr(92)}u0000{"x" * many}"'),
        f'{{"data": {digits}}}',
        digits,
        f"[{','.join(['0'] * many)}]",
        f"[[[{numbers}]]]",
        f'{{"instances": [{",".join([chr(34) * 2] * draw.choice([10, 65, many]))}]}}',
        f'{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": [{size}, 3, 224, 224], "data": []}}]}}',
        *[heavy_numbers(draw, digits, many)] * 3,
    ]
    return json_case(draw, draw.choice(texts), BAD, LARGE, explain=True)


def heavy_numbers(draw: random.Random, digits: str, many: int) -> str:
    """V2 data that a numeric library would make something huge of: uneven strings, uneven lists, long integers, depth."""
    word, depth = json.dumps("a" * many), draw.choice([5, 40, 900])
    short = ",".join(['"b"'] * many)
    row = f"[{','.join(['0.5'] * 64)}]"
    data = draw.choice(
        [
            f"[{word},{short}]",
            f"[{','.join([word, *['0.5'] * 12287])}]",
            f"[[{word}], [{short}]]",
            f"[[[{','.join([row] * 64)}], [{row}], [{word}]]]",
            f"[{','.join(['9' * 60] * 12288)}]",
            f"[{','.join([row] * draw.choice([191, 192, 193]))}]",
            "[" * depth + digits[:15] + "]" * depth,
        ]
    )
    shape = draw.choice(["1, 3, 64, 64", f"1, 3, {digits[:4000]}, {digits[:4000]}", str(many)])
    return f'{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": [{shape}], "data": {data}}}]}}'


NOT_FINITE = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999")


def nan_json(draw: random.Random) -> Case:
    """Numbers that are none, wherever a number may stand."""
    value = draw.choice(NOT_FINITE)
    row = f"[{', '.join(['0.5'] * 63)}, {value}]"
    rows = f"[{', '.join([row] * 64)}]"
    names = ["target", "top_k", "opacity", "overlay", "method", "layer", "format", "colormap"]
    option = f'"{draw.choice(names)}": {draw.choice([value, f"[{value}]"])}'
    together = f"[{rows}, {rows}, {rows}]"
    texts = [
        together,
        f'{{"data": {together}}}',
        f'{{"instances": [{together}]}}',
        f'{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": [1, 3, 64, 64], "data": [{together}]}}]}}',
        f'{{"inputs": [{{"name": "x", "datatype": "BYTES", "shape": [{value}], "data": ["{GOOD}"]}}]}}',
        f'{{"instances": [{{"data": "{GOOD}", {option}}}]}}',
        value,
    ]
    return json_case(draw, draw.choice([*texts, *[beside(option)] * 3]), BAD, explain=True)


CATEGORIES: dict[str, Draw] = {
    "bad base64": bad_base64,
    "deep JSON": deep_json,
    "huge JSON": huge_json,
    "NaN in JSON": nan_json,
}
