"""Calls become requests: where the image is, where the options are, and what is refused."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.labels import Labels
from camserve.core.messages import Call, Encoded, Options, Page, Request
from camserve.core.served import Served
from camserve.protocol.parser import Parser

NAMES = ("tench, Tinca tinca", "tabby", "Egyptian cat", "crane", "crane", "tête-bêche")
PARSER = Parser(Served(Config(max_targets=3), Labels(6, {str(i): name for i, name in enumerate(NAMES)}), ("layer4", "layer3")))
DEFAULTS = Options((), "gradcam++", "layer4", "viridis", 0.5)

JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\xfb\xff\xbe" + bytes(range(256)) + b"\xff\xd9"
TEXT = base64.b64encode(JPEG).decode()
TENSOR = [[[1, 2]], [[3, 4]], [[5, 6]]]
PLAIN = {"url_path": ""}
TYPE_JSON = {"content-type": "application/json"}
TYPE_FORM = {"content-type": "application/x-www-form-urlencoded"}
HTML = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"}
KINDS = {
    400: {
        *("InvalidJSON", "InvalidBase64", "InvalidTensor", "NoImage", "NoPicture", "UnknownOption", "InvalidOption"),
        "UnknownLabel",
    },
    406: {"NotAcceptable"},
    413: {"TooManyInstances"},
}


def parse(fields: dict[str, Any], headers: dict[str, Any] | None = None, explain: bool = True) -> Request:
    """The request that a call on a plain route becomes."""
    request = PARSER.parse(Call(explain, PLAIN | (headers or {}), fields))
    assert isinstance(request, Request)
    assert (request.explain, len(request.items)) == (explain, 1)
    return request


def asked(fields: dict[str, Any], headers: dict[str, Any] | None = None) -> Options:
    """The options of a call for one explanation of the picture."""
    request = parse(fields, headers)
    assert request.items[0].image == Encoded(JPEG)
    return request.items[0].options


def refused(fields: dict[str, Any], headers: dict[str, Any] | None = None, explain: bool = True) -> RequestError:
    """The error that a call is refused with."""
    with pytest.raises(RequestError) as caught:
        PARSER.parse(Call(explain, PLAIN | (headers or {}), fields))
    assert caught.value.kind in KINDS[caught.value.status]
    assert caught.value.message.isprintable()
    return caught.value


PICTURES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "curl -T": ({"body": bytearray(JPEG)}, {}),
    "octet-stream": ({"body": bytearray(JPEG)}, {"content-type": "application/octet-stream"}),
    "a picture that says it is JSON": ({"body": bytearray(JPEG)}, TYPE_JSON),
    "multipart file": ({"data": bytearray(JPEG)}, {"content-type": "multipart/form-data; boundary=x"}),
    "multipart field body": ({"body": bytearray(JPEG), "target": b"1"}, {}),
    "multipart, empty data and body": ({"data": bytearray(), "body": bytearray(JPEG)}, {}),
    "multipart base64": ({"data": bytearray(TEXT.encode())}, {}),
    "multipart text part": ({"data": TEXT}, {}),
    "multipart text part with quotes": ({"data": f'"{TEXT}"'}, {}),
    "gRPC": ({"data": JPEG}, {}),
    "text of base64": ({"body": TEXT}, {"content-type": "text/plain"}),
    "text of quoted base64": ({"body": f'"{TEXT}"'}, {"content-type": "text/plain"}),
    "JSON string": ({"body": TEXT}, TYPE_JSON),
    "JSON base64": ({"body": {"data": TEXT}}, TYPE_JSON),
    "JSON data URL": ({"body": {"data": f"data:image/jpeg;base64,{TEXT}"}}, TYPE_JSON),
    "JSON without a content type": ({"body": bytearray(json.dumps({"data": TEXT}).encode())}, {}),
    "JSON after whitespace": ({"body": b"\r\n\t {" + json.dumps({"data": TEXT}).encode()[1:]}, {}),
    "JSON undecoded by the host": ({"body": bytearray(json.dumps({"data": TEXT}).encode())}, TYPE_JSON),
    "JSON in a text body": ({"body": json.dumps({"data": TEXT})}, {"content-type": "text/plain"}),
    "JSON string undecoded": ({"body": json.dumps(TEXT).encode()}, {"content-type": "application/vnd.x+json; charset=utf-8"}),
    "urlencoded base64": ({"data": bytearray(TEXT.replace("+", " ").encode())}, TYPE_FORM),
    "garbage in a header of KServe's": ({"body": bytearray(JPEG)}, {"inference-header-content-length": "99999"}),
}


@pytest.mark.parametrize("explain", [True, False])
@pytest.mark.parametrize("form", PICTURES)
def test_every_way_to_send_a_picture(form: str, explain: bool) -> None:
    """Each form that the contract lists, as TorchServe hands it over, holds the same bytes; defaults are asked of it."""
    fields, headers = PICTURES[form]
    options = {"target": (1,)} if explain and "target" in fields else {}
    (item,) = parse(fields, headers, explain).items
    assert item.image == Encoded(JPEG)
    assert item.options == Options(**{**vars(DEFAULTS), **({"targets": (1,)} if options else {})})


@pytest.mark.parametrize(
    "body",
    [
        *(TENSOR, {"data": TENSOR}, json.dumps(TENSOR).encode(), json.dumps({"data": TENSOR}).encode()),
        {"data": json.dumps(TENSOR)},
    ],
)
def test_tensor(body: object) -> None:
    """A bare list, or one under `data`, is a normalised tensor, float32."""
    image = parse({"body": body}).items[0].image
    assert isinstance(image, np.ndarray)
    assert image.dtype == np.float32
    assert image.tolist() == TENSOR


@pytest.mark.parametrize(
    ("fields", "headers", "kind", "gist"),
    [
        ({}, {}, "NoImage", "the body is empty; send the picture's bytes (curl -T cat.jpg)"),
        ({"body": bytearray()}, {}, "NoImage", "the body is empty"),
        ({"body": " \r\n"}, {}, "NoImage", "the body is empty"),
        ({"body": bytearray(b"\n")}, TYPE_JSON, "NoImage", "the body is empty"),
        ({"body": None}, TYPE_JSON, "NoImage", "the body: expected base64, a data: URL or a tensor [3][H][W], got null"),
        ({"body": 5}, TYPE_JSON, "NoImage", "got 5"),
        ({"body": True}, TYPE_JSON, "NoImage", "got true"),
        ({"body": {}}, TYPE_JSON, "NoImage", "the JSON object has no data, only {}"),
        ({"body": {"image": TEXT, "b64": 1}}, TYPE_JSON, "NoImage", 'no data, only "image" or "b64"'),
        ({"body": {"data": None}}, TYPE_JSON, "NoImage", "data: expected base64"),
        ({"body": {"data": {"data": TEXT}}}, TYPE_JSON, "NoImage", "got an object of 1"),
        ({"body": {"data": ""}}, TYPE_JSON, "NoImage", "data: no image came"),
        ({"body": bytearray(b'{"data": x}')}, TYPE_JSON, "InvalidJSON", "line 1, column 10 (character 9)"),
        ({"body": bytearray(b'{"data": x}')}, {}, "InvalidJSON", "character 9"),
        ({"body": bytearray(b"data")}, TYPE_JSON, "InvalidJSON", "character 0"),
        ({"body": "[" * 100_000}, {}, "InvalidJSON", "nested too deeply"),
        ({"body": {"data": "no base64!"}}, TYPE_JSON, "InvalidBase64", 'got "no base64!"'),
        ({"body": "no base64!"}, {}, "InvalidBase64", "the body: expected base64"),
        ({"data": bytearray(b"tabby")}, {}, "InvalidBase64", 'data: expected base64 or a data: URL of base64, got "tabby"'),
        ({"body": [[1, 2], [3, 4]]}, TYPE_JSON, "InvalidTensor", "got shape [2, 2]"),
        ({"body": []}, TYPE_JSON, "InvalidTensor", "data: expected a tensor [3][H][W]"),
        ({"body": {"data": [[[float("nan")]]] * 3}}, TYPE_JSON, "InvalidTensor", "not finite"),
        ({"target": b"1"}, {}, "NoImage", 'the form has no field data, only "target"; send the picture'),
        ({"image": bytearray(JPEG)}, {}, "NoImage", 'only "image"'),
        ({"data": None, "x": 1}, {}, "NoImage", "the form has no field data"),
        ({"data": bytearray(), "target": b"1"}, {}, "NoImage", "data: no image came"),
        ({"data": b"@cat.jpg"}, TYPE_FORM, "NoImage", '"@cat.jpg" is a file\'s name'),
        ({"\ufffd\ufffdJFIF\x00": b"", "x": b"\x00"}, TYPE_FORM, "NoImage", "-T cat.jpg or -F data=@cat.jpg"),
        (
            {'{"data": "/9j/4AAQ': b""},
            TYPE_FORM | {"content-type": TYPE_FORM["content-type"] + "; charset=utf-8"},
            "NoImage",
            "-H",
        ),
    ],
)
@pytest.mark.parametrize("explain", [True, False])
def test_no_image_or_a_bad_one(fields: dict[str, Any], headers: dict[str, str], kind: str, gist: str, explain: bool) -> None:
    """Each wrong body is a 400 of its kind, for predictions too, that says what came or how to send a picture."""
    error = refused(fields, headers, explain)
    assert (error.status, error.kind) == (400, kind)
    assert gist in error.message
    assert len(error.message) < 300


def test_page() -> None:
    """A browser's GET of an explanation, an empty body and HTML preferred, is the page; nothing else is."""
    for fields in ({"body": bytearray()}, {"body": ""}, {}):
        assert PARSER.parse(Call(True, PLAIN | HTML, fields)) == Page()
        assert refused(fields, HTML, explain=False).kind == "NoImage"
        assert refused(fields, {"accept": "*/*"}).kind == "NoImage"
        assert refused(fields, {"accept": "?"}).kind == "NoImage"
    assert parse({"body": JPEG}, HTML).items[0].options.media == "webp"
    assert refused({"body": {}}, HTML).kind == "NoImage"


