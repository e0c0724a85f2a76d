"""The OpenAPI 3.1 document of one archive: its routes, with the ranges and choices of its own configuration."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from functools import cache
from typing import Any

from PIL import Image

from camserve.core.config import Config
from camserve.core.errors import KINDS
from camserve.core.messages import CONTENT_TYPES, ModelInfo
from camserve.core.messages.checks import VERDICTS
from camserve.core.served import Served
from camserve.core.version import __version__
from camserve.protocol.openapi.schemas import INSIDE, refer_to_options, write_schemas
from camserve.protocol.openapi.shapes import Schema, ref
from camserve.protocol.options import HEADER_PREFIX

JSON = "application/json"
OCTETS = "application/octet-stream"
LENGTH = "Inference-Header-Content-Length"

_MEANINGS = {
    400: "The request cannot be answered; the message says what came and what is accepted.",
    403: "The request names a host that is not allowed.",
    404: "TorchServe's own: no such model or version.",
    406: "Nothing on offer is acceptable.",
    413: "Too large. TorchServe's own 413, for a body beyond its limit, has no body.",
    500: "A fault of the server's. TorchServe's own: a form that it cannot decode.",
    503: "The time or the work of the batch was used up: try again later. TorchServe's own: the queue is full.",
    507: "Memory ran out, even for this request alone.",
}


def describe_api(served: Served) -> dict[str, Any]:
    """Writes the document of one archive, as JSON."""
    model = served.model
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{model.name}: predictions and explanations",
            "version": model.version or "0",
            "description": f"Served by TorchServe with camserve {__version__}; weights {model.weights}.",
        },
        "servers": [{"url": "/"}],
        "paths": _paths(),
        "components": {
            "schemas": write_schemas(served),
            "parameters": _parameters(model),
            "requestBodies": _bodies(served.config),
            "headers": _headers(served),
            "responses": _responses(served),
        },
    }


def _paths() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for suffix, place, at in (("", "", ["model"]), ("/{version}", "_version", ["model", "version"])):
        predict = _operation("predict" + place, "The most probable classes.", "Prediction", "Predictions", explain=False)
        explain = _operation("explain" + place, "The most probable classes, and where the model looked.", "Explanation", "Answer")
        paths["/predictions/{model}" + suffix] = {"parameters": _at(at), **_post_or_put(predict)}
        paths["/explanations/{model}" + suffix] = {"parameters": _at(at), **_post_or_put(explain)}
    paths["/explanations/{model}"]["get"] = _page()
    for path, name, what in (
        ("/v1/models/{model}:predict", "V1Predict", "Predictions, KServe V1."),
        ("/v1/models/{model}:explain", "V1Explain", "Explanations, KServe V1."),
        ("/v2/models/{model}/infer", "V2Infer", "Predictions, Open Inference Protocol V2."),
        ("/v2/models/{model}/explain", "V2Explain", "Explanations, Open Inference Protocol V2."),
    ):
        operation = _operation(name, what, name, name, kserve=True)
        if name.startswith("V2"):
            operation["parameters"] = [*operation["parameters"], {"$ref": "#/components/parameters/Length"}]
        paths[path] = {"parameters": _at(["model"]), "post": operation}
    paths["/models/{model}"] = _management()
    return paths


def _at(names: Iterable[str]) -> list[Schema]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _post_or_put(operation: dict[str, Any]) -> dict[str, Any]:
    """Makes an operation of both methods: PUT is taken like POST."""
    return {"post": operation, "put": {**operation, "operationId": operation["operationId"] + "_put"}}


def _operation(
    name: str, summary: str, body: str, response: str, *, explain: bool = True, kserve: bool = False
) -> dict[str, Any]:
    statuses = [status for status in _MEANINGS if status != 406 or (explain and not kserve)]
    return {
        "operationId": name,
        "summary": summary,
        "parameters": _at(refer_to_options()) if explain else [],
        "requestBody": {"$ref": f"#/components/requestBodies/{body}"},
        "responses": {"200": {"$ref": f"#/components/responses/{response}"}} | _failures(statuses),
    }


def _failures(statuses: Iterable[int]) -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _page() -> dict[str, Any]:
    content = {"text/html; charset=utf-8": {"schema": {"type": "string"}}}
    return {
        "operationId": "inspector",
        "summary": "The inspector page, for browsers: where Accept prefers text/html.",
        "responses": {"200": {"description": "One self-contained document.", "content": content}}
        | _failures((400, 403, 404, 503)),
    }


def _management() -> dict[str, Any]:
    """The route on TorchServe's management address."""
    metadata = {"type": "object", "properties": {"customizedMetadata": ref("Metadata")}, "required": ["modelName", "workers"]}
    asked = {"name": "customized", "in": "query", "schema": {"type": "boolean", "default": False}}
    several = {JSON: {"schema": {"type": "array", "items": metadata}}}
    return {
        "servers": [{"url": "http://127.0.0.1:8081", "description": "TorchServe's management address"}],
        "parameters": [*_at(["model"]), asked],
        "get": {
            "operationId": "describe",
            "summary": "TorchServe's description of the model; with customized=true also the archive's.",
            "responses": {"200": {"description": "One for each version.", "content": several}} | _failures((404,)),
        },
    }


