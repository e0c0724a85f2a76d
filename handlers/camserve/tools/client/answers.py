"""Checks a server's answer before anything is made of it: it may come from another program, or from somebody else's server."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

OVERLAY = "data:image/png;base64,"
PNG = b"\x89PNG\r\n\x1a\n"
LARGEST = 1e300
"""Of a number: beyond it Python's integers are no floats."""


def read_json(body: bytes) -> Any:
    """Reads JSON strictly: NaN, Infinity and what is nested too deeply are none.

    Raises:
        ValueError: it is not JSON.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(body, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def find_fault(answer: Mapping[str, Any]) -> str | None:
    """Finds the first member of an explanation's answer that is not as the contract has it; None where all is well.

    What the contract does not know is let pass: a newer server may say more.
    """
    for name, check in _ANSWER.items():
        if name not in answer or not check(answer[name]):
            return name
    if not _is_text(answer.get("scores", "")) or not (answer.get("threshold") is None or _is_number(answer["threshold"])):
        return "scores or threshold"
    if not _is_measured(answer.get("measured")):
        return "measured"
    for place, explanation in enumerate(answer["explanations"]):
        for name, check in _EXPLANATION.items():
            if name not in explanation or not check(explanation[name]):
                return f"explanations[{place}].{name}"
        for name, allowed in _BEYOND.items():
            if not allowed(explanation.get(name)):
                return f"explanations[{place}].{name}"
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def _is_row(value: Any, length: int | None = None) -> bool:
    return isinstance(value, list) and len(value) in (length, length or len(value)) and all(map(_is_number, value))


def _is_heatmap(value: Any) -> bool:
    if not isinstance(value, list) or not value or not isinstance(value[0], list) or not value[0]:
        return False
    return all(_is_row(row, len(value[0])) for row in value)


def _is_image(value: Any) -> bool:
    if value is None:
        return True
    sides = isinstance(value, dict) and all(_is_integer(value.get(side)) and value[side] > 0 for side in ("width", "height"))
    return sides and _optional(4)(value.get("view"))


def _is_classes(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) and _is_class(each) for each in value)


def _is_class(value: Mapping[str, Any]) -> bool:
    return _is_integer(value.get("index")) and _is_text(value.get("label")) and _is_number(value.get("probability"))


def _is_overlay(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, str) or not value.startswith(OVERLAY):
        return False
    try:
        return base64.b64decode(value[len(OVERLAY) :], validate=True).startswith(PNG)
    except ValueError:
        return False


def _is_check(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or not _is_text(value.get("verdict")) or not _is_row(value.get("shares")):
        return False
    if not all(_is_number(value.get(name)) or value.get(name, 0) is None for name in ("support", "deletion", "insertion")):
        return False
    hidden = [value.get(name) for name in ("brightest", "random", "moved")]
    if not isinstance(value.get("empty"), dict) or not all(isinstance(each, dict) for each in hidden):
        return False
    return all(set(each) == {"hidden", "shown"} and all(map(_is_scores, each.values())) for each in hidden if each is not None)


def _is_measured(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or not all(isinstance(value.get(name), bool) for name in ("chosen", "out")):
        return False
    figures = [value.get(name) for name in ("score", "support")]
    sound = all(isinstance(each, dict) and all(_is_number(each.get(end)) for end in ("mean", "low", "high")) for each in figures)
    return sound and _is_integer(value.get("pictures")) and all(_is_text(value.get(name)) for name in ("made", "report"))


def _is_scores(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(row, list) for row in value.values())


def _is_inside(value: Any) -> bool:
    if value is None:
        return True
    shares = isinstance(value, dict) and all(_is_number(value.get(name)) for name in ("share", "area"))
    return shares and isinstance(value.get("peak"), bool)


def _are_contours(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(each, dict) and _is_contour(each) for each in value))


def _is_contour(value: Mapping[str, Any]) -> bool:
    polygons = value.get("coordinates")
    if not _is_number(value.get("level")) or not isinstance(polygons, list):
        return False
    rings = [ring for polygon in polygons for ring in (polygon if isinstance(polygon, list) else [None])]
    return all(isinstance(ring, list) and all(_is_row(point, 2) for point in ring) for ring in rings)


def _optional(length: int) -> Callable[[Any], bool]:
    return lambda value: value is None or _is_row(value, length)


def _is_explanations(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)  # none, where no label reaches the threshold


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


_ANSWER: Mapping[str, Callable[[Any], bool]] = {
    "classes": _is_classes,
    "explanations": _is_explanations,
    "image": _is_image,
    **dict.fromkeys(("method", "layer", "model", "version", "weights"), _is_text),
}

_EXPLANATION: Mapping[str, Callable[[Any], bool]] = {
    "target": _is_integer,
    "label": _is_text,
    "probability": _is_number,
    "heatmap": _is_heatmap,
    "range": _optional(2),
    "region": _optional(4),
    "warnings": _is_words,
}

_BEYOND: Mapping[str, Callable[[Any], bool]] = {
    "overlay": _is_overlay,
    "check": _is_check,
    "inside": _is_inside,
    "contours": _are_contours,
}
"""Members that an explanation has only where they are asked for."""
