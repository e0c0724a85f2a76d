"""KServe V1 and V2 bodies, written by hand from the specifications, in and out."""

import base64
import json
import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.geometry import Rect
from camserve.core.labels import Labels
from camserve.core.messages import Answer, Call, Encoded, Explanation, ImageInfo, ModelInfo, Output, Reply, Request, Score
from camserve.core.served import Served
from camserve.protocol.parser import Parser
from camserve.protocol.reply import Responder

JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(range(256)) + b"\xff\xd9"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
TEXT = base64.b64encode(JPEG).decode()
TENSOR = [[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]]
PARSER = Parser(
    Served(Config(max_targets=3, max_instances=4), Labels(4, {"0": "a", "1": "b", "2": "c", "3": "285"}), ("top", "low"))
)
RESPONDER = Responder(
    Served(Config(max_response_bytes=100_000), Labels(4), ("top",), ModelInfo("cats", "1.0", "sha256:0123456789ab"))
)


def parse(body: object, headers: dict[str, str] | None = None, explain: bool = True) -> Request:
    """The request that a body on a KServe route becomes."""
    request = PARSER.parse(Call(explain, headers or {}, {"body": body}))
    assert isinstance(request, Request)
    assert request.explain is explain
    return request


def refused(body: object, headers: dict[str, str] | None = None, explain: bool = True) -> RequestError:
    """The error that a body is refused with."""
    with pytest.raises(RequestError) as caught:
        parse(body, headers, explain)
    assert caught.value.message.isprintable()
    return caught.value


def v2(data: Any = (TEXT,), **others: Any) -> dict[str, Any]:
    """A V2 body of BYTES, with `others` in place of, or beside, its parts; `input_` goes into the input."""
    tensor = {"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": list(data)} | others.pop("input_", {})
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]} | others


def with_binary(body: dict[str, Any], *tails: bytes) -> tuple[bytes, dict[str, str]]:
    """A body in the binary extension, and its headers."""
    head = json.dumps(body).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    return head + b"".join(tails), headers


def prefixed(*elements: bytes) -> bytes:
    """BYTES elements as the extension sends them."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


# V1


def test_v1_instances() -> None:
    """An instance is an object with `data` or `b64`, bare base64, a data: URL or a tensor, each with options of its own."""
    instances: list[object] = [
        {"data": TEXT, "target": [1, "a"], "method": "gradcam"},
        {"b64": TEXT, "top_k": 2, "format": "json"},
        f"data:image/jpeg;base64,{TEXT}",
        TENSOR,
    ]
    request = parse({"instances": instances, "signature_name": "serving_default"}, {"accept": "text/html;q=9"})
    assert request.protocol == "v1"
    assert [item.image for item in request.items[:3]] == [Encoded(JPEG)] * 3
    np.testing.assert_array_equal(request.items[3].image, np.array(TENSOR, np.float32))
    options = [item.options for item in request.items]
    assert [option.targets for option in options] == [(1, 0), (), (), ()]
    assert [option.top_k for option in options] == [1, 2, 1, 1]
    assert [option.method for option in options] == ["gradcam", "gradcam++", "gradcam++", "gradcam++"]
    assert {option.media for option in options} == {"json"}


def test_v1_instances_as_tensorflow_s_clients_write_them() -> None:
    """The picture wrapped once more, or under another name, with options beside it."""
    instances = [{"data": {"b64": TEXT}, "top_k": 3}, {"image_bytes": {"b64": TEXT}}, {"image_bytes": TEXT, "layer": "low"}]
    request = parse({"instances": instances})
    assert [item.image for item in request.items] == [Encoded(JPEG)] * 3
    assert [(item.options.top_k, item.options.layer) for item in request.items] == [(3, "top"), (1, "top"), (1, "low")]


def test_v1_headers_hold_for_every_instance() -> None:
    """An option in a header is every instance's, unless the instance says otherwise."""
    request = parse({"instances": [TEXT, {"data": TEXT, "layer": "top"}]}, {"x-explain-layer": "low"})
    assert [item.options.layer for item in request.items] == ["low", "top"]