SPELT = {
    "targets": ("target", "tabby", (1,)),
    "top_k": ("top_k", "3", 3),
    "method": ("method", "hirescam", "hirescam"),
    "layer": ("layer", "layer3", "layer3"),
    "media": ("format", "webp", "webp"),
    "overlay": ("overlay", "true", True),
    "colormap": ("colormap", "turbo", "turbo"),
    "opacity": ("opacity", "0.25", 0.25),
}


@pytest.mark.parametrize("field", SPELT)
def test_options_by_json_field_and_header(field: str) -> None:
    """Every option does the same as a JSON key, as a form field and as a header."""
    name, text, value = SPELT[field]
    for options in (
        asked({"body": {"data": TEXT, name: text if isinstance(value, (str, tuple)) else value}}, TYPE_JSON),
        asked({"data": JPEG, name: bytearray(text.encode())}),
        asked({"data": JPEG, name: text}),
        asked({"body": JPEG}, {"x-explain-" + name.replace("_", "-"): text}),
        asked({"body": JPEG}, {"x-explain-" + name: text}),
    ):
        assert getattr(options, field) == value
        assert Options(**{**vars(options), field: getattr(DEFAULTS, field)}) == DEFAULTS


def test_body_beats_header() -> None:
    """An option in the body replaces the header's, even a bad one; options of other names add up."""
    headers = {"x-explain-target": "crane", "x-explain-opacity": "0.1"}
    options = asked({"body": {"data": TEXT, "target": 2}}, headers)
    assert (options.targets, options.opacity) == ((2,), 0.1)
    assert asked({"data": JPEG, "target": b"2"}, headers).targets == (2,)
    assert asked({"body": {"data": TEXT, "target": 2}}, {"x-explain-top-k": "3"}).targets == (2,)
    assert refused({"body": {"data": TEXT, "target": 2, "top_k": 1}}).kind == "InvalidOption"


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"body": {"data": TEXT, "traget": 1}}, {}),
        ({"data": JPEG, "traget": b"1"}, {}),
        ({"body": JPEG}, {"x-explain-traget": "1"}),
    ],
)
def test_unknown_options(fields: dict[str, Any], headers: dict[str, str]) -> None:
    """An unknown option is a 400 wherever it stands, that names the nearest; for predictions it is nothing."""
    error = refused(fields, headers)
    assert error.kind == "UnknownOption"
    assert "did you mean target?" in error.message
    parse(fields, headers, explain=False)


