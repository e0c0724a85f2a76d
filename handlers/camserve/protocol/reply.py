"""Answers become a `Reply`: status, content type, headers and bytes."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from camserve.core.errors import RequestError
from camserve.core.messages import CONTENT_TYPES, Answer, Explanation, Reply, Request
from camserve.core.messages.checks import Check, Hidden
from camserve.core.served import Served
from camserve.protocol.float32 import shorten
from camserve.protocol.kserve.outputs import describe_contours, name_direction
from camserve.protocol.kserve.reply import write_v2

_WAYS_OUT = {
    "json": "ask for fewer targets, without overlay, or for format npy",
    "npy": "ask for fewer targets",
    "png": "ask for fewer targets, or for format jpeg or webp",
    "jpeg": "ask for fewer targets, or for format webp or json",
    "webp": "ask for fewer targets, or for format jpeg or json",
}


class Responder:
    """Writes the replies of one archive.

    Args:
        served: what it offers; every explanation names its model, and `max_response_bytes` limits every body.
    """

    def __init__(self, served: Served) -> None:
        self._model = served.model
        self._limit = served.config.max_response_bytes
        self._values = served.scores == "none"
        self._measurement = served.measurement
        self._kind: dict[str, object] = {} if served.scores == "softmax" else {"scores": served.scores}
        if served.scores == "sigmoid":
            self._kind["threshold"] = served.config.threshold

    def reply(self, request: Request, answers: Sequence[Answer]) -> Reply:
        """Writes the reply to `request`, given one answer for each of its items, in order.

        Pictures and arrays say the rest in headers, each of them JSON: `x-explain-target` (`285`), `x-explain-range`
        (`[0.0,0.00031]`, or null where the map is not finite), `x-explain-view` (`[left,top,right,bottom]`, or null), and
        pictures `x-explain-scale` (`1.0`). With several targets, or none, the first two are lists of these in the targets' order.
        Where it was asked for, `x-explain-check` says each heatmap's verdict (`"supported"`), or null where there is no map, and
        `x-explain-inside` what lies inside (`{"share":0.83,"area":0.21,"peak":true}`), or null.
        Of scores that are values, `x-explain-direction` says whether a heatmap is of what `raises` or `lowers` its target.

        Raises:
            RequestError: 413 `ResponseTooLarge`; of V2, 400 `InvalidImage` and `NoPicture` as `write_v2` says.
        """
        media = request.items[0].options.media
        if request.protocol == "v1":
            return self._check_size(_json_reply(self._v1_body(request, answers)), "ask for fewer instances")
        if request.protocol == "v2":
            return self._check_size(self._v2_reply(request, answers), "ask for fewer images, or for binary outputs")
        if not request.explain:
            return self._check_size(_json_reply(_predictions(answers[0])), _WAYS_OUT["json"])
        if media == "json":
            return self._check_size(_json_reply(self._explained(answers[0], whole=True)), _WAYS_OUT["json"])
        body = _write_array(answers[0]) if media == "npy" else answers[0].picture
        if body is None:
            raise ValueError(f"no picture was rendered for {media}")
        return self._check_size(Reply(200, CONTENT_TYPES[media], body, self._headers(answers[0], media)), _WAYS_OUT[media])

    def _check_size(self, reply: Reply, way_out: str) -> Reply:
        if len(reply.body) > self._limit:
            message = f"the answer takes {len(reply.body)} bytes and the limit is {self._limit}; {way_out}"
            raise RequestError(413, "ResponseTooLarge", message)
        return reply

    def _v1_body(self, request: Request, answers: Sequence[Answer]) -> dict[str, Any]:
        body: dict[str, Any] = {"predictions": [_predictions(answer) for answer in answers]}
        if request.explain:
            body["explanations"] = [self._explained(answer, whole=False) for answer in answers]
        return body

    def _v2_reply(self, request: Request, answers: Sequence[Answer]) -> Reply:
        body, binary = write_v2(request, answers, self._model, self._values)
        if request.explain and all("check" in answer.asked for answer in answers):
            body["parameters"] = self._v2_parameters(answers[0])
        reply = _json_reply(body)
        if not any("parameters" in output for output in body["outputs"]):
            return reply
        headers = {"inference-header-content-length": str(len(reply.body))}
        return Reply(200, "application/octet-stream", reply.body + binary, headers)

    def _explained(self, answer: Answer, whole: bool) -> dict[str, Any]:
        info = answer.image
        image = info and {"width": info.width, "height": info.height, "view": info.view and list(info.view.rounded())}
        return {
            **({"predictions": _predictions(answer)} if whole else {}),
            "classes": [
                {"index": score.index, "label": score.label, "probability": score.probability} for score in answer.classes
            ],
            "explanations": [self._explanation(explanation, answer.asked) for explanation in answer.explanations],
            "image": image,
            "method": answer.method,
            "layer": answer.layer,
            **self._measured(answer),
            **self._kind,
            "model": self._model.name,
            "version": self._model.version,
            "weights": self._model.weights,
        }

    def _v2_parameters(self, answer: Answer) -> dict[str, str]:
        """What stands behind a check, and V2 has no outputs for; all images have the same, for they share the options."""
        parameters = {"method": answer.method, "layer": answer.layer, "weights": self._model.weights}
        return parameters | {name: json.dumps(told, separators=(",", ":")) for name, told in self._measured(answer).items()}

    def _measured(self, answer: Answer) -> dict[str, Any]:
        """What was measured of the answer's layer and method beside its own check, where the archive has a report of that."""
        if self._measurement is None or "check" not in answer.asked:
            return {}
        return {"measured": self._measurement.describe(answer.layer, answer.method)}

    def _explanation(self, explanation: Explanation, asked: Collection[str]) -> dict[str, Any]:
        region = explanation.region
        body: dict[str, Any] = {
            "target": explanation.target,
            "label": explanation.label,
            **({"direction": name_direction(explanation)} if self._values else {}),
            "probability": explanation.probability,
            "heatmap": shorten(explanation.heatmap),
            "range": _range(explanation),
            "region": region and list(region.rounded()),
            "warnings": list(explanation.warnings),
        }
        body |= {name: describe(explanation) for name, describe in DESCRIBED.items() if name in asked}
        if explanation.overlay is not None:
            body["overlay"] = "data:image/png;base64," + base64.b64encode(explanation.overlay).decode("ascii")
        return body

    def _headers(self, answer: Answer, media: str) -> Mapping[str, str]:
        view = answer.image and answer.image.view
        headers: dict[str, object] = {
            "x-explain-target": _one_or_list([explanation.target for explanation in answer.explanations]),
            "x-explain-range": _one_or_list([_range(explanation) for explanation in answer.explanations]),
            "x-explain-view": view and list(view.rounded()),
        }
        if self._values:
            headers["x-explain-direction"] = _one_or_list([name_direction(each) for each in answer.explanations])
        if "check" in answer.asked:
            headers["x-explain-check"] = _one_or_list([each.check and each.check.verdict for each in answer.explanations])
        if "inside" in answer.asked:
            headers["x-explain-inside"] = _one_or_list([describe_inside(each) for each in answer.explanations])
        if media != "npy":
            headers["x-explain-scale"] = answer.scale
        return {name: json.dumps(value, separators=(",", ":"), allow_nan=False) for name, value in headers.items()}