@pytest.mark.parametrize(
    ("instance", "kind", "gist"),
    [
        ("no base64!", "InvalidBase64", "data: expected base64"),
        ({"b64": "no base64!"}, "InvalidBase64", "b64: expected base64"),
        ({"data": {"b64": "no base64!"}}, "InvalidBase64", "data.b64: expected base64"),
        ({"image_bytes": {"b64": 7}}, "InvalidBase64", "image_bytes.b64: expected base64, got 7"),
        ({"data": {"b64": TEXT, "target": 1}}, "NoImage", "got an object of 2"),
        ({"b64": {"b64": TEXT}}, "NoImage", "got an object of 1"),
        ({"data": TEXT, "image_bytes": TEXT}, "UnknownOption", 'unknown option "image_bytes"'),
        ({}, "NoImage", "expected an object with data, b64 or image_bytes, got only {}"),
        ({"image": TEXT}, "NoImage", 'expected an object with data, b64 or image_bytes, got only "image"'),
        (None, "NoImage", "got null"),
        (7, "NoImage", "got 7"),
        ([[1.0]], "InvalidTensor", "[3][H][W]"),
        ({"data": TEXT, "traget": 1}, "UnknownOption", 'unknown option "traget"; did you mean target?'),
        ({"data": TEXT, "b64": TEXT}, "UnknownOption", 'unknown option "b64"'),
        ({"data": TEXT, "target": "d"}, "UnknownLabel", "no class has the label"),
        ({"data": TEXT, "target": 4}, "InvalidOption", "from 0 to 3"),
        ({"data": TEXT, "target": "1"}, "UnknownLabel", "no class has the label"),
        ({"data": TEXT, "target": 1, "top_k": 1}, "InvalidOption", "got both"),
        ({"data": TEXT, "format": "png"}, "InvalidOption", "format: answers on KServe's routes are JSON"),
        ({"data": TENSOR, "overlay": True}, "NoPicture", "the input is a tensor"),
    ],
)
@pytest.mark.parametrize("explain", [True, False])
def test_v1_bad_instance(instance: object, kind: str, gist: str, explain: bool) -> None:
    """A bad instance is a 400 that starts with its index, counted from 0."""
    error = refused({"instances": [TEXT, instance]}, explain=explain)
    assert (error.status, error.kind) == (400, kind)
    assert error.message.startswith("instance 1: ")
    assert gist in error.message


def test_v1_as_a_whole() -> None:
    """No instances are a 400, too many a 413, and what stands beside `instances` is pointed at its place."""
    wrong: tuple[object, ...] = ([], {}, None, "x", 1)
    for instances in wrong:
        error = refused({"instances": instances})
        assert (error.status, error.kind) == (400, "NoImage")
        assert error.message.startswith("instances: expected a list of at least one")
    error = refused({"instances": [None] * 5})
    assert (error.status, error.kind) == (413, "TooManyInstances")
    assert "at most 4 images" in error.message
    assert len(parse({"instances": [TEXT] * 4}).items) == 4
    error = refused({"instances": [TEXT], "target": 1})
    assert error.kind == "UnknownOption"
    assert "inside each instance" in error.message


def test_v1_overlay() -> None:
    """An overlay may be asked for: it travels in the JSON."""
    assert parse({"instances": [{"data": TEXT, "overlay": True}]}).items[0].options.overlay


# V2


def test_v2_bytes() -> None:
    """BYTES `[n]` of base64 are n pictures; parameters ask the same of each, lists as JSON strings."""
    parameters = {"target": '["b", 0]', "opacity": 0.25, "content_type": "base64", "headers": {}, "priority": 1}
    body = v2([TEXT, f"data:;base64,{TEXT}"], id="x-1", parameters=parameters, model_name="cats", outputs=None)
    request = parse(body, {"accept": "image/png", "x-explain-opacity": "1", "x-explain-layer": "low"})
    assert (request.protocol, request.id, request.outputs, request.binary) == ("v2", "x-1", (), False)
    assert [item.image for item in request.items] == [Encoded(JPEG)] * 2
    for item in request.items:
        assert (item.options.targets, item.options.opacity, item.options.layer) == ((1, 0), 0.25, "low")
        assert item.options.media == "json"


def test_v2_input_parameters_beat_the_requests() -> None:
    """An input's own parameters come last."""
    request = parse(v2(input_={"parameters": {"top_k": 2}}, parameters={"top_k": 3, "colormap": "jet"}))
    assert (request.items[0].options.top_k, request.items[0].options.colormap) == (2, "jet")
    assert parse(v2(parameters={"target": "285"})).items[0].options.targets == (3,)


