"""JSON Schemas (2020-12) of what one archive takes and answers; `document` lays them out along the routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from camserve.core.config import REFINECAM, Config
from camserve.core.errors import KINDS
from camserve.core.messages import BEYOND
from camserve.core.messages.checks import FILLS, SHARES, VERDICTS
from camserve.core.served import Served
from camserve.core.values import MOST_LEVELS
from camserve.protocol.kserve.outputs import OUTPUTS, list_outputs
from camserve.protocol.kserve.request import FOREIGN_PARAMETERS
from camserve.protocol.openapi.shapes import (
    FLAG,
    ID,
    NUMBER,
    SHARE,
    SIZE,
    Schema,
    make_choice,
    make_list,
    make_nullable,
    make_object,
    ref,
)
from camserve.protocol.options import OPTIONS


def write_schemas(served: Served) -> dict[str, Schema]:
    """Writes every named schema of one archive."""
    config = served.config
    return {
        **_options(served),
        **_images(config),
        **_requests(served),
        **_answers(served),
        **_kserve_requests(served),
        **_kserve_answers(served),
        **{f"Error{status}": _error(status) for status in KINDS},
        "ServerError": make_object(code={"type": "integer"}, type=ID, message=ID) | {"description": "TorchServe's own."},
        "Metadata": _metadata(served),
    }


def _options(served: Served) -> dict[str, Schema]:
    """Writes every option as JSON spells it; those that take lists also as headers and form fields do (`target_text`)."""
    named: dict[str, Schema] = {}
    for option in (row.of(served) for row in OPTIONS):
        usual = option.default(served) if option.default else None
        default = {} if usual is None else {"default": list(usual) if isinstance(usual, tuple) else usual}
        named[option.name] = {"description": _sentence(option.meaning), **option.values.schema, **default}
        if option.in_text:
            form = "targets" if option.labels else option.name
            several = option.values.schema.get("anyOf", [option.values.schema])
            kinds = [_as_text(kind, form) if kind["type"] == "array" else kind for kind in several]
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
    row = make_list(NUMBER, 1, 4096)
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
            **make_list(make_list(row, 1, 4096), config.channels, config.channels),
        },
        "Image": {"anyOf": [ref("Picture"), ref("Tensor")]} if config.takes_pictures else {"anyOf": [ref("Tensor"), array]},
    }


def _match_layers(served: Served) -> Schema:
    """Writes that several layers go with the method that takes them, and it with several, where it is offered."""
    if REFINECAM not in served.methods:
        return {}
    one: Schema = {"properties": {"layer": {"enum": list(served.layers)}}, "required": ["layer"]}
    several: Schema = {"required": ["layer"], "not": one}
    refines: Schema = {"properties": {"method": {"const": REFINECAM}}}
    asked = {**refines, "required": [] if served.config.method == REFINECAM else ["method"]}
    return {"allOf": [{"if": asked, "then": {"not": one}}, {"if": several, "then": refines}]}


def _requests(served: Served) -> dict[str, Schema]:
    config = served.config
    one_of_two = {"not": {"required": ["target", "top_k"]}, **_match_layers(served)}
    file: Schema = {"description": "The picture's file.", "type": "string", "contentMediaType": "image/*", "format": "file"}
    if not config.takes_pictures:
        file = {"description": "The tensor's .npy file.", "type": "string", "contentMediaType": "application/x-npy"}
    instance = make_object(("data",), data=ref("Image"), **refer_to_options())
    v1 = {**refer_to_options(), "format": {"const": "json"}}
    wrapped = make_object(("b64",), b64=ref("Picture"))
    places = {
        "data": {"anyOf": [ref("Image"), wrapped]},
        "b64": ref("Picture"),
        "image_bytes": {"anyOf": [ref("Picture"), wrapped]},
    }
    tagged = [make_object((name,), **{name: kind}, **v1) | one_of_two for name, kind in places.items()]
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
        "ExplanationForm": make_object(("data",), data=file, **refer_to_options(text=True)) | one_of_two,
        "Instance": {"anyOf": [*tagged, ref("Image")]},
        "V1Request": make_object(
            ("instances",), instances=make_list(ref("Instance"), 1, config.max_instances), signature_name=ID
        ),
    }


def _answers(served: Served) -> dict[str, Schema]:
    labels, listed = served.labels, served.listed
    most = (listed if served.scores == "softmax" else None) or len(labels)
    score = SHARE if served.scores != "none" else {"description": "The value, which is no probability.", **NUMBER}
    predictions: Schema = {"type": "object", "additionalProperties": score, "minProperties": 1, "maxProperties": most}
    rectangle = make_list(NUMBER, 4, 4)
    kind = {"index": {"type": "integer", "minimum": 0, "maximum": len(labels) - 1}, "label": ID, "probability": score}
    explanation = {
        "target": kind["index"],
        "label": ID,
        **({"direction": make_choice(("raises", "lowers"))} if served.scores == "none" else {}),
        "probability": score,
        "heatmap": {"description": "Rows at the layer's own resolution.", **make_list(make_list(SHARE, 1), 1)},
        "range": {"description": "The map's minimum and maximum before scaling.", **make_nullable(make_list(NUMBER, 2, 2))},
        "region": make_nullable(rectangle),
        "warnings": make_list(make_choice(("zero", "constant", "not_finite"))),
        "check": {"description": "How far the heatmap is borne out, where that was asked for.", **make_nullable(_check(score))},
        "inside": {"description": "What of the map lies inside, where an area was named.", **make_nullable(INSIDE)},
        "contours": {"description": "Contours of the heatmap, where levels were named.", **make_nullable(_contours())},
        "overlay": {"type": "string", "pattern": "^data:image/png;base64,"},
    }
    always = [name for name in explanation if name not in {*BEYOND, "overlay"}]
    explained = {
        "classes": make_list(make_object(**kind), 1, most),
        "explanations": make_list(make_object(always, **explanation), 0 if served.scores == "sigmoid" else 1),
        "image": make_nullable(make_object(width=SIZE, height=SIZE, view=make_nullable(rectangle))),
        **{"method": ID, "layer": {"description": "Its name; of several, with commas between.", **ID}},
        **dict.fromkeys(("model", "version", "weights"), ID),
        **({"measured": make_nullable(_MEASURED)} if served.measurement else {}),
        **({} if served.scores == "softmax" else {"scores": {"const": served.scores}}),
        **({"threshold": {"const": served.config.threshold}} if served.scores == "sigmoid" else {}),
    }
    said = [name for name in explained if name != "measured"]
    return {
        "Predictions": predictions if listed else {"description": "Made by the archive's own handler."},
        "Answer": make_object(["predictions", *said], predictions=ref("Predictions"), **explained),
        "Explained": make_object(said, **explained),
        "V1Predictions": make_object(predictions=make_list(ref("Predictions"), 1)),
        "V1Explanations": make_object(predictions=make_list(ref("Predictions"), 1), explanations=make_list(ref("Explained"), 1)),
    }


INSIDE = make_object(share=SHARE, area=SHARE, peak=FLAG)
_FIGURE = make_object(mean=NUMBER, low=NUMBER, high=NUMBER)
_MEASURED = make_object(
    **dict.fromkeys(("chosen", "out"), FLAG), pictures=SIZE, score=_FIGURE, support=_FIGURE, made=ID, report=ID
)


def _contours() -> Schema:
    """A level and a GeoJSON geometry each, in the picture's pixels."""
    ring = make_list(make_list(NUMBER, 2, 2), 4)
    geometry = {"type": {"const": "MultiPolygon"}, "coordinates": make_list(make_list(ring, 1))}
    return make_list(make_object(level=SHARE, **geometry), 1, MOST_LEVELS)


