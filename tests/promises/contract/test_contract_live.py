"""A live TorchServe with the demo's classifier and a ResNet-18: routes, options, formats and errors, line by line."""

from __future__ import annotations

import base64
import io
import json
import struct
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from tests.promises.project.test_docs import fields_told, headings, names, table
from tests.support.build import blank, encoded, mar, noise
from tests.support.comparison.equality import assert_close
from tests.support.processes.gate import wait_at
from tests.support.processes.waiting import HANG, wait_until

from camserve.core.config import REFINECAM
from camserve.core.errors import KINDS
from camserve.tools.archive.archive import Row, ask, load_service, open_archive
from camserve.tools.commands.serve import Server

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
DEMO = "efficientnet_lite0"
MODELS = (DEMO, "resnet18")
CAT = (EXAMPLES / "cat.jpg").read_bytes()
COFFEE = (EXAMPLES / "coffee.jpg").read_bytes()
TEXT = base64.b64encode(CAT).decode()
TENSOR = np.random.default_rng(0).normal(size=(3, 224, 224)).round(2).tolist()


def post(server: Server, path: str, body: Any, **headers: str) -> requests.Response:
    """A POST; what is not bytes goes as JSON."""
    if not isinstance(body, bytes):
        headers, body = {"Content-Type": "application/json", **headers}, json.dumps(body).encode()
    return requests.post(f"{server.url}/{path}", data=body, headers=headers, timeout=HANG)


# ------------------------------------------------------------------ routes


def test_what_is_torchserves_own(live: Server) -> None:
    """Unknown models and versions, methods that a route has not, queries, and uploads beyond `max_request_size`."""
    before = live.pids

    assert post(live, "explanations/nobody", CAT).status_code == 404
    assert post(live, f"predictions/{DEMO}/9.9", CAT).status_code == 404
    asked = post(live, f"explanations/{DEMO}?target=0&nonsense=1", CAT)  # what stands behind the ? is dropped
    assert asked.json()["explanations"][0]["target"] == asked.json()["classes"][0]["index"] != 0
    assert requests.post(f"{live.management_url}/models/{DEMO}", timeout=HANG).status_code == 405
    try:
        refused = post(live, f"predictions/{DEMO}", bytes(33_600_000))
    except requests.ConnectionError:  # closed while the body was still being sent
        pass
    else:
        assert (refused.status_code, refused.content) == (413, b"")
    assert live.pids == before


def test_a_full_queue_is_a_503_for_who_comes_too_late(tmp_path: Path, gate: Path) -> None:
    """A worker that is busy and a queue of two, asked eight times at once: TorchServe's own error, and right answers for the others."""
    (tmp_path / "store").mkdir()
    mar(tmp_path / "store", "held", fault=wait_at(gate), settings={"batchSize": 1, "jobQueueSize": 2, "maxWorkers": 1})
    picture = bytes(encoded(noise()))

    with Server(tmp_path / "store", config=ROOT / "config.properties", port=0) as server:
        with ThreadPoolExecutor(8) as threads:
            try:
                gate.write_text(str(server.pids[1]))
                asked = [threads.submit(post, server, "explanations/held", picture)]
                wait_until(gate.with_name("held").exists)
                asked += [threads.submit(post, server, "explanations/held", picture) for _ in range(7)]
                wait_until(lambda: sum(each.done() for each in asked) == 5, "five are refused")
            finally:
                gate.write_text("")
            answers = [each.result() for each in asked]
        after = post(server, "explanations/held", picture)

    late = [answer.json() for answer in answers if answer.status_code == 503]
    served = [answer.json() for answer in answers if answer.status_code == 200]
    assert (len(late), len(served)) == (5, 3)
    assert {error["type"] for error in late} == {"ServiceUnavailableException"}
    for answer in served:
        assert_close(answer, after.json())


def test_a_browsers_get_is_the_page_and_another_gets_an_error(live: Server) -> None:
    """Only of explanations, only where HTML is preferred, and the page loads nothing."""
    browser = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"}

    page = requests.get(f"{live.url}/explanations/{DEMO}", headers=browser, timeout=HANG)
    others = [
        requests.get(f"{live.url}/explanations/{DEMO}", timeout=HANG),
        requests.get(f"{live.url}/predictions/{DEMO}", headers=browser, timeout=HANG),
    ]

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.text.lower().startswith("<!doctype html>")
    assert 'src="http' not in page.text
    assert "<link" not in page.text.replace('<link rel="icon" href="data:', "")
    assert [(each.status_code, each.json()["type"]) for each in others] == [(400, "NoImage")] * 2
    with_picture = requests.post(f"{live.url}/explanations/{DEMO}", data=CAT, headers=browser, timeout=HANG)
    assert with_picture.headers["content-type"].startswith("image/")