def test_target_and_top_k_are_one_choice() -> None:
    """What stands nearer to the picture makes it."""
    headers = {"x-explain-top-k": "2"}
    (item,) = parse({"instances": [{"data": TEXT, "target": 1}]}, headers).items
    assert (item.options.targets, item.options.top_k) == ((1,), 1)
    body = v2()
    body["parameters"] = {"target": 1}
    (item,) = parse(body, headers).items
    assert (item.options.targets, item.options.top_k) == ((1,), 1)
    body["inputs"][0]["parameters"] = {"top_k": 3}
    (item,) = parse(body, headers).items
    assert (item.options.targets, item.options.top_k) == ((), 3)


def test_v2_column_of_bytes() -> None:
    """BYTES `[n, 1]`, flat or nested, are n pictures as well."""
    for data in ([TEXT, TEXT], [[TEXT], [TEXT]]):
        assert len(parse(v2(input_={"shape": [2, 1], "data": data})).items) == 2


@pytest.mark.parametrize("nested", [True, False])
def test_v2_fp32(nested: bool) -> None:
    """FP32 `[n, 3, H, W]`, nested or flat in row-major order, are n tensors."""
    numbers = np.arange(2 * 3 * 2 * 4, dtype=np.float32).reshape(2, 3, 2, 4) / 8
    data = (numbers if nested else numbers.ravel()).tolist()
    request = parse(v2(input_={"shape": [2, 3, 2, 4], "datatype": "FP32", "data": data}))
    np.testing.assert_array_equal(np.stack([np.asarray(item.image) for item in request.items]), numbers)


def test_v2_binary_inputs() -> None:
    """In the binary extension BYTES hold pictures, or base64 as in JSON, and FP32 are little-endian."""
    tail = prefixed(JPEG, PNG, TEXT.encode())
    body, headers = with_binary(
        v2(input_={"shape": [3], "data": None, "parameters": {"binary_data_size": len(tail)}}, id="7"), tail
    )
    request = parse(bytearray(body), headers)
    assert [item.image for item in request.items] == [Encoded(each) for each in (JPEG, PNG, JPEG)]
    assert request.id == "7"
    numbers = np.arange(24, dtype="<f4").reshape(1, 3, 2, 4)
    tensor = {"shape": [1, 3, 2, 4], "datatype": "FP32", "data": None, "parameters": {"binary_data_size": 96}}
    body, headers = with_binary(v2(input_=tensor), numbers.tobytes())
    for content_type in ("application/octet-stream", "application/json", ""):
        (item,) = parse(body, headers | {"content-type": content_type}).items
        np.testing.assert_array_equal(item.image, numbers[0])


def test_v2_header_without_binary_data() -> None:
    """The length header on a body that is JSON to the end, parsed by the host or not, changes nothing."""
    body, headers = with_binary(v2())
    assert parse(body, headers).items[0].image == Encoded(JPEG)
    assert parse(v2(), headers).items[0].image == Encoded(JPEG)


def test_v2_outputs() -> None:
    """Outputs are asked for by name, each in binary or not; `binary_data_output` is for those that do not say."""
    outputs = [{"name": "heatmap", "parameters": {"binary_data": True, "classification": 3}}, {"name": "label"}]
    request = parse(v2(outputs=outputs, parameters={"binary_data_output": True}))
    assert (request.outputs, request.binary) == ((Output("heatmap", True), Output("label")), True)