def _parameters(model: ModelInfo) -> dict[str, Any]:
    return {
        "model": {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": [model.name]}},
        "version": {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "enum": [model.version]}},
        "Length": {
            "name": LENGTH,
            "in": "header",
            "description": "In the binary extension: how many bytes of the body are JSON.",
            "schema": {"type": "integer", "minimum": 0},
        },
        **{name: _option_header(name, schema) for name, schema in refer_to_options(text=True).items()},
    }


def _option_header(option: str, schema: Schema) -> dict[str, Any]:
    return {"name": f"{HEADER_PREFIX}{option}".replace("_", "-").title(), "in": "header", "schema": schema}


def _bodies(config: Config) -> dict[str, Any]:
    """What each route takes, with an example that it answers; of a model that takes tensors alone without."""
    if not config.takes_pictures:
        kinds = {"V1Predict": "V1Request", "V1Explain": "V1Request", "V2Infer": "V2InferRequest", "V2Explain": "V2ExplainRequest"}
        bodies = {name: _pictures(config, name, {}) for name in ("Prediction", "Explanation")}
        return bodies | {name: _json_body(kind, {}, binary=name.startswith("V2")) for name, kind in kinds.items()}
    picture = _sample()
    bytes_input = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [picture]}
    return {
        "Prediction": _pictures(config, "Prediction", {"data": picture}),
        "Explanation": _pictures(config, "Explanation", {"data": picture, "top_k": 1, "method": "gradcam"}),
        "V1Predict": _json_body("V1Request", {"instances": [picture, {"b64": picture}]}),
        "V1Explain": _json_body("V1Request", {"instances": [{"data": picture, "target": [0]}, {"data": picture}]}),
        "V2Infer": _json_body("V2InferRequest", {"id": "1", "inputs": [bytes_input]}, binary=True),
        "V2Explain": _json_body("V2ExplainRequest", {"inputs": [bytes_input], "parameters": {"target": "[0]"}}, binary=True),
    }


def _pictures(config: Config, name: str, example: dict[str, Any]) -> dict[str, Any]:
    array = {CONTENT_TYPES["npy"]: {"schema": {"type": "string", "format": "file"}}}
    request: Schema = {"schema": ref(f"{name}Request")}
    form: Schema = {"schema": ref(f"{name}Form")}
    if not config.takes_pictures:
        return {"required": True, "content": {JSON: request, "multipart/form-data": form, **array}}
    kinds = [*("application/dicom" if kind == "dicom" else f"image/{kind}" for kind in config.formats), OCTETS]
    return {
        "required": True,
        "content": {
            **{kind: {"schema": {"type": "string", "format": "file"}} for kind in kinds},
            "text/plain": {"schema": ref("Picture")},
            "multipart/form-data": form,
            JSON: {**request, "examples": {"base64": {"value": example}}},
            **array,
        },
    }