def _check(score: Schema) -> Schema:
    """Scores by fill and share."""
    known = make_nullable(score)
    row = make_list(known, len(SHARES), len(SHARES))
    ways = [
        make_object(hidden=fills, shown=fills)
        for fills in (make_object(**dict.fromkeys(FILLS, row)), make_object(blur=row), make_object(mean=row))
    ]
    areas = dict.fromkeys(("support", "deletion", "insertion"), make_nullable(NUMBER))
    others = {"brightest": ways[0], "random": ways[1], "moved": ways[2], "empty": make_object(**dict.fromkeys(FILLS, known))}
    return make_object(verdict=make_choice(VERDICTS), **areas, shares=make_list(SHARE, len(SHARES), len(SHARES)), **others)


def _kserve_requests(served: Served) -> dict[str, Schema]:
    config = served.config
    count = {**SIZE, "maximum": config.max_instances}
    size = {**SIZE, "maximum": 4096}
    foreign: Mapping[str, Schema] = {name: {} for name in sorted(FOREIGN_PARAMETERS - {"binary_data_output"})}
    options = {**refer_to_options(text=True), "format": {"const": "json"}, "overlay": {"const": False}}
    parameters = make_object((), **options, binary_data_output={"type": "boolean"}, **foreign)
    shape = {"type": "array", "prefixItems": [count, {"const": 1}], "items": False, "minItems": 1}
    fp32 = {"type": "array", "prefixItems": [count, {"const": config.channels}, size, size], "items": False, "minItems": 4}
    head = {"name": ID, "parameters": ref("V2Parameters"), "data": {"type": "array"}}
    kinds = [
        make_object(("name", "shape", "datatype"), **head, shape=shape, datatype={"const": "BYTES"}),
        make_object(("name", "shape", "datatype"), **head, shape=fp32, datatype={"const": "FP32"}),
    ]
    binary = make_object((), binary_data={"type": "boolean"})
    return {
        "V2Parameters": {"description": "The options, for every image.", **parameters},
        "V2Input": {"description": "BYTES: base64. FP32: normalised tensors, flat or nested.", "oneOf": kinds},
        "V2InferRequest": _v2_request(_v2_outputs(served, explain=False), binary),
        "V2ExplainRequest": _v2_request(_v2_outputs(served, explain=True), binary),
    }