def _one_or_list(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def describe_check(check: Check) -> dict[str, Any]:
    """Describe a check as JSON has it; a score that is not finite is null."""

    def numbers(hidden: Hidden) -> dict[str, Any]:
        ways = {"hidden": hidden.hidden, "shown": hidden.shown}
        return {way: {fill: [_finite(score) for score in row] for fill, row in rows.items()} for way, rows in ways.items()}

    return {
        "verdict": check.verdict,
        "support": _finite(check.support),
        "deletion": _finite(check.deletion),
        "insertion": _finite(check.insertion),
        "shares": list(check.shares),
        "brightest": numbers(check.brightest),
        "random": numbers(check.random),
        "moved": numbers(check.moved),
        "empty": {fill: _finite(score) for fill, score in check.empty.items()},
    }


def describe_inside(explanation: Explanation) -> dict[str, Any] | None:
    """Describe what of a map lies inside an area as JSON has it; None where there is no map."""
    inside = explanation.inside
    return None if inside is None else {"share": _finite(inside.share), "area": _finite(inside.area), "peak": inside.peak}


DESCRIBED: Mapping[str, Callable[[Explanation], Any]] = {
    "check": lambda explanation: explanation.check and describe_check(explanation.check),
    "inside": describe_inside,
    "contours": describe_contours,
}
"""By the names of `BEYOND`."""


def _finite(number: float) -> float | None:
    return float(str(np.float32(number))) if np.isfinite(number) else None


def write_error(error: RequestError) -> Reply:
    """Writes an error in TorchServe's own shape."""
    return _json_reply({"code": error.status, "type": error.kind, "message": error.message}, error.status)


def _json_reply(body: object, status: int = 200) -> Reply:
    text = json.dumps(body, separators=(",", ":"), allow_nan=False)
    return Reply(status, CONTENT_TYPES["json"], text.encode("ascii"))


def _predictions(answer: Answer) -> object:
    """Maps labels to probabilities as the stock handler does; of a repeated label the last probability counts."""
    if answer.predictions is not None:
        return answer.predictions
    return {score.label: score.probability for score in answer.classes}


def _range(explanation: Explanation) -> list[float] | None:
    if explanation.range is None:
        return None
    return [float(str(np.float32(limit))) for limit in explanation.range]


def _write_array(answer: Answer) -> bytes:
    """Writes NumPy's format 1.0: float32 `[targets, h, w]`, little-endian, in row-major order."""
    maps = [explanation.heatmap for explanation in answer.explanations]
    stack = (np.stack(maps) if maps else np.zeros((0, *answer.grid))).astype("<f4")
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(stack), version=(1, 0), allow_pickle=False)
    return file.getvalue()
