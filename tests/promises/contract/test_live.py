"""A live TorchServe with the demo's ImageNet classifier and a ResNet-18: what a client sees, under load too."""

from __future__ import annotations

import base64
import io
import json
import random
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from tests.support.build import encoded, noise
from tests.support.comparison.equality import assert_close
from tests.support.processes.serving import Layered
from tests.support.processes.waiting import HANG

from camserve.tools.client.sources import list_models
from camserve.tools.commands.serve import Server

pytestmark = pytest.mark.live

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
DEMO = "efficientnet_lite0"
MODELS = (DEMO, "resnet18")
VIEWS = {DEMO: [93.96, 18.75, 357.04, 281.25], "resnet18": [80.35, 5.17, 370.65, 294.83]}
"""Of the cat, 451 x 300: the middle 224 of a shorter side of 256, and of 232."""
CAT = (EXAMPLES / "cat.jpg").read_bytes()
COFFEE = (EXAMPLES / "coffee.jpg").read_bytes()
CATS = {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat", "lynx"}


def post(server: Server, path: str, body: Any = b"", **options: Any) -> requests.Response:
    """One request on a connection of its own."""
    return requests.post(f"{server.url}/{path}", data=body, timeout=HANG, **options)


# ------------------------------------------------------------------ what the model looks at


def test_the_cat_is_a_cat_and_the_model_looked_at_it(live: Server) -> None:
    """The top classes are cats, and the peak lies on the cat, which fills all of this picture but its right edge."""
    answer = post(live, f"explanations/{DEMO}", CAT).json()

    assert {each["label"] for each in answer["classes"][:3]} <= CATS
    (explanation,) = answer["explanations"]
    view, heatmap = answer["image"]["view"], np.array(explanation["heatmap"])
    row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
    x = view[0] + (column + 0.5) * (view[2] - view[0]) / heatmap.shape[1]
    y = view[1] + (row + 0.5) * (view[3] - view[1]) / heatmap.shape[0]
    assert 40 < x < 360
    assert 10 < y < 290
    assert view == [93.96, 18.75, 357.04, 281.25]


@pytest.mark.parametrize(("name", "label"), [("coffee.jpg", "espresso"), ("rocket.jpg", "missile")])
def test_the_other_examples_are_recognised(live: Server, name: str, label: str) -> None:
    """The shipped pictures show what the README says."""
    answer = post(live, f"explanations/{DEMO}", (EXAMPLES / name).read_bytes()).json()

    assert answer["classes"][0]["label"] == label


# ------------------------------------------------------------------ bodies as users send them


def curl(server: Server, path: str, *arguments: str) -> tuple[int, str, bytes]:
    """The status, content type and body that a real curl gets."""
    command = ["curl", "-sS", "-o", "-", "-w", "\n%{http_code} %{content_type}", *arguments, f"{server.url}/{path}"]
    found = subprocess.run(command, capture_output=True, check=True, cwd=EXAMPLES)
    body, _, tail = found.stdout.rpartition(b"\n")
    status, _, content_type = tail.decode().partition(" ")
    return int(status), content_type, body


@pytest.mark.parametrize(
    "arguments",
    [
        ["-T", "cat.jpg"],
        ["-H", "content-type: image/jpeg", "--data-binary", "@cat.jpg"],
        ["-H", "content-type: application/octet-stream", "--data-binary", "@cat.jpg"],
        ["-F", "data=@cat.jpg"],
        ["-F", "data=@cat.jpg;type=image/jpeg"],
        ["-H", "content-type: application/json", "-d", '{"data": "' + base64.b64encode(CAT).decode() + '"}'],
        [
            "-H",
            "content-type: application/json",
            "-d",
            '{"data": "data:image/jpeg;base64,' + base64.b64encode(CAT).decode() + '"}',
        ],
        ["-H", "content-type:", "-d", '{"data": "' + base64.b64encode(CAT).decode() + '"}'],
        ["-H", "content-type: text/plain", "-d", base64.b64encode(CAT).decode()],
        ["-H", "transfer-encoding: chunked", "-H", "expect: 100-continue", "-T", "cat.jpg"],
    ],
    ids=["upload", "binary", "octets", "form", "typed form", "json", "data url", "json without a type", "text", "chunked"],
)
def test_every_way_to_send_a_picture_gives_the_same_answer(live: Server, arguments: list[str]) -> None:
    """Ten forms, one picture, one answer."""
    wanted = post(live, f"explanations/{DEMO}", CAT).json()

    status, content_type, body = curl(live, f"explanations/{DEMO}", *arguments)

    assert (status, content_type) == (200, "application/json"), body
    assert_close(json.loads(body), wanted)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (["-d", "x=1"], "NoImage", "-T cat.jpg"),
        (["-X", "POST"], "NoImage", "empty"),
        (["-F", "image=@cat.jpg"], "NoImage", "data"),
        (["-H", "content-type: application/json", "-d", '{"data": '], "InvalidJSON", "line 1"),
        (["-H", "content-type: application/json", "-d", '{"data": "%%%"}'], "InvalidBase64", "base64"),
        (["-F", "data=@README.md"], "UnsupportedFormat", "JPEG"),
        (["-F", "data=@cat.jpg", "-F", "target=tabbi"], "UnknownLabel", "tabby"),
        (["-F", "data=@cat.jpg", "-F", "targget=1"], "UnknownOption", "target"),
        (["-F", "data=@cat.jpg", "-F", "top_k=0"], "InvalidOption", "from 1 to 10"),
    ],
)
def test_a_mistake_is_a_400_that_says_how_to_mend_it(live: Server, arguments: list[str], kind: str, words: str) -> None:
    """TorchServe's own shape of an error, its type, and the way out."""
    status, content_type, body = curl(live, f"explanations/{DEMO}", *arguments)

    error = json.loads(body)
    assert (status, content_type, list(error)) == (400, "application/json", ["code", "type", "message"])
    assert (error["code"], error["type"]) == (400, kind)
    assert words in error["message"]


