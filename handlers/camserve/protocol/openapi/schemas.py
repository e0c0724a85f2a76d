"""JSON Schemas (2020-12) of what one archive takes and answers; `document` lays them out along the routes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from camserve.core.config import Config
from camserve.core.errors import KINDS
from camserve.core.messages import BEYOND, FILLS, SHARES, VERDICTS
from camserve.core.served import Served
from camserve.core.values import MOST_LEVELS
from camserve.protocol.kserve.outputs import OUTPUTS, list_outputs
from camserve.protocol.kserve.request import FOREIGN_PARAMETERS
from camserve.protocol.options import OPTIONS

Schema = dict[str, Any]

_NUMBER: Schema = {"type": "number"}
_SIZE: Schema = {"type": "integer", "minimum": 1}
_SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_ID: Schema = {"type": "string"}


def write_schemas(served: Served) -> dict[str, Schema]:
    """Writes every named schema of one archive."""
    config = served.config
    return {
        **_options(served),
        **_images(config),
        **_requests(config),
        **_answers(served),
        **_kserve_requests(served),
        **_kserve_answers(served),
        **{f"Error{status}": _error(status) for status in KINDS},
        "ServerError": _object(code={"type": "integer"}, type=_ID, message=_ID) | {"description": "TorchServe's own."},
        "Metadata": _metadata(served),
    }


def ref(name: str) -> Schema:
    """Refers to a named schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: Iterable[str] | None = None, /, **properties: Schema) -> Schema:
    """Makes an object of just these properties, all required unless `required` names fewer."""
    names = list(properties if required is None else required)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _list(items: Schema, low: int = 0, high: int | None = None) -> Schema:
    limits = {"minItems": low} | ({} if high is None else {"maxItems": high})
    return {"type": "array", "items": items, **limits}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _choice(names: Iterable[str]) -> Schema:
    return {"type": "string", "enum": list(names)}


def _options(served: Served) -> dict[str, Schema]:
    """Writes every option as JSON spells it; those that take lists also as headers and form fields do (`target_text`)."""
    named: dict[str, Schema] = {}
    for option in (row.of(served) for row in OPTIONS):
        usual = option.default(served) if option.default else None
        default = {} if usual is None else {"default": usual}
        named[option.name] = {"description": _sentence(option.meaning), **option.values.schema, **default}
        if option.in_text:
            form = "targets" if option.labels else option.name
            kinds = [_as_text(kind, form) if kind["type"] == "array" else kind for kind in option.values.schema["anyOf"]]
            named[f"{option.name}_text"] = {"description": _sentence(option.in_text), "anyOf": kinds}
    return named


def _as_text(several: Schema, form: str) -> Schema:
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": several, "format": form}


def _sentence(phrase: str) -> str:
    return f"{phrase[:1].upper()}{phrase[1:]}."


def refer_to_options(text: bool = False) -> dict[str, Schema]:
    """Refers to every option's schema, by name.

    Args:
        text: as headers and form fields spell it.
    """
    return {option.name: ref(f"{option.name}_text" if text and option.in_text else option.name) for option in OPTIONS}


def _images(config: Config) -> dict[str, Schema]:
    row = _list(_NUMBER, 1, 4096)
    array = {"description": "An .npy file in base64.", "type": "string", "contentEncoding": "base64", "minLength": 1}
    kinds = f"A {', '.join(config.formats)} file" if config.takes_pictures else "An .npy file"
    return {
        "Picture": {
            "description": f"{kinds} in base64, or a data: URL of it.",
            "type": "string",
            "format": "picture",
            "contentEncoding": "base64",
            "minLength": 1,
        },
        "Tensor": {
            "description": f"The model's input, already normalised: [{config.channels}][height][width], rows of equal length.",
            **_list(_list(row, 1, 4096), config.channels, config.channels),
        },
        "Image": {"anyOf": [ref("Picture"), ref("Tensor")]} if config.takes_pictures else {"anyOf": [ref("Tensor"), array]},
    }