@pytest.mark.parametrize(
    ("body", "kind", "gist"),
    [
        ({"inputs": []}, "NoImage", "inputs: expected a list of one input"),
        ({"inputs": {}}, "NoImage", "inputs: expected"),
        ({"inputs": [1]}, "NoImage", "inputs: expected"),
        ({"inputs": v2()["inputs"] * 2}, "NoImage", "got a list of 2"),
        (v2(target=1), "UnknownOption", "stand under parameters"),
        (v2(parameters=[1]), "InvalidOption", "parameters: expected an object, got a list of 1"),
        (v2(parameters={"traget": 1}), "UnknownOption", "did you mean target?"),
        (v2(parameters={"target": "[9"}), "UnknownLabel", "no class has the label"),
        (v2(parameters={"target": "[9]"}), "InvalidOption", "from 0 to 3"),
        (v2(parameters={"opacity": "0.5"}), "InvalidOption", "opacity: expected a number from 0 to 1"),
        (v2(parameters={"format": "npy"}), "InvalidOption", "format: answers on KServe's routes are JSON"),
        (v2(parameters={"overlay": True}), "InvalidOption", "overlay: V2 outputs hold no pictures"),
        (v2(parameters={"binary_data_output": 1}), "InvalidOption", "binary_data_output: expected true or false, got 1"),
        (v2(input_={"parameters": "x"}), "InvalidOption", "the input's parameters: expected an object"),
        (v2(id=5), "InvalidOption", "id: expected a string, got 5"),
        (v2(outputs={}), "InvalidOption", "outputs: expected a list"),
        (v2(outputs=["heatmap"]), "InvalidOption", "outputs: expected a list of objects"),
        (v2(outputs=[{"name": "map"}]), "InvalidOption", 'contours, got "map"'),
        (v2(outputs=[{"name": ["label"]}]), "InvalidOption", "got a list of 1"),
        (v2(outputs=[{"name": "label", "parameters": {"binary_data": "x"}}]), "InvalidOption", "binary_data: expected"),
        (v2(input_={"shape": None}), "InvalidTensor", "shape: expected [n] for BYTES"),
        (v2(input_={"shape": []}), "InvalidTensor", "shape: expected"),
        (v2(input_={"shape": [0]}), "InvalidTensor", "got [0]"),
        (v2(input_={"shape": [True]}), "InvalidTensor", "shape: expected"),
        (v2(input_={"shape": [1.0]}), "InvalidTensor", "shape: expected"),
        (v2(input_={"shape": ["1"]}), "InvalidTensor", "got a list of 1"),
        (v2(input_={"shape": [1, 2]}), "InvalidTensor", 'got "BYTES" [1, 2]'),
        (v2(input_={"shape": [2]}), "InvalidTensor", "expected a list of 2 base64 strings"),
        (v2(input_={"data": TEXT}), "InvalidTensor", "expected a list of 1 base64 strings"),
        (v2(input_={"data": None}), "InvalidTensor", "expected a list of 1 base64 strings, as the shape says, got null"),
        (v2([TEXT, 5]), "InvalidBase64", "instance 1: data: expected base64 or a data: URL, got 5"),
        (v2([TEXT, "no base64!"]), "InvalidBase64", "instance 1: data: expected base64"),
        (v2([TEXT, ""]), "NoImage", "instance 1: data: no image came"),
        (v2(input_={"datatype": "FP64"}), "InvalidTensor", 'expected BYTES [n] or FP32 [n, 3, H, W], got "FP64" [1]'),
        (v2(input_={"datatype": "FP32"}), "InvalidTensor", 'got "FP32" [1]'),
        (v2(input_={"datatype": "FP32", "shape": [1, 4, 1, 1]}), "InvalidTensor", 'got "FP32" [1, 4, 1, 1]'),
        (v2(input_={"datatype": None}), "InvalidTensor", "got null"),
        (v2([1, 2], input_={"datatype": "FP32", "shape": [1, 3, 1, 1]}), "InvalidTensor", "got shape [2]"),
        (v2(["1"] * 3, input_={"datatype": "FP32", "shape": [1, 3, 1, 1]}), "InvalidTensor", "got an element that is a str"),
        (v2([True] * 3, input_={"datatype": "FP32", "shape": [1, 3, 1, 1]}), "InvalidTensor", "got an element that is a bool"),
        (v2([10**400] * 3, input_={"datatype": "FP32", "shape": [1, 3, 1, 1]}), "InvalidTensor", "not finite in float32"),
        (v2([{}] * 3, input_={"datatype": "FP32", "shape": [1, 3, 1, 1]}), "InvalidTensor", "got an element that is a dict"),
        (v2([1e300] * 3, input_={"datatype": "FP32", "shape": [1, 3, 1, 1]}), "InvalidTensor", "instance 0: data: "),
        (v2([[1], [2, 3]], input_={"datatype": "FP32", "shape": [1, 3, 1, 1]}), "InvalidTensor", "got shape [2, 1]"),
        (v2([[[[1]], [[2]], [3]]], input_={"datatype": "FP32", "shape": [1, 3, 1, 1]}), "InvalidTensor", "got ragged lists"),
        (v2([[[[1]], [[2]], [[3, 4]]]], input_={"datatype": "FP32", "shape": [1, 3, 1, 1]}), "InvalidTensor", "ragged lists"),
        (v2([[[[1]], [[2]], [[[3]]]]], input_={"datatype": "FP32", "shape": [1, 3, 1, 1]}), "InvalidTensor", "that is a list"),
        (v2(input_={"datatype": "FP32", "shape": [1, 3, 1, 1], "data": {"a": 1}}), "InvalidTensor", "got an object of 1"),
        (v2([1], input_={"datatype": "FP32", "shape": [1, 3, 10**4000, 10**4000]}), "InvalidTensor", "of shape a list of 4"),
        (v2([float("nan")] * 3, input_={"datatype": "FP32", "shape": [1, 3, 1, 1]}), "InvalidTensor", "finite"),
        (v2(TENSOR, input_={"datatype": "FP32", "shape": [1, 3, 2, 1]}), "InvalidTensor", "got shape [3, 1, 2]"),
        (v2(input_={"parameters": {"binary_data_size": 0}}), "InvalidTensor", "and no data"),
        (v2(input_={"parameters": {"binary_data_size": 3}}), "InvalidTensor", "binary_data_size: expected 0"),
    ],
)
def test_v2_bad_requests(body: dict[str, Any], kind: str, gist: str) -> None:
    """Each departure from the protocol is a 400 that says what is expected; a bad element starts with its index."""
    error = refused(body)
    assert (error.status, error.kind) == (400, kind)
    assert gist in error.message
    assert len(error.message) < 250