@pytest.mark.parametrize("way", ["-d", "--data-binary"])
def test_a_picture_that_curl_sends_as_a_form_ends_nothing(live: Server, way: str) -> None:
    """TorchServe's own 500, since most pictures are no form that it can read; what it can read is a 400 that helps."""
    before = live.pids

    status, _, body = curl(live, f"explanations/{DEMO}", way, "@cat.jpg")

    error = json.loads(body)
    assert (status, error["type"]) in {(500, "ErrorDataDecoderException"), (400, "NoImage")}
    assert status == 500 or "-T cat.jpg" in error["message"]
    assert live.pids == before


# ------------------------------------------------------------------ options and formats, on both models


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ["gradcam++", "gradcam", "hirescam", "layercam", "xgradcam", "contrast"])
def test_every_method_answers(live: Server, model: str, method: str) -> None:
    """The answer says which method made it."""
    answer = post(live, f"explanations/{model}", CAT, headers={"X-Explain-Method": method}).json()

    assert answer["method"] == method
    assert len(answer["explanations"][0]["heatmap"]) in (7, 14)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("accept", "content_type", "form"),
    [
        ("image/png", "image/png", "PNG"),
        ("image/jpeg", "image/jpeg", "JPEG"),
        ("image/webp;q=0.9, image/png;q=0.1", "image/webp", "WEBP"),
        ("text/html, image/*;q=0.8", "image/png", "PNG"),
        ("application/x-npy", "application/x-npy", None),
        ("*/*", "application/json", None),
    ],
)
def test_accept_chooses_the_format(live: Server, model: str, accept: str, content_type: str, form: str | None) -> None:
    """Lists, weights and wildcards; pictures have the size of the original."""
    response = post(live, f"explanations/{model}", CAT, headers={"Accept": accept, "X-Explain-Target": "281"})

    assert (response.status_code, response.headers["content-type"]) == (200, content_type)
    if form:
        picture = Image.open(io.BytesIO(response.content))
        assert (picture.format, picture.size) == (form, (451, 300))
    if content_type != "application/json":
        assert response.headers["x-explain-target"] == "281"
        assert json.loads(response.headers["x-explain-view"]) == VIEWS[model]
    if content_type == "application/x-npy":
        array = np.load(io.BytesIO(response.content))
        assert (array.dtype, array.ndim) == (np.float32, 3)