def _requests(config: Config) -> dict[str, Schema]:
    one_of_two = {"not": {"required": ["target", "top_k"]}}
    file: Schema = {"description": "The picture's file.", "type": "string", "contentMediaType": "image/*", "format": "file"}
    if not config.takes_pictures:
        file = {"description": "The tensor's .npy file.", "type": "string", "contentMediaType": "application/x-npy"}
    instance = _object(("data",), data=ref("Image"), **refer_to_options())
    v1 = {**refer_to_options(), "format": {"const": "json"}}
    wrapped = _object(("b64",), b64=ref("Picture"))
    places = {
        "data": {"anyOf": [ref("Image"), wrapped]},
        "b64": ref("Picture"),
        "image_bytes": {"anyOf": [ref("Picture"), wrapped]},
    }
    tagged = [_object((name,), **{name: kind}, **v1) | one_of_two for name, kind in places.items()]
    return {
        "PredictionRequest": {
            "description": "Options are ignored.",
            "anyOf": [
                {"type": "object", "properties": {"data": ref("Image")}, "required": ["data"]},
                ref("Tensor"),
            ],
        },
        "PredictionForm": {"type": "object", "properties": {"data": file}, "required": ["data"]},
        "ExplanationRequest": {"anyOf": [instance | one_of_two, ref("Tensor")]},
        "ExplanationForm": _object(("data",), data=file, **refer_to_options(text=True)) | one_of_two,
        "Instance": {"anyOf": [*tagged, ref("Image")]},
        "V1Request": _object(("instances",), instances=_list(ref("Instance"), 1, config.max_instances), signature_name=_ID),
    }


def _answers(served: Served) -> dict[str, Schema]:
    labels, listed = served.labels, served.listed
    most = (listed if served.scores == "softmax" else None) or len(labels)
    score = _SHARE if served.scores != "none" else {"description": "The value, which is no probability.", **_NUMBER}
    predictions: Schema = {"type": "object", "additionalProperties": score, "minProperties": 1, "maxProperties": most}
    rectangle = _list(_NUMBER, 4, 4)
    kind = {"index": {"type": "integer", "minimum": 0, "maximum": len(labels) - 1}, "label": _ID, "probability": score}
    explanation = {
        "target": kind["index"],
        "label": _ID,
        **({"direction": _choice(("raises", "lowers"))} if served.scores == "none" else {}),
        "probability": score,
        "heatmap": {"description": "Rows at the layer's own resolution.", **_list(_list(_SHARE, 1), 1)},
        "range": {"description": "The map's minimum and maximum before scaling.", **_nullable(_list(_NUMBER, 2, 2))},
        "region": _nullable(rectangle),
        "warnings": _list(_choice(("zero", "constant", "not_finite"))),
        "check": {"description": "How far the heatmap is borne out, where that was asked for.", **_nullable(_check(score))},
        "inside": {"description": "What of the map lies inside, where an area was named.", **_nullable(INSIDE)},
        "contours": {"description": "Contours of the heatmap, where levels were named.", **_nullable(_contours())},
        "overlay": {"type": "string", "pattern": "^data:image/png;base64,"},
    }
    always = [name for name in explanation if name not in {*BEYOND, "overlay"}]
    explained = {
        "classes": _list(_object(**kind), 1, most),
        "explanations": _list(_object(always, **explanation), 0 if served.scores == "sigmoid" else 1),
        "image": _nullable(_object(width=_SIZE, height=_SIZE, view=_nullable(rectangle))),
        **dict.fromkeys(("method", "layer", "model", "version", "weights"), _ID),
        **({} if served.scores == "softmax" else {"scores": {"const": served.scores}}),
        **({"threshold": {"const": served.config.threshold}} if served.scores == "sigmoid" else {}),
    }
    return {
        "Predictions": predictions if listed else {"description": "Made by the archive's own handler."},
        "Answer": _object(predictions=ref("Predictions"), **explained),
        "Explained": _object(**explained),
        "V1Predictions": _object(predictions=_list(ref("Predictions"), 1)),
        "V1Explanations": _object(predictions=_list(ref("Predictions"), 1), explanations=_list(ref("Explained"), 1)),
    }


INSIDE = _object(share=_SHARE, area=_SHARE, peak={"type": "boolean"})


def _contours() -> Schema:
    """A level and a GeoJSON geometry each, in the picture's pixels."""
    ring = _list(_list(_NUMBER, 2, 2), 4)
    geometry = {"type": {"const": "MultiPolygon"}, "coordinates": _list(_list(ring, 1))}
    return _list(_object(level=_SHARE, **geometry), 1, MOST_LEVELS)


def _check(score: Schema) -> Schema:
    """Scores by fill and share."""
    known = _nullable(score)
    row = _list(known, len(SHARES), len(SHARES))
    ways = [
        _object(hidden=fills, shown=fills)
        for fills in (_object(**dict.fromkeys(FILLS, row)), _object(blur=row), _object(mean=row))
    ]
    areas = dict.fromkeys(("support", "deletion", "insertion"), _nullable(_NUMBER))
    others = {"brightest": ways[0], "random": ways[1], "moved": ways[2], "empty": _object(**dict.fromkeys(FILLS, known))}
    return _object(verdict=_choice(VERDICTS), **areas, shares=_list(_SHARE, len(SHARES), len(SHARES)), **others)