@pytest.mark.parametrize(
    ("size", "tail", "gist"),
    [
        (None, prefixed(JPEG), "binary_data_size: expected"),
        (5, prefixed(JPEG), "binary_data_size: expected"),
        (True, b"x", "binary_data_size: expected"),
        (0, b"", "expected 1 elements"),
        (3, b"\x00\x00\x00", "expected 1 elements"),
        (4, struct.pack("<I", 2**32 - 1), "expected 1 elements"),
        (len(prefixed(JPEG, PNG)), prefixed(JPEG, PNG), "expected 1 elements"),
        (len(prefixed(JPEG)) + 2, prefixed(JPEG) + b"xx", "expected 1 elements"),
    ],
)
def test_v2_bad_binary_bytes(size: object, tail: bytes, gist: str) -> None:
    """Lengths that do not add up are refused, whichever of them is wrong."""
    body, headers = with_binary(
        v2(input_={"data": None, "parameters": {"binary_data_size": size} if size is not None else {}}), tail
    )
    error = refused(body, headers)
    assert error.kind == "InvalidTensor"
    assert gist in error.message


def test_v2_bad_binary_numbers() -> None:
    """FP32 whose shape does not fit the bytes is refused before anything of that shape is allocated."""
    tensor = {"shape": [1, 3, 10**9, 10**9], "datatype": "FP32", "data": None, "parameters": {"binary_data_size": 12}}
    body, headers = with_binary(v2(input_=tensor), b"\x00" * 12)
    assert "got 12" in refused(body, headers).message
    tensor["shape"] = [1, 3, 10**4000, 10**4000]
    body, headers = with_binary(v2(input_=tensor), b"\x00" * 12)
    assert "got 12" in refused(body, headers).message
    assert refused(v2([1] * 3, input_={"datatype": "FP32", "shape": [1, 3, 10**9, 10**9]})).kind == "InvalidTensor"


HEAVY: dict[str, list[Any]] = {
    "strings of unequal length": ["a" * 20_000] + ["b"] * 2_000,
    "as many strings as numbers": ["a" * 20_000] + ["b"] * 12_287,
    "nested strings": [["a" * 20_000] + ["b"] * 2_000] * 2,
    "nested lists of unequal length": [[[[0.5] * 64] * 64] * 3, [[[0.5] * 64] * 64] * 2, ["a" * 20_000] * 2_000],
    "huge integers": [10**4000] * 12_288,
    "lists in lists": json.loads("[" * 900 + "]" * 900),
    "a string among numbers": [0.5] * 12_287 + ["a" * 20_000],
}