@pytest.mark.parametrize("model", MODELS)
def test_grpc_carries_predictions(live: Server, model: str) -> None:
    """TorchServe's call `Predictions`, spoken by curl: the same labels and values as over HTTP."""
    wanted = post(live, f"predictions/{model}", CAT).json()
    request = _field(1, model.encode()) + _field(3, _field(1, b"data") + _field(2, CAT))
    found = subprocess.run(
        [
            *("curl", "-sS", "--http2-prior-knowledge", "--data-binary", "@-", "-H", "content-type: application/grpc"),
            *("-H", "te: trailers"),
            f"http://{live.grpc_address}/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
        ],
        input=b"\0" + struct.pack(">I", len(request)) + request,
        capture_output=True,
        check=True,
    )

    assert_close(json.loads(found.stdout[found.stdout.index(b"{") :]), wanted)


def _field(number: int, value: bytes) -> bytes:
    """A field of bytes in Protocol Buffers' encoding."""
    length = bytearray()
    rest = len(value)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    return bytes([number << 3 | 2, *length, rest]) + value


# ------------------------------------------------------------------ predictions


@pytest.mark.parametrize("model", MODELS)
def test_predictions_equal_the_stock_handlers(live: Server, demo_store: Path, tmp_path: Path, model: str) -> None:
    """`image_classifier` with the archive's preprocessing, from the same archive: labels, order and values within 1e-5."""
    pictures = [CAT, COFFEE, bytes(encoded(noise(80, 300), "PNG")), bytes(encoded(noise(500, 333, 4), "BMP"))]
    with zipfile.ZipFile(demo_store / f"{model}.mar") as archive:
        archive.extractall(tmp_path)
    manifest = json.loads((tmp_path / "MAR-INF" / "MANIFEST.json").read_text())
    manifest["model"]["handler"] = "stock_handler.py"
    (tmp_path / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    (tmp_path / "stock_handler.py").write_text(STOCK)
    with open_archive(tmp_path) as opened:
        expected = ask(load_service(opened.directory), [Row({"body": bytearray(each)}) for each in pictures])

    for picture, wanted in zip(pictures, expected, strict=True):
        answer = post(live, f"predictions/{model}", picture)
        assert (answer.status_code, wanted.status, answer.headers["content-type"]) == (200, 200, "application/json")
        found, right = answer.json(), json.loads(wanted.body)
        assert list(found) == list(right)
        assert list(found.values()) == pytest.approx(list(right.values()), abs=1e-5)


STOCK = """
import yaml
from torchvision import transforms
from ts.torch_handler.image_classifier import ImageClassifier

explain = {"resize": 256, "crop": 224, "interpolation": "bilinear", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

class Stock(ImageClassifier):
    def initialize(self, context):
        super().initialize(context)
        given = {**explain, **self.model_yaml_config.get("explain", {})}
        self.image_processing = transforms.Compose([
            transforms.Resize(given["resize"], transforms.InterpolationMode(given["interpolation"])),
            transforms.CenterCrop(given["crop"]), transforms.ToTensor(), transforms.Normalize(given["mean"], given["std"])])
"""


# ------------------------------------------------------------------ options


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("target", 285, 281),
        ("target", [281, "espresso"], "tabby"),
        ("target", "tabby", 285),
        ("top_k", 3, 2),
        ("method", "gradcam", "contrast"),
        ("layer", None, None),
        ("format", "npy", "png"),
        ("overlay", True, False),
        ("colormap", "jet", "gray"),
        ("opacity", 0.25, 1),
    ],
)
def test_an_option_by_key_field_and_header(live: Server, model: str, name: str, value: Any, other: Any) -> None:
    """Each option in its three spellings gives one answer, and in the body it beats a header that says otherwise."""
    if name == "layer":
        layers = _metadata(live, model)["layers"]
        value, other = layers[-1], layers[0]
    text, unlike = (each if isinstance(each, str) else json.dumps(each) for each in (value, other))
    header = f"X-Explain-{name.replace('_', '-').title()}"
    accept = {"Accept": "image/png"} if name in ("colormap", "opacity") else {}
    path = f"explanations/{model}"

    by_header = post(live, path, CAT, **{header.upper(): text}, **accept)
    by_key = post(live, path, {"data": TEXT, name: value}, **{header: unlike}, **accept)
    url = f"{live.url}/{path}"
    by_field = requests.post(url, files={"data": ("cat.jpg", CAT)}, data={name: text}, headers=accept, timeout=HANG)
    without = post(live, path, CAT, **accept)

    assert by_header.status_code == 200, by_header.text
    assert by_header.content != without.content or name == "layer"
    for answer in (by_key, by_field):
        assert (answer.status_code, answer.headers["content-type"]) == (200, by_header.headers["content-type"]), answer.text
        if answer.headers["content-type"] == "application/json":
            assert_close(answer.json(), by_header.json())
        else:
            np.testing.assert_allclose(_content(answer), _content(by_header), rtol=0, atol=2 if accept else 1e-4)