def _json_body(schema: str, example: dict[str, Any], binary: bool = False) -> dict[str, Any]:
    shown = {"examples": {"base64": {"value": example}}} if example else {}
    content: dict[str, Any] = {JSON: {"schema": ref(schema), **shown}}
    if binary:
        content[OCTETS] = {"schema": {"description": "The JSON, then the tensors.", "type": "string", "format": "tensors"}}
    return {"required": True, "content": content}


@cache
def _sample() -> str:
    """A small picture in base64."""
    file = io.BytesIO()
    Image.radial_gradient("L").resize((64, 64)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _headers(served: Served) -> dict[str, Any]:
    """What pictures and arrays say of themselves; with several targets, or none, the first two are lists."""
    number = {"type": "number"}
    pair = {"anyOf": [{"type": "array", "items": number, "minItems": 2, "maxItems": 2}, {"type": "null"}]}
    view = {"anyOf": [{"type": "array", "items": number, "minItems": 4, "maxItems": 4}, {"type": "null"}]}
    index = {"type": "integer", "minimum": 0}
    least = 0 if served.scores == "sigmoid" else 2
    several = {"type": "array", "minItems": least, "maxItems": served.config.max_targets}
    way: Schema = {"type": "string", "enum": ["raises", "lowers"]}
    verdict: Schema = {"enum": [*VERDICTS, None]}
    inside: Schema = {"anyOf": [INSIDE, {"type": "null"}]}
    direction = _header("Of what each heatmap is.", {"anyOf": [way, {**several, "items": way}]})
    return {
        **({"x-explain-direction": direction} if served.scores == "none" else {}),
        "x-explain-target": _header("Of each heatmap.", {"anyOf": [index, {**several, "items": index}]}),
        "x-explain-range": _header("Before scaling.", {"anyOf": [pair, {**several, "items": pair}]}),
        "x-explain-check": _header("Verdicts, if asked for.", {"anyOf": [verdict, {**several, "items": verdict}]}),
        "x-explain-inside": _header("What lies inside, if asked for.", {"anyOf": [inside, {**several, "items": inside}]}),
        "x-explain-view": _header("Left, top, right and bottom in the original picture.", view),
        "x-explain-scale": _header(
            "The picture's size relative to the original.", {**number, "exclusiveMinimum": 0, "maximum": 1}
        ),
        LENGTH.lower(): {"description": "How many bytes of the body are JSON.", "schema": {"type": "integer", "minimum": 0}},
    }


def _header(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _responses(served: Served) -> dict[str, Any]:
    headers = {name: {"$ref": f"#/components/headers/x-explain-{name}"} for name in _said_of_heatmaps(served)}
    files = {kind: {"schema": {"type": "string", "format": "file"}} for kind in CONTENT_TYPES.values() if kind != JSON}
    answer = _answer("Answer")
    answer["content"] |= files
    length = {"headers": {LENGTH.lower(): {"$ref": f"#/components/headers/{LENGTH.lower()}"}}}
    binary = {OCTETS: {"schema": {"type": "string", "format": "tensors"}}}
    failures = {str(status): _failure(status, meaning) for status, meaning in _MEANINGS.items()}
    return {
        "Predictions": _answer("Predictions"),
        "Answer": answer | {"headers": {f"x-explain-{name}": header for name, header in headers.items()}},
        "V1Predict": _answer("V1Predictions"),
        "V1Explain": _answer("V1Explanations"),
        **{name: _answer(kind, binary) | length for name, kind in (("V2Infer", "V2Inferred"), ("V2Explain", "V2Explained"))},
        **failures,
    }


def _said_of_heatmaps(served: Served) -> tuple[str, ...]:
    return ("target", *(["direction"] if served.scores == "none" else []), "range", "view", "scale", "check", "inside")


def _answer(schema: str, others: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"description": "The answer.", "content": {JSON: {"schema": ref(schema)}, **(others or {})}}


def _failure(status: int, meaning: str) -> dict[str, Any]:
    names = [f"Error{status}"] if status in KINDS else []
    names += ["ServerError"] if status in (404, 500, 503) else []
    schema = ref(names[0]) if len(names) == 1 else {"anyOf": [ref(name) for name in names]}
    return {"description": meaning, "content": {JSON: {"schema": schema}}}
