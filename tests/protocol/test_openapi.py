"""The OpenAPI document: valid, drawn from the live configuration, and true of the answers."""

from __future__ import annotations

import base64
import copy
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from tests.support import build, strategies
from tests.support.build import archive
from tests.support.processes.waiting import HANG
from tests.support.skip_report import OLD_PYTHON

from camserve.core.config import Config
from camserve.core.errors import KINDS, RequestError
from camserve.core.labels import Labels
from camserve.core.messages import CONTENT_TYPES, ModelInfo
from camserve.core.served import Served
from camserve.protocol.openapi.document import describe_api
from camserve.protocol.options import OptionReader
from camserve.tools.archive.archive import Response, Row, ask, load_service
from camserve.tools.commands.serve import Server

MODEL = ModelInfo("cats", "1.0", "sha256:9f86d081884c")
LAYERS = ("layer4", "layer3")
CONFIG = Config(max_targets=4, max_instances=3, method="hirescam", opacity=0.25, formats=("jpeg", "png"))
JSON = "application/json"

BOUNDED = settings(
    max_examples=150,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def describe(config: Config = CONFIG, listed: int | None = 3) -> dict[str, Any]:
    """The document of a model of three classes."""
    return describe_api(Served(config, Labels(3), LAYERS, MODEL, listed))


# ------------------------------------------------------------------ the document by itself


@pytest.mark.parametrize("listed", [3, None])
@pytest.mark.parametrize(
    "config", [Config(), CONFIG, Config(channels=1), Config(channels=5)], ids=["defaults", "own", "grey", "tensors"]
)
def test_the_document_is_valid(config: Config, listed: int | None) -> None:
    """By the OpenAPI 3.1 specification; it is JSON, and every operation has a name of its own."""
    document = describe(config, listed)

    validate(document)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    names = [part["operationId"] for path in document["paths"].values() for method, part in path.items() if method in METHODS]
    assert len(names) == len(set(names)) == 14


METHODS = ("get", "post", "put")


def test_the_options_are_those_that_are_read() -> None:
    """The same names in the same order, as JSON keys, form fields, headers and V2 parameters."""
    document = describe()["components"]
    names = list(OptionReader(Served(CONFIG, Labels(3), LAYERS)).table)
    spelt = [f"X-Explain-{name.replace('_', '-').title()}" for name in names]

    assert list(document["schemas"]["ExplanationRequest"]["anyOf"][0]["properties"]) == ["data", *names]
    assert list(document["schemas"]["ExplanationForm"]["properties"]) == ["data", *names]
    assert list(document["schemas"]["V2Parameters"]["properties"])[: len(names)] == names
    assert [document["parameters"][name]["name"] for name in names] == spelt


def test_ranges_and_choices_are_the_configurations() -> None:
    """Limits, layers, defaults, labels and formats of this archive, not of some other."""
    document = describe()
    schemas = document["components"]["schemas"]

    assert schemas["top_k"] | {"minimum": 1, "maximum": 4, "default": 1} == schemas["top_k"]
    assert schemas["layer"] | {"enum": ["layer4", "layer3"], "default": "layer4"} == schemas["layer"]
    assert schemas["method"]["default"] == "hirescam"
    assert schemas["opacity"] | {"type": "number", "minimum": 0, "maximum": 1, "default": 0.25} == schemas["opacity"]
    assert schemas["format"]["enum"] == list(CONTENT_TYPES)
    assert schemas["target"]["anyOf"][0] == {"type": "integer", "minimum": 0, "maximum": 2}
    assert schemas["target"]["anyOf"][2]["maxItems"] == 4
    assert schemas["V1Request"]["properties"]["instances"]["maxItems"] == 3
    assert {kind for kind in document["components"]["requestBodies"]["Explanation"]["content"] if kind.startswith("image/")} == {
        "image/jpeg",
        "image/png",
    }
    assert {path["parameters"][0]["$ref"] for path in document["paths"].values()} == {"#/components/parameters/model"}
    assert document["components"]["parameters"]["model"]["schema"]["enum"] == ["cats"]


SEVERAL: list[dict[str, Any]] = [
    *({}, {"layer": "layer3"}, {"layer": ["layer3", "layer4"]}, {"layer": ["layer3"]}, {"layer": ["layer3", "layer9"]}),
    *({"method": "refinecam"}, {"method": "gradcam"}, {"method": "gradcam", "layer": "layer3"}),
    *({"method": method, "layer": ["layer3", "layer4"]} for method in ("gradcam", "refinecam")),
    {"method": "refinecam", "layer": "layer3"},
]


@pytest.mark.parametrize("method", ["hirescam", "refinecam"])
def test_several_layers_go_with_their_method(method: str) -> None:
    """The document allows what the reader takes, and nothing else; where the method is not offered it does not name it."""
    served = Served(Config(method=method), Labels(3), LAYERS, MODEL, 3, together=("layer3", "layer4"))
    reader, document = OptionReader(served), describe_api(served)
    validate(document)
    request = {"$ref": "#/components/schemas/ExplanationRequest"}
    schema = jsonschema.Draft202012Validator({**request, "components": document["components"]})
    data = base64.b64encode(build.encoded(build.noise())).decode()
    for asked in SEVERAL:
        try:
            reader.read(reader.from_values(asked, "json"), None, False)
            taken = True
        except RequestError:
            taken = False
        assert schema.is_valid({"data": data, **asked}) is taken, asked
    assert "refinecam" not in json.dumps(describe()["components"]["schemas"]["method"]["enum"])


def test_every_error_is_listed() -> None:
    """Each status with its types, and for explanations every status that can come."""
    document = describe()
    responses = document["paths"]["/explanations/{model}"]["post"]["responses"]

    for status, kinds in KINDS.items():
        assert document["components"]["schemas"][f"Error{status}"]["properties"]["type"]["enum"] == list(kinds)
        assert str(status) in responses
    assert {"404", "503"} < set(responses)


# ------------------------------------------------------------------ answers in this process


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small classifier with seven classes and labels that attack."""
    return load_service(archive(tmp_path_factory.mktemp("one") / "bright", classes=7, labels=strategies.LABELS))


@cache
def ask_for_document(service: Any) -> dict[str, Any]:
    """The document as the service ships it."""
    (response,) = ask(service, [Row({}, {"describe": "True"}, explain=None)])
    document: dict[str, Any] = json.loads(response.body)["openapi"]
    return document


def resolve(node: Any, document: Mapping[str, Any]) -> Any:
    """What a reference stands for."""
    while "$ref" in node:
        target: Any = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def check_schema(value: object, schema: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    """Raises unless the value has the schema."""
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def path_of(row: Row) -> str:
    """The route on which a request belongs: V1 and V2 are told apart by their bodies."""
    body = row.fields.get("body")
    if isinstance(body, bytearray) and body.lstrip()[:1] == b"{":
        body = json.loads(body)
    if isinstance(body, dict) and "data" not in body and "instances" in body:
        return "/v1/models/{model}:" + ("explain" if row.explain else "predict")
    if isinstance(body, dict) and "data" not in body and "inputs" in body:
        return "/v2/models/{model}/" + ("explain" if row.explain else "infer")
    return ("/explanations" if row.explain else "/predictions") + "/{model}"


def check(response: Response, row: Row, document: Mapping[str, Any]) -> None:
    """Status, content type, headers and body are what the document says of this route."""
    operation = document["paths"][path_of(row)]["post"]
    documented = resolve(operation["responses"][str(response.status)], document)
    media = documented["content"][response.content_type]
    names = resolve(documented.get("headers", {}), document)
    for name, value in response.headers.items():
        if name.startswith("x-explain") or name.startswith("inference"):
            header = resolve(names[name], document)
            check_schema(json.loads(value), header.get("schema") or header["content"][JSON]["schema"], document)
    if response.content_type == JSON:
        check_schema(json.loads(response.body), media["schema"], document)
    elif response.content_type == "application/octet-stream":
        length = int(response.headers["inference-header-content-length"])
        check_schema(json.loads(response.body[:length]), documented["content"][JSON]["schema"], document)


@BOUNDED
@given(row=strategies.rows())
def test_answers_are_those_of_the_document(service: Any, row: Row) -> None:
    """Whatever is asked, good or bad: a documented status and content type, with the body and headers it describes."""
    (response,) = ask(service, [row])

    check(response, row, ask_for_document(service))


@BOUNDED
@given(row=strategies.rows())
def test_what_is_answered_is_documented(service: Any, row: Row) -> None:
    """A JSON body that gets a 200 is one that the document describes: it forbids nothing that is allowed."""
    body = row.fields.get("body")
    if isinstance(body, bytearray) and body.startswith((b"{", b"[")):
        body = json.loads(body)
    if isinstance(body, (dict, list)) and ask(service, [row])[0].status == 200:
        document = ask_for_document(service)
        request = resolve(document["paths"][path_of(row)]["post"]["requestBody"], document)
        check_schema(body, request["content"][JSON]["schema"], document)


def test_every_example_is_answered(service: Any) -> None:
    """Each body that the document shows gets a 200."""
    document = ask_for_document(service)
    shown = 0
    for path, item in document["paths"].items():
        body = resolve(item.get("post", {}).get("requestBody", {}), document)
        for example in body.get("content", {}).get(JSON, {}).get("examples", {}).values():
            explain = "expla" in path
            row = Row({"body": example["value"]}, explain=explain)
            (response,) = ask(service, [row])
            assert response.status == 200, response.body
            assert path_of(row) == path.replace("/{version}", "")
            check(response, row, document)
            shown += 1
    assert shown == 8


def test_a_map_that_is_zero_and_a_tensor_fit_too(service: Any) -> None:
    """Answers with null in them: no region, no image, no view."""
    black = build.encoded(build.square(64, 64, 0, 0, 0))
    tensor = strategies.TENSORS[0]
    rows = [
        Row({"body": black}, {"X-Explain-Target": "0"}, explain=True),
        Row({"body": black}, {"X-Explain-Target": "[0, 1]", "Accept": "image/png"}, explain=True),
        Row({"body": tensor}, {"Accept": "application/x-npy"}, explain=True),
        Row({"body": {"instances": [tensor]}}, explain=True),
        Row(
            {"body": {"inputs": [{"name": "x", "shape": [1, *np.shape(tensor)], "datatype": "FP32", "data": [tensor]}]}},
            explain=True,
        ),
    ]
    for row, response in zip(rows, ask(service, rows), strict=True):
        assert response.status == 200
        check(response, row, ask_for_document(service))


# ------------------------------------------------------------------ a live server


LABELS = {
    "hostile": sorted(build.HOSTILE.values()),
    "efficientnet_lite0": ["tabby", "espresso"],
    "resnet18": ["tabby", "espresso"],
}


@cache
def schema(live: Server, model: str) -> Any:
    """A model's document, from the management port, as schemathesis reads it; picture files and labels are real ones."""
    import schemathesis

    (description,) = requests.get(f"{live.management_url}/models/{model}?customized=true", timeout=HANG).json()
    document = copy.deepcopy(description["customizedMetadata"]["openapi"])
    for name in ("V2Infer", "V2Explain"):  # their binary bodies are no picture files; test_kserve_live sends them
        del document["components"]["requestBodies"][name]["content"]["application/octet-stream"]
    files = [each for each in strategies.PICTURES if len(each) < 10_000]
    text = [base64.b64encode(each).decode() for each in files]
    schemathesis.openapi.format("picture", st.sampled_from(text))
    schemathesis.openapi.format("file", st.sampled_from(text))
    schemathesis.openapi.format("label", st.sampled_from(LABELS[model]))
    schemathesis.openapi.format("targets", st.sampled_from(["[0]", "[0, 2]", " [ 1 ] "]))
    schemathesis.openapi.format("inside", st.sampled_from(["[0, 0, 1.5, 1.5]", " [1,2,30,40]"]))
    schemathesis.openapi.format("contours", st.sampled_from(["[0.5]", "[0.25, 0.75]"]))
    schemathesis.openapi.format("mask", st.sampled_from(text[:1]))
    for kind in ("png", "jpeg", "webp", "gif", "tiff", "bmp"):
        schemathesis.openapi.media_type(f"image/{kind}", st.sampled_from(files))
    schemathesis.openapi.media_type("application/octet-stream", st.sampled_from(files))
    array = io.BytesIO()
    np.save(array, np.asarray(strategies.TENSORS[0], np.float32))
    schemathesis.openapi.media_type("application/x-npy", st.just(array.getvalue()))
    return schemathesis.openapi.from_dict(document)


OPERATIONS = (
    *(("/predictions/{model}", "post"), ("/explanations/{model}", "post"), ("/explanations/{model}", "get")),
    *(("/predictions/{model}/{version}", "put"), ("/explanations/{model}/{version}", "put")),
    *((f"/v1/models/{{model}}:{verb}", "post") for verb in ("predict", "explain")),
    *((f"/v2/models/{{model}}/{verb}", "post") for verb in ("infer", "explain")),
    ("/models/{model}", "get"),
)
ASKED = [("hostile", *operation) for operation in OPERATIONS]
ASKED += [
    (model, path, "post")
    for model in ("efficientnet_lite0", "resnet18")
    for path in ("/explanations/{model}", "/v1/models/{model}:explain", "/v2/models/{model}/explain")
]


@pytest.mark.live
@pytest.mark.skipif(sys.version_info < (3, 11), reason=OLD_PYTHON)
@pytest.mark.parametrize(("model", "path", "method"), ASKED)
def test_live_answers_are_those_of_the_document(live: Server, model: str, path: str, method: str) -> None:
    """Schemathesis' requests get documented statuses, content types, headers and bodies; what the document forbids is a 4xx."""
    import schemathesis
    from schemathesis.specs.openapi import checks

    base = live.management_url if path == "/models/{model}" else live.url
    fixed = {"model": model, "version": "1.0"} if "version" in path else {"model": model}
    every = [
        *(checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance),
        *(checks.response_headers_conformance, checks.negative_data_rejection),
    ]
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE][: 1 if method == "get" else 2]
    seen: Counter[int] = Counter()

    def asked(case: Any) -> None:
        response = case.call(base_url=base, timeout=HANG)
        # to this check a 413 is no refusal; what the body beats is not read, and a header that is null is not sent
        sent = {name.lower() for name in response.request.headers}
        rejects = (
            response.status_code != 413 and not _beats_headers(case) and sent >= {name.lower() for name in case.headers or {}}
        )
        case.validate_response(response, checks=every if rejects else every[:-1])
        seen[response.status_code] += 1
        if response.status_code >= 500:  # a form that TorchServe's own frontend cannot read never gets to the worker
            assert response.json()["type"] == "ErrorDataDecoderException"

    operation = schema(live, model)[path][method]
    for example in _examples(operation):
        asked(operation.Case(path_parameters=fixed, body=example, media_type=JSON))
    for mode in modes:
        strategy = operation.as_strategy(generation_mode=mode, path_parameters=fixed)
        settings(BOUNDED, max_examples=4)(given(strategy)(asked))()
    assert seen[200] or (path, method) == ("/explanations/{model}", "get")


def _beats_headers(case: Any) -> bool:
    """Whether the body gives an option that a header gives too."""
    given = {name.lower().removeprefix("x-explain-").replace("-", "_") for name in case.headers or {}}
    own = set(case.body) if isinstance(case.body, Mapping) else set()
    return bool(given & (own | {"target", "top_k"} if own & {"target", "top_k"} else own))


def _examples(operation: Any) -> list[Any]:
    """The bodies that the document shows of this operation."""
    content = resolve(operation.definition.raw.get("requestBody", {}), operation.schema.raw_schema).get("content", {})
    return [example["value"] for example in content.get(JSON, {}).get("examples", {}).values()]