def test_predictions_ignore_options_and_accept() -> None:
    """On plain routes neither bad options nor an impossible `Accept` keep predictions from being made."""
    headers = {"accept": "text/html;q=7", "x-explain-top-k": "many", "x-explain-foo": "1", "x-explain-format": "gif"}
    for fields in ({"body": JPEG}, {"data": JPEG, "target": b"\xff", "foo": 1}, {"body": {"data": TEXT, "opacity": [], "": 0}}):
        (item,) = parse(fields, headers, explain=False).items
        assert (item.image, item.options) == (Encoded(JPEG), DEFAULTS)
    assert refused({"body": {"data": TENSOR}}, {"x-explain-format": "png"}).kind == "NoPicture"
    parse({"body": {"data": TENSOR}}, {"x-explain-format": "png"}, explain=False)


def test_accept() -> None:
    """`Accept` chooses where `format` does not; what cannot be met is a 406."""
    assert asked({"body": JPEG}, {"accept": "image/png"}).media == "png"
    assert asked({"body": JPEG}, {"accept": "image/png", "x-explain-format": "npy"}).media == "npy"
    assert refused({"body": JPEG}, {"accept": "text/csv"}).status == 406


def test_headers_that_are_no_text_are_skipped() -> None:
    """TorchServe puts an entry for each form field among the headers; it is no header, whatever its name."""
    odd = {"accept": {"content-type": "a/b"}, "x-explain-target": {"content-type": "x"}, "content-type": None}
    assert asked({"body": JPEG}, odd) == DEFAULTS