def _content(answer: requests.Response) -> Any:
    if answer.headers["content-type"] == "application/x-npy":
        return np.load(io.BytesIO(answer.content))
    return np.asarray(Image.open(io.BytesIO(answer.content)), dtype=np.int16)


def _metadata(server: Server, model: str) -> dict[str, Any]:
    (found,) = requests.get(f"{server.management_url}/models/{model}?customized=true", timeout=HANG).json()
    metadata: dict[str, Any] = found["customizedMetadata"]
    return metadata


@pytest.mark.parametrize("model", MODELS)
def test_the_metadata_say_what_may_be_asked(live: Server, model: str) -> None:
    """Each line of the contract's row on `customized=true`."""
    metadata = _metadata(live, model)

    assert metadata["method"] in metadata["methods"]
    assert metadata["layers"]
    assert (metadata["labels"], metadata["self_test"]) == (1000, "ok")
    assert len(metadata["input_size"]) == 2
    assert {"max_pixels", "max_picture_side", "max_response_bytes", "max_targets", "max_instances"} <= set(metadata["limits"])
    assert {"torch", "pillow"} <= set(metadata["versions"])
    assert len(metadata["weights"]) == len("sha256:") + 64
    assert metadata["openapi"]["openapi"].startswith("3.1")
    answer = post(live, f"explanations/{model}", CAT).json()
    assert metadata["weights"].startswith(answer["weights"])


MEASURED = {"measured", "chosen", "pictures", "score", "made", "report"}
"""Fields that only an archive's answers have that was packaged with `--choose-by`."""


@pytest.mark.parametrize("model", MODELS)
def test_the_references_pages_are_true_of_this_archive(live: Server, model: str) -> None:
    """Options, methods and errors are those of the served document, fields those of an answer with everything in it."""
    found = _metadata(live, model)
    schemas = found["openapi"]["components"]["schemas"]
    everything = {"Overlay": "true", "Check": "true", "Inside": "[100, 50, 300, 250]", "Contours": "[0.5]"}
    answer = post(live, f"explanations/{model}", CAT, **{f"X-Explain-{name}": value for name, value in everything.items()}).json()
    (explanation,) = answer["explanations"]

    assert headings("reference/options") == [name for name in schemas["ExplanationForm"]["properties"] if name != "data"]
    several = len(found["layers"]) > 1
    assert names([row[0] for row in table("understand/methods")]) == [*found["methods"], *([] if several else [REFINECAM])]
    told = set(answer) | set(explanation) | set(explanation["check"]) - {"shares"} | set(explanation["inside"])
    assert set(fields_told()) - MEASURED == told
    kinds = {kind for status in KINDS for kind in schemas[f"Error{status}"]["properties"]["type"]["enum"]}
    assert {name for row in table("reference/errors") for name in names(row[1:2])} == kinds


# ------------------------------------------------------------------ images


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        *(("PNG", mode) for mode in ("RGB", "L", "P", "RGBA", "LA", "1", "I;16")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")),
        *((form, "P") for form in ("GIF", "BMP", "TIFF")),
    ],
)
def test_every_format_and_mode_is_explained(live: Server, form: str, mode: str) -> None:
    """And its size is told."""
    photograph = Image.open(io.BytesIO(CAT))
    picture = photograph.convert("L").convert("I").point(lambda value: value * 257).convert("I;16") if mode == "I;16" else None
    body = bytes(encoded(picture or photograph.convert(mode), form))

    answer = post(live, f"explanations/{DEMO}", body)

    assert answer.status_code == 200, answer.text
    assert answer.json()["image"] == {"width": 451, "height": 300, "view": [93.96, 18.75, 357.04, 281.25]}
    assert len(answer.json()["explanations"]) == 1