@pytest.mark.parametrize("name", HEAVY)
@pytest.mark.parametrize("shape", [[1, 3, 64, 64], [2, 3, 64, 64]])
def test_v2_numbers_that_are_none_take_no_memory(name: str, shape: list[int]) -> None:
    """NumPy would make an array of strings in which each takes as much as the longest, thousands of times what came."""
    body = v2(HEAVY[name], input_={"datatype": "FP32", "shape": shape})
    tracemalloc.start()
    try:
        error = refused(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.kind == "InvalidTensor"
    assert peak < 1_000_000


def test_v2_too_many() -> None:
    """More images than are allowed are a 413, by the shape alone."""
    for size in (5, 10**30):
        error = refused(v2(input_={"shape": [size]}))
        assert (error.status, error.kind) == (413, "TooManyInstances")


def test_v2_outputs_of_infer() -> None:
    """Explanations' outputs are unknown where only predictions are made."""
    error = refused(v2(outputs=[{"name": "heatmap"}]), explain=False)
    assert error.message == 'outputs: expected label, index or probability, got "heatmap"'


# Replies


def answer(shift: int = 0, view: bool = True) -> Answer:
    """An answer with two classes and two targets, on a 2 x 3 layer."""
    classes = (Score(3, "285", 0.75), Score(1, 'b, "é"', 0.1))
    heatmap = np.array([[0, 0.1, 1], [0.5, 0.25, shift]], dtype=np.float32)
    explanations = (
        Explanation(3, "285", 0.75, heatmap, (0.0, 0.1), Rect(0, 0, 1, 1), ()),
        Explanation(1, 'b, "é"', 0.1, np.zeros((2, 3), np.float32), None, None, ("not_finite",)),
    )
    image = ImageInfo(8, 6, Rect(1.004, 0.0, 7.0, 6.0)) if view else None
    return Answer(classes, explanations, image, "gradcam++", "top")


def outputs(reply: Reply) -> dict[str, dict[str, Any]]:
    """The outputs of a JSON reply by name."""
    assert (reply.status, reply.content_type, dict(reply.headers)) == (200, "application/json", {})
    return {output["name"]: output for output in json.loads(reply.body)["outputs"]}


def test_v1_predictions_reply() -> None:
    """`:predict` answers for each instance what /predictions answers, and nothing else."""
    reply = RESPONDER.reply(parse({"instances": [TEXT, TEXT]}, explain=False), [answer(), answer()])
    one = '{"285":0.75,"b, \\"\\u00e9\\"":0.1}'
    assert (reply.body.decode(), reply.content_type) == (f'{{"predictions":[{one},{one}]}}', "application/json")


def test_v1_explanations_reply() -> None:
    """`:explain` adds each instance's whole answer, without its predictions."""
    body = json.loads(RESPONDER.reply(parse({"instances": [TEXT, TEXT]}), [answer(), answer(1)]).body)
    assert list(body) == ["predictions", "explanations"]
    plain = PARSER.parse(Call(True, {}, {"body": JPEG}))
    assert isinstance(plain, Request)
    whole = json.loads(RESPONDER.reply(plain, [answer(1)]).body)
    assert body["predictions"] == [whole.pop("predictions")] * 2
    assert body["explanations"][1] == whole


def test_v2_infer_reply() -> None:
    """`infer` answers label, index and probability `[n, k]`, flat, and echoes id, name and version."""
    reply = RESPONDER.reply(parse(v2([TEXT] * 2, id="\u20ac1"), explain=False), [answer(), answer()])
    body = json.loads(reply.body)
    assert list(body) == ["id", "model_name", "model_version", "outputs"]
    assert (body["id"], body["model_name"], body["model_version"]) == ("\u20ac1", "cats", "1.0")
    assert body["outputs"] == [
        {"name": "label", "datatype": "BYTES", "shape": [2, 2], "data": ["285", 'b, "é"'] * 2},
        {"name": "index", "datatype": "INT64", "shape": [2, 2], "data": [3, 1, 3, 1]},
        {"name": "probability", "datatype": "FP32", "shape": [2, 2], "data": [0.75, 0.1, 0.75, 0.1]},
    ]
    assert "id" not in json.loads(RESPONDER.reply(parse(v2(), explain=False), [answer()]).body)


def test_v2_explain_reply() -> None:
    """`explain` adds heatmap, target, range and view; what is not finite is null, never NaN."""
    reply = RESPONDER.reply(parse(v2([TEXT] * 2)), [answer(), answer(1)])
    tensors = outputs(reply)
    assert list(tensors) == ["label", "index", "probability", "heatmap", "target", "range", "view"]
    shapes = {name: (output["datatype"], output["shape"]) for name, output in tensors.items()}
    assert shapes["heatmap"] == ("FP32", [2, 2, 2, 3])
    assert shapes["target"] == ("INT64", [2, 2])
    assert shapes["range"] == ("FP32", [2, 2, 2])
    assert shapes["view"] == ("FP32", [2, 4])
    assert tensors["heatmap"]["data"] == [0, 0.1, 1, 0.5, 0.25, 0, *[0] * 6, 0, 0.1, 1, 0.5, 0.25, 1, *[0] * 6]
    assert tensors["target"]["data"] == [3, 1, 3, 1]
    assert tensors["range"]["data"] == [0, 0.1, None, None] * 2
    assert tensors["view"]["data"] == [1.0, 0, 7, 6] * 2
    assert b"0.1," in reply.body
    assert b"NaN" not in reply.body


def test_v2_binary_reply() -> None:
    """In the binary extension the tensors follow the JSON in the outputs' order, and the header says where they start."""
    names = ("range", "label", "heatmap", "index", "target")
    asked = [{"name": name, "parameters": {"binary_data": False} if name == "index" else {}} for name in names]
    reply = RESPONDER.reply(parse(v2(outputs=asked, parameters={"binary_data_output": True})), [answer()])
    assert reply.content_type == "application/octet-stream"
    length = int(reply.headers["inference-header-content-length"])
    body, tail = json.loads(reply.body[:length]), reply.body[length:]
    assert [output["name"] for output in body["outputs"]] == list(names)
    assert body["outputs"][3]["data"] == [3, 1]
    labels = prefixed(b"285", 'b, "é"'.encode())
    sizes = [output.get("parameters") for output in body["outputs"]]
    assert sizes == [
        {"binary_data_size": 16},
        {"binary_data_size": len(labels)},
        {"binary_data_size": 48},
        None,
        {"binary_data_size": 16},
    ]
    np.testing.assert_array_equal(np.frombuffer(tail[:16], "<f4"), np.array([0, 0.1, np.nan, np.nan], "<f4"))
    assert tail[16 : 16 + len(labels)] == labels
    heatmap = np.frombuffer(tail[16 + len(labels) : -16], "<f4").reshape(1, 2, 2, 3)
    assert np.frombuffer(tail[-16:], "<i8").tolist() == [3, 1]
    np.testing.assert_array_equal(heatmap[0, 0], answer().explanations[0].heatmap)


def test_v2_tensors_have_no_view() -> None:
    """Where there is no picture, `view` is left out, and asking for it by name is a 400."""
    assert "view" not in outputs(RESPONDER.reply(parse(v2()), [answer(view=False)]))
    with pytest.raises(RequestError, match="instance 0: no view") as caught:
        RESPONDER.reply(parse(v2(outputs=[{"name": "view"}])), [answer(view=False)])
    assert (caught.value.status, caught.value.kind) == (400, "NoPicture")


def test_v2_heatmaps_of_different_shapes() -> None:
    """They make no tensor: a 400 that names the odd one, unless the heatmaps are not asked for."""
    other = answer()
    smaller = tuple(replace(explanation, heatmap=np.zeros((1, 3), np.float32)) for explanation in other.explanations)
    answers = [answer(), replace(other, explanations=smaller)]
    with pytest.raises(RequestError, match="instance 1: its heatmap is 1 x 3, the first one's 2 x 3") as caught:
        RESPONDER.reply(parse(v2([TEXT] * 2)), answers)
    assert (caught.value.status, caught.value.kind) == (400, "InvalidImage")
    assert list(outputs(RESPONDER.reply(parse(v2([TEXT] * 2, outputs=[{"name": "target"}])), answers))) == ["target"]