def test_protocols_are_told_apart_by_their_bodies() -> None:
    """`instances` makes V1 and `inputs` V2, on any route; with `data` beside them they are unknown options."""
    assert PARSER.parse(Call(True, PLAIN, {"body": {"instances": [TEXT]}})).protocol == "v1"  # type: ignore[union-attr]
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]}
    assert PARSER.parse(Call(True, {}, {"body": json.dumps(body).encode()})).protocol == "v2"  # type: ignore[union-attr]
    for name in ("instances", "inputs"):
        assert refused({"body": {"data": TEXT, name: []}}).kind == "UnknownOption"
        assert parse({"body": {"data": TEXT, name: []}}, explain=False).protocol == "plain"


@pytest.mark.parametrize("length", ["", "-1", "x", "99999", "1" * 5000, "٣", "1.0", " 1"])
def test_bad_length_of_the_json_part(length: str) -> None:
    """KServe's header must be a length within the body."""
    error = refused({"body": b'{"inputs": []}'}, {"inference-header-content-length": length})
    assert error.kind == "InvalidJSON"
    assert "a whole number up to 14" in error.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([TEXT, "tabby", "[1]"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("data", "b64", "instances", "inputs", "parameters", "outputs", "shape", "datatype", "id", "name"),
                    *("target", "top_k", "format", "overlay", "opacity", "binary_data_size", "x"),
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("accept", "content-type", "x-explain-target", "x-explain-top-k", "x-explain-opacity", "x-explain-\r\n"),
            *("inference-header-content-length", "explain", "url_path", "describe"),
        ]
    ),
    st.text(max_size=20)
    | st.sampled_from(["text/html", "application/json", "[0]", "1", "12", TYPE_FORM["content-type"]])
    | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=1),
    max_size=4,
)


def outcome_of(call: Call) -> object:
    """What `call` becomes, errors included."""
    try:
        return PARSER.parse(call)
    except RequestError as error:
        return error


def survives(call: Call) -> None:
    """`call` becomes a request, the page, or an error of a kind that the contract lists."""
    outcome = outcome_of(call)
    if isinstance(outcome, RequestError):
        assert outcome.kind in KINDS[outcome.status]
        assert outcome.message.isprintable()
        assert len(outcome.message) < 600
    else:
        assert isinstance(outcome, (Request, Page))


@given(st.booleans(), HEADERS, JSON, st.booleans())
@settings(max_examples=120)
def test_any_json_body(explain: bool, headers: dict[str, Any], body: object, parsed: bool) -> None:
    """Any JSON value, parsed by the host or not, with any headers, is answered or refused in an orderly way."""
    survives(Call(explain, headers, {"body": body if parsed else json.dumps(body).encode()}))


@given(st.booleans(), HEADERS, st.binary() | st.text())
@settings(max_examples=120)
def test_any_bytes(explain: bool, headers: dict[str, Any], body: bytes | str) -> None:
    """So are any bytes and any text."""
    survives(Call(explain, headers, {"body": body}))


@given(
    st.booleans(),
    HEADERS,
    st.dictionaries(st.sampled_from(["data", "body", "target", "overlay", "top_k", "é\n"]), st.binary(max_size=20) | JSON),
)
@settings(max_examples=120)
def test_any_form(explain: bool, headers: dict[str, Any], fields: dict[str, Any]) -> None:
    """And any form."""
    survives(Call(explain, headers, fields))


@pytest.mark.parametrize(
    "body", [b"[" * 1_000_000, b'{"data":' * 200_000, b'{"data":"' + b"A" * 2_000_000, b"{" + b" " * 2_000_000]
)
def test_hostile_bodies(body: bytes) -> None:
    """Megabytes of depth, and of nothing, are refused; were they costly, this would hang."""
    assert refused({"body": body}).kind == "InvalidJSON"


def test_deep_json_that_the_host_has_parsed() -> None:
    """Depth that got through the host's own parser ends in a 400 as well."""
    deep: Any = []
    for _ in range(50_000):
        deep = [deep]
    for body in (deep, {"data": deep}, {"data": TEXT, "target": deep}, {"instances": [deep]}, {"inputs": deep}):
        assert refused({"body": body}).status == 400


def test_imports_no_torch() -> None:
    """Reading requests and writing replies needs none of the heavy libraries."""
    code = "import sys, camserve.protocol.parser, camserve.protocol.reply; print([m for m in ('torch', 'ts', 'cv2', 'PIL') if m in sys.modules])"
    path = str(Path(__file__).resolve().parents[2] / "handlers")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": path})
    assert done.stdout.strip() == "[]"