@pytest.mark.parametrize("model", MODELS)
def test_a_tensor_is_explained_without_a_picture(live: Server, model: str) -> None:
    """As a bare list and under `data`: the same; there is nothing to draw on."""
    bare, named = (post(live, f"explanations/{model}", body).json() for body in (TENSOR, {"data": TENSOR}))

    assert_close(bare, named)
    assert bare["image"] is None
    assert [each["region"] for each in bare["explanations"]] == [None]


# ------------------------------------------------------------------ errors

BOMB = blank(8000)
WRONG: list[tuple[str, Any, dict[str, str]]] = [
    ("InvalidImage", CAT[:2000], {}),
    ("UnsupportedFormat", b"%PDF-1.7 and more", {}),
    ("HostNotAllowed", CAT, {"Host": "evil.example"}),
    ("InvalidJSON", b'{"data": ', {}),
    ("InvalidBase64", {"data": "%%%"}, {}),
    ("InvalidTensor", [[[1.0, 2.0]]], {}),
    ("NoImage", {"image": TEXT}, {}),
    ("NoPicture", TENSOR, {"Accept": "image/png"}),
    ("UnknownOption", CAT, {"X-Explain-Colour": "red"}),
    ("InvalidOption", CAT, {"X-Explain-Top-K": "11"}),
    ("UnknownLabel", CAT, {"X-Explain-Target": "tabbi"}),
    ("NotAcceptable", CAT, {"Accept": "text/csv"}),
    ("ImageTooLarge", BOMB, {}),
    ("ResponseTooLarge", {"data": base64.b64encode(encoded(noise(1600, 1200))).decode(), "top_k": 10, "overlay": True}, {}),
    ("TooManyInstances", {"instances": [TEXT[:100]] * 65}, {}),
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("kind", "body", "headers"), WRONG, ids=[kind for kind, _, _ in WRONG])
def test_every_error_of_a_client_has_its_status_and_shape(
    live: Server, model: str, kind: str, body: Any, headers: dict[str, str]
) -> None:
    """`{"code", "type", "message"}` with the contract's status, and the server goes on."""
    status = next(status for status, kinds in KINDS.items() if kind in kinds)

    answer = post(live, f"explanations/{model}", body, **headers)

    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert list(answer.json()) == ["code", "type", "message"]
    assert (answer.json()["code"], answer.json()["type"]) == (status, kind)


def test_every_error_of_a_client_is_provoked() -> None:
    """All types but those of our own faults, and `TooMuchWork`, which stands with the pipeline's tests."""
    provoked = {kind for kind, _, _ in WRONG} | {"TooMuchWork"}
    assert provoked == {kind for status, kinds in KINDS.items() if status < 500 for kind in kinds}


# ------------------------------------------------------------------ the log


def test_nothing_that_a_client_sends_is_a_line_of_the_log(live: Server) -> None:
    """Line ends in labels, names, JSON, forms and URLs: no line begins with what came after one."""
    forged = "2026-01-01T00:00:00,000 [ERROR] forged"
    evil = f"x\r\n{forged}\n{forged}"
    url = f"{live.url}/explanations/hostile"
    post(live, "explanations/hostile", {"data": TEXT, "target": evil, "method": evil})
    post(live, "explanations/hostile", {"data": TEXT, evil: evil})
    post(live, "explanations/hostile", {"data": evil})
    post(live, "v1/models/hostile:predict", {"instances": [{"data": evil}], evil: 1})
    post(live, "explanations/hostile", f'{{"data": "{evil}'.encode(), **{"Content-Type": "application/json"})
    post(live, "explanations/hostile", evil.encode(), **{"Content-Type": "text/plain"})
    post(live, "explanations/hostile", f"data=%zz{evil}".encode(), **{"Content-Type": "application/x-www-form-urlencoded"})
    post(live, "explanations/hostile", evil.encode(), **{"Content-Type": "multipart/form-data; boundary=x"})
    requests.post(url, files={"data": ("a.jpg", evil.encode(), "image/jpeg"), "target": (evil, evil.encode(), "")}, timeout=HANG)
    requests.post(url, data={"data": evil, "target": evil}, timeout=HANG)
    requests.get(f"{live.url}/explanations/x%0d%0a{forged.replace(' ', '%20')}", timeout=HANG)
    assert post(live, "predictions/hostile", CAT).status_code == 200

    assert not [line for line in live.lines if line.startswith(forged)]