def _v2_outputs(served: Served, *, explain: bool) -> tuple[str, ...]:
    return list_outputs(explain=explain, values=served.scores == "none")


def _v2_request(outputs: Sequence[str], binary: Schema) -> Schema:
    asked = make_list(make_object(("name",), name=make_choice(outputs), parameters=binary))
    names = dict.fromkeys(("id", "model_name", "model_version"), ID)
    return make_object(
        ("inputs",), **names, parameters=ref("V2Parameters"), inputs=make_list(ref("V2Input"), 1, 1), outputs=asked
    )


def _kserve_answers(served: Served) -> dict[str, Schema]:
    """Several labels at once fill rows up: index and target -1, empty labels, and no probability."""
    filled = served.scores == "sigmoid"
    size = {**SIZE, "minimum": 0} if filled else SIZE
    values: dict[str, Mapping[str, Any]] = {}
    if served.scores == "none":
        values["probability"] = NUMBER
    elif filled:
        values["probability"] = make_nullable(SHARE)
    outputs = {
        name: make_object(
            ("name", "datatype", "shape"),
            name={"const": name},
            datatype={"const": tensor.datatype},
            shape=make_list(size, tensor.rank, tensor.rank),
            data=make_list(dict(values.get(name, tensor.value))),
            parameters=make_object(binary_data_size={"type": "integer", "minimum": 0}),
        )
        for name, tensor in OUTPUTS.items()
    }
    answers: dict[str, Schema] = {}
    for name, explain in (("V2Inferred", False), ("V2Explained", True)):
        several = make_list({"oneOf": [outputs[each] for each in _v2_outputs(served, explain=explain)]}, 1)
        names = dict.fromkeys(("id", "model_name", "model_version"), ID)
        beside = (
            {"parameters": make_object((), **dict.fromkeys(("method", "layer", "weights", "measured"), ID))} if explain else {}
        )
        answers[name] = make_object(("model_name", "model_version", "outputs"), **names, outputs=several, **beside)
    return answers


def _error(status: int) -> Schema:
    return make_object(code={"const": status}, type=make_choice(KINDS[status]), message=ID)


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
        "input_size": make_list(SIZE, 2, 2),
        "limits": {"type": "object", "additionalProperties": SIZE},
        "versions": {"type": "object", "additionalProperties": ID},
        "weights": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
        "openapi": {"description": "This document.", "type": "object"},
        "self_test": {"const": "ok"},
    }
    return {"type": "object", "properties": known, "required": list(known)}