def _kserve_requests(served: Served) -> dict[str, Schema]:
    config = served.config
    count = {**_SIZE, "maximum": config.max_instances}
    size = {**_SIZE, "maximum": 4096}
    foreign: Mapping[str, Schema] = {name: {} for name in sorted(FOREIGN_PARAMETERS - {"binary_data_output"})}
    options = {**refer_to_options(text=True), "format": {"const": "json"}, "overlay": {"const": False}}
    parameters = _object((), **options, binary_data_output={"type": "boolean"}, **foreign)
    shape = {"type": "array", "prefixItems": [count, {"const": 1}], "items": False, "minItems": 1}
    fp32 = {"type": "array", "prefixItems": [count, {"const": config.channels}, size, size], "items": False, "minItems": 4}
    head = {"name": _ID, "parameters": ref("V2Parameters"), "data": {"type": "array"}}
    kinds = [
        _object(("name", "shape", "datatype"), **head, shape=shape, datatype={"const": "BYTES"}),
        _object(("name", "shape", "datatype"), **head, shape=fp32, datatype={"const": "FP32"}),
    ]
    binary = _object((), binary_data={"type": "boolean"})
    return {
        "V2Parameters": {"description": "The options, for every image.", **parameters},
        "V2Input": {"description": "BYTES: base64. FP32: normalised tensors, flat or nested.", "oneOf": kinds},
        "V2InferRequest": _v2_request(_v2_outputs(served, explain=False), binary),
        "V2ExplainRequest": _v2_request(_v2_outputs(served, explain=True), binary),
    }


def _v2_outputs(served: Served, *, explain: bool) -> tuple[str, ...]:
    return list_outputs(explain=explain, values=served.scores == "none")


def _v2_request(outputs: Sequence[str], binary: Schema) -> Schema:
    asked = _list(_object(("name",), name=_choice(outputs), parameters=binary))
    names = dict.fromkeys(("id", "model_name", "model_version"), _ID)
    return _object(("inputs",), **names, parameters=ref("V2Parameters"), inputs=_list(ref("V2Input"), 1, 1), outputs=asked)


def _kserve_answers(served: Served) -> dict[str, Schema]:
    """Several labels at once fill rows up: index and target -1, empty labels, and no probability."""
    filled = served.scores == "sigmoid"
    size = {**_SIZE, "minimum": 0} if filled else _SIZE
    values: dict[str, Mapping[str, Any]] = {}
    if served.scores == "none":
        values["probability"] = _NUMBER
    elif filled:
        values["probability"] = _nullable(_SHARE)
    outputs = {
        name: _object(
            ("name", "datatype", "shape"),
            name={"const": name},
            datatype={"const": tensor.datatype},
            shape=_list(size, tensor.rank, tensor.rank),
            data=_list(dict(values.get(name, tensor.value))),
            parameters=_object(binary_data_size={"type": "integer", "minimum": 0}),
        )
        for name, tensor in OUTPUTS.items()
    }
    answers: dict[str, Schema] = {}
    for name, explain in (("V2Inferred", False), ("V2Explained", True)):
        several = _list({"oneOf": [outputs[each] for each in _v2_outputs(served, explain=explain)]}, 1)
        answers[name] = _object(
            ("model_name", "model_version", "outputs"), id=_ID, model_name=_ID, model_version=_ID, outputs=several
        )
    return answers


def _error(status: int) -> Schema:
    return _object(code={"const": status}, type=_choice(KINDS[status]), message=_ID)


def _metadata(served: Served) -> Schema:
    config, labels, layers = served.config, served.labels, served.layers
    known = {
        "method": {"const": config.method},
        "methods": {"const": list(served.methods)},
        "layers": {"const": list(layers)},
        "labels": {"const": len(labels)},
        "channels": {"const": config.channels},
        "scores": {"const": served.scores},
        **({"threshold": {"const": config.threshold}} if served.by_threshold else {}),
        "input_size": _list(_SIZE, 2, 2),
        "limits": {"type": "object", "additionalProperties": _SIZE},
        "versions": {"type": "object", "additionalProperties": _ID},
        "weights": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
        "openapi": {"description": "This document.", "type": "object"},
        "self_test": {"const": "ok"},
    }
    return {"type": "object", "properties": known, "required": list(known)}