def test_the_server_says_which_models_it_has(live: Server, layered: Layered) -> None:
    """To `explain.py`, which takes the only one."""
    assert set(list_models(live.url, None)) >= {DEMO, "hostile", layered.name}


def test_a_tensor_of_megabytes_of_json_is_answered_as_the_same_in_an_npy_file(live: Server) -> None:
    """Whoever parses it: hosts leave long JSON to the archive's handler."""
    tensor = np.random.default_rng(0).standard_normal((3, 224, 224)).astype(np.float32)
    file = io.BytesIO()
    np.save(file, tensor)
    text = json.dumps({"data": tensor.tolist(), "target": 7})
    assert len(text) > 2_000_000

    as_json = post(live, f"explanations/{DEMO}", text, headers={"Content-Type": "application/json"})
    as_array = post(live, f"explanations/{DEMO}", file.getvalue(), headers={"X-Explain-Target": "7"})

    assert (as_json.status_code, as_array.status_code) == (200, 200)
    assert_close(as_json.json(), as_array.json())


def test_nothing_acceptable_is_a_406(live: Server) -> None:
    """And says what there is."""
    response = post(live, f"explanations/{DEMO}", CAT, headers={"Accept": "text/csv"})

    assert response.status_code == 406
    assert response.json()["type"] == "NotAcceptable"
    assert "image/png" in response.json()["message"]


def test_layers_and_targets_are_chosen_for_each_request(live: Server, layered: Layered) -> None:
    """A second layer, several targets by index and label, and overlays inside the JSON."""
    body = {"data": base64.b64encode(CAT).decode(), "target": layered.asked, "layer": layered.layers[1], "overlay": True}
    answer = post(live, f"explanations/{layered.name}", json.dumps(body), headers={"content-type": "application/json"}).json()

    assert answer["layer"] == layered.layers[1]
    assert [each["target"] for each in answer["explanations"]] == list(layered.targets)
    for explanation in answer["explanations"]:
        assert np.array(explanation["heatmap"]).shape == (layered.cells, layered.cells)
        overlay = base64.b64decode(explanation["overlay"].removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(overlay)).size == (451, 300)


def test_several_layers_are_taken_together(live: Server, layered: Layered) -> None:
    """A list in JSON, or names with commas between in a header: one map, on the finest grid."""
    last, first = layered.layers
    (one, other) = (
        post(live, f"explanations/{layered.name}", body, headers=headers).json()
        for body, headers in (
            (CAT, {"X-Explain-Layer": f"{last},{first}"}),
            (
                json.dumps({"data": base64.b64encode(CAT).decode(), "layer": [first, last], "method": "refinecam"}),
                {"content-type": "application/json"},
            ),
        )
    )
    assert (one["layer"], one["method"]) == (f"{first},{last}", "refinecam")
    assert np.array(one["explanations"][0]["heatmap"]).shape == (layered.cells, layered.cells)
    assert {**one, "classes": 0} == {**other, "classes": 0}


def test_a_phone_photograph_comes_back_scaled_down(live: Server) -> None:
    """Twelve megapixels in, at most 1600 pixels a side out, and the header says by what."""
    photograph = Image.open(io.BytesIO(CAT)).resize((4032, 3024))
    body = bytes(encoded(photograph, "JPEG", quality=92))

    response = post(live, f"explanations/{DEMO}", body, headers={"Accept": "image/png"})

    picture = Image.open(io.BytesIO(response.content))
    assert response.status_code == 200, response.text
    assert picture.size == (1600, 1200)
    assert float(response.headers["x-explain-scale"]) == pytest.approx(1600 / 4032)


def test_an_answer_beyond_the_limit_is_a_413_and_the_worker_lives(live: Server) -> None:
    """Ten overlays of noise do not compress; the server's own limit would kill the worker."""
    body = {"data": base64.b64encode(bytes(encoded(noise(1600, 1200)))).decode(), "top_k": 10, "overlay": True}
    response = post(live, f"explanations/{DEMO}", json.dumps(body), headers={"content-type": "application/json"})

    assert response.status_code == 413
    assert response.json()["type"] == "ResponseTooLarge"
    assert post(live, f"predictions/{DEMO}", CAT).status_code == 200


# ------------------------------------------------------------------ routes


def test_versions_and_put_are_routes_too(live: Server) -> None:
    """`/explanations/{model}/{version}`; PUT like POST; 404 and 405 are TorchServe's own."""
    wanted = post(live, f"explanations/{DEMO}/1.0", CAT).json()

    assert_close(requests.put(f"{live.url}/explanations/{DEMO}", data=CAT, timeout=HANG).json(), wanted)
    assert post(live, "explanations/nobody", CAT).status_code == 404


def test_describe_is_on_the_management_port(live: Server, layered: Layered) -> None:
    """`customizedMetadata` says what may be asked for."""
    (found,) = requests.get(f"{live.management_url}/models/{layered.name}?customized=true", timeout=HANG).json()

    metadata = found["customizedMetadata"]
    assert metadata["layers"] == list(layered.layers)
    assert metadata["self_test"] == "ok"
    assert (metadata["labels"], metadata["input_size"]) == (layered.labels, [layered.side, layered.side])
    assert metadata["weights"].startswith("sha256:")


# ------------------------------------------------------------------ under load


@dataclass(frozen=True)
class Ask:
    """One request of the load, and how its answer is compared."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def asks() -> list[Ask]:
    """Both modes, a model of 1000 classes and one of three, several sizes, targets, methods and formats, and bad requests."""
    kinds: list[Ask] = []
    for model, targets in ((DEMO, "[281, 285]"), ("hostile", "[0, 2]")):
        form = {"X-Explain-Target": targets, "X-Explain-Method": "contrast"}
        kinds += [
            Ask(f"predictions/{model}", CAT),
            Ask(f"predictions/{model}", COFFEE),
            Ask(f"explanations/{model}", CAT),
            Ask(f"explanations/{model}", COFFEE, {"X-Explain-Top-K": "3"}),
            Ask(f"explanations/{model}", CAT, form),
            Ask(f"explanations/{model}", CAT, {"Accept": "image/png"}),
            Ask(f"explanations/{model}", CAT, {"Accept": "application/x-npy", "X-Explain-Method": "gradcam"}),
            Ask(f"explanations/{model}", b"no picture"),
            Ask(f"predictions/{model}", CAT[:1000]),
            Ask(f"explanations/{model}", CAT, {"X-Explain-Target": "no such label"}),
            Ask(f"explanations/{model}", CAT, {"describe": "True"}),
        ]
    return kinds


def assert_same(one: requests.Response, other: requests.Response) -> None:
    """The same status, type and content."""
    assert (one.status_code, one.headers.get("content-type")) == (other.status_code, other.headers.get("content-type"))
    readers: dict[str, Callable[[bytes], Any]] = {
        "application/json": json.loads,
        "application/x-npy": lambda body: np.load(io.BytesIO(body)).tolist(),
        "image/png": lambda body: np.asarray(Image.open(io.BytesIO(body)), dtype=np.int16),
    }
    left, right = (readers[one.headers["content-type"]](each.content) for each in (one, other))
    if isinstance(left, np.ndarray):
        assert np.abs(left - right).max() <= 2
    else:
        assert_close(left, right)


def test_two_hundred_concurrent_requests_get_what_they_would_get_alone(live: Server) -> None:
    """Whatever batches TorchServe makes of them."""
    kinds = asks()
    alone = [post(live, each.path, each.body, headers=each.headers) for each in kinds]
    order = [index % len(kinds) for index in range(200)]
    random.Random(0).shuffle(order)

    with ThreadPoolExecutor(16) as threads:
        answers = list(
            threads.map(lambda index: post(live, kinds[index].path, kinds[index].body, headers=kinds[index].headers), order)
        )

    for index, answer in zip(order, answers, strict=True):
        assert_same(answer, alone[index])
    assert {answer.status_code for answer in answers} == {200, 400}
