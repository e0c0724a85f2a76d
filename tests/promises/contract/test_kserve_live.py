"""KServe's protocols on their own routes of a live server: with KServe's own client, and by hand from the specifications."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from tests.support.build import encoded, noise
from tests.support.comparison.equality import assert_close
from tests.support.processes.serving import Layered
from tests.support.processes.waiting import HANG

from camserve.tools.commands.serve import Server

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-kserve" / "bin" / "python"
CAT, COFFEE, ROCKET = ((ROOT / "examples" / f"{name}.jpg").read_bytes() for name in ("cat", "coffee", "rocket"))
PHOTOGRAPHS = (CAT, COFFEE, ROCKET)
TEXTS = [base64.b64encode(picture).decode() for picture in PHOTOGRAPHS]
DEMO = "efficientnet_lite0"
RESNET = "resnet18"
MODELS = (DEMO, RESNET)
TENSORS = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).round(2).astype(np.float32)


def post(server: Server, path: str, body: Any, **headers: str) -> requests.Response:
    """JSON, or bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    return requests.post(f"{server.url}/{path}", data=data, headers={"content-type": kind, **headers}, timeout=HANG)


def good(response: requests.Response) -> Any:
    """The JSON of an answer that must be there."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def alone(server: Server, model: str, picture: bytes, **headers: str) -> dict[str, Any]:
    """The answer of an explanation on its plain route."""
    response = requests.post(f"{server.url}/explanations/{model}", data=picture, headers=headers, timeout=HANG)
    found: dict[str, Any] = good(response)
    return found


# ------------------------------------------------------------------ KServe's own client


@pytest.fixture(scope="module")
def client(live: Server) -> dict[str, Any]:
    """What KServe's client got for each of its calls to the small model."""
    if not PYTHON.exists():
        pytest.skip("needs .venv-kserve, which scripts/test.sh makes")
    pictures = [base64.b64encode(encoded(noise(70 + seed, 64, seed), "JPEG")).decode() for seed in range(2)]
    given = {"url": live.url, "model": "hostile", "pictures": pictures, "tensors": TENSORS[:, :, :64, :64].tolist()}
    command = [str(PYTHON), str(ROOT / "tests" / "support" / "environments" / "kserve" / "client.py")]
    found = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=HANG, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    answers: dict[str, Any] = json.loads(found.stdout)
    return answers


def test_kserves_client_gets_v1_predictions(client: dict[str, Any]) -> None:
    """Four ways to write an instance, four predictions in their order."""
    predictions = client["v1_predict"]["answer"]["predictions"]

    assert len(predictions) == 4
    assert all(sum(each.values()) == pytest.approx(1, abs=1e-5) for each in predictions)
    assert_close(predictions[0], predictions[2])


def test_kserves_client_gets_v1_explanations(client: dict[str, Any]) -> None:
    """Each instance's own options, and its map in rows."""
    answer = client["v1_explain"]["answer"]

    assert list(answer) == ["predictions", "explanations"]
    first, second = answer["explanations"]
    assert "predictions" not in first
    assert [each["target"] for each in first["explanations"]] == [1, 0]
    assert (first["method"], second["method"]) == ("gradcam", "gradcam++")
    assert len(second["explanations"]) == 2
    assert np.shape(first["explanations"][0]["heatmap"]) == (8, 8)


@pytest.mark.parametrize("name", ["v1_bad", "v2_bad"])
def test_kserves_client_is_told_which_instance_is_bad(client: dict[str, Any], name: str) -> None:
    """Its exception carries our message."""
    found = client[name]

    assert found["status"] == 400
    assert found["error"]["message"].startswith("instance 1:")
    assert "instance 1:" in found["text"]


def test_kserves_client_gets_v2_predictions(client: dict[str, Any]) -> None:
    """Label, index and probability `[n, k]`, of the same values in JSON and in the binary extension; the id comes back."""
    told, binary = client["v2_json"]["answer"], client["v2_binary"]["answer"]

    assert (told["id"], told["model"]) == ("7", "hostile")
    assert {name: output[:2] for name, output in told["outputs"].items()} == {
        "label": ["BYTES", [2, 3]],
        "index": ["INT64", [2, 3]],
        "probability": ["FP32", [2, 3]],
    }
    assert list(binary["outputs"]) == ["probability", "label", "index"]
    assert_close(dict(sorted(binary["outputs"].items())), dict(sorted(told["outputs"].items())))


def test_kserves_client_sends_tensors(client: dict[str, Any]) -> None:
    """FP32 `[n, 3, H, W]` in the binary extension gives what the same numbers give in V1."""
    outputs = client["v2_tensor"]["answer"]["outputs"]
    labels, probabilities = outputs["label"][2][:3], outputs["probability"][2][:3]

    assert_close(dict(zip(labels, probabilities, strict=True)), client["v1_predict"]["answer"]["predictions"][3])


def test_kserves_client_gets_v2_explanations(client: dict[str, Any]) -> None:
    """With the shape kept: `[n, t, h, w]`."""
    outputs = {each["name"]: each for each in client["v2_explain"]["answer"]["outputs"]}

    assert outputs["heatmap"]["shape"] == [2, 2, 8, 8]
    assert outputs["target"]["data"] == [1, 0, 1, 0]
    assert outputs["range"]["shape"] == [2, 2, 2]
    assert outputs["view"]["shape"] == [2, 4]


def test_kserves_client_gets_the_same_from_many_calls_at_once(client: dict[str, Any]) -> None:
    """Whatever batches the server makes of them, each call gets what it got alone."""
    for name, found in client["together"]["answer"]:
        assert_close(found, client[name])


# ------------------------------------------------------------------ by hand


@pytest.mark.parametrize("model", MODELS)
def test_v1_explain_is_the_plain_answer_of_each_instance(live: Server, model: str) -> None:
    """`{"predictions": [...], "explanations": [...]}`, each part what `/explanations` answers for that picture."""
    layer = {"layer": "layer3"} if model == RESNET else {}
    instances = [{"data": TEXTS[0], "target": "espresso", **layer}, {"b64": TEXTS[1], "method": "layercam"}, TEXTS[2]]

    answer = good(post(live, f"v1/models/{model}:explain", {"instances": instances}))

    asked = [{"X-Explain-Target": "espresso", **{f"X-Explain-{name}": value for name, value in layer.items()}}]
    asked += [{"X-Explain-Method": "layercam"}, {}]
    assert list(answer) == ["predictions", "explanations"]
    assert len(answer["predictions"]) == len(answer["explanations"]) == 3
    for picture, headers, prediction, explanation in zip(PHOTOGRAPHS, asked, *answer.values(), strict=True):
        wanted = alone(live, model, picture, **headers)
        assert_close(prediction, wanted.pop("predictions"))
        assert_close(explanation, wanted)


def test_v1_predict_ignores_accept(live: Server) -> None:
    """What cannot be met elsewhere does not matter here; TorchServe needs no envelope for the route."""
    answer = good(post(live, f"v1/models/{DEMO}:predict", {"instances": TEXTS[:1]}, Accept="text/csv"))

    assert list(answer) == ["predictions"]
    assert_close(answer["predictions"][0], requests.post(f"{live.url}/predictions/{DEMO}", data=CAT, timeout=HANG).json())


def test_v1_takes_its_limit_and_no_more(live: Server) -> None:
    """`max_instances` tiny pictures are answered; one more is a 413."""
    tiny = base64.b64encode(encoded(noise(8, 8))).decode()

    answer = good(post(live, "v1/models/hostile:predict", {"instances": [tiny] * 64}))
    refused = post(live, "v1/models/hostile:predict", {"instances": [tiny] * 65})

    assert len(answer["predictions"]) == 64
    assert (refused.status_code, refused.json()["type"]) == (413, "TooManyInstances")


@pytest.mark.parametrize("model", MODELS)
def test_v2_explain_keeps_its_shapes(live: Server, model: str) -> None:
    """Heatmaps `[n, t, h, w]` of three pictures and two targets each; the values are the plain answers'."""
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [3], "data": TEXTS}]
    body = {"id": "a", "inputs": inputs, "parameters": {"target": "[281, 967]", "method": "gradcam"}}

    answer = good(post(live, f"v2/models/{model}/explain", body))

    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("a", model, "1.0")
    outputs = {each["name"]: each for each in answer["outputs"]}
    shapes = {name: each["shape"] for name, each in outputs.items()}
    assert shapes == {
        **{"label": [3, 5], "index": [3, 5], "probability": [3, 5]},
        **{"heatmap": [3, 2, 7, 7], "target": [3, 2], "range": [3, 2, 2], "view": [3, 4]},
    }
    heatmaps = np.reshape(outputs["heatmap"]["data"], shapes["heatmap"])
    views = np.reshape(outputs["view"]["data"], shapes["view"])
    for row, picture in enumerate(PHOTOGRAPHS):
        wanted = alone(live, model, picture, **{"X-Explain-Target": "[281, 967]", "X-Explain-Method": "gradcam"})
        for turn, explanation in enumerate(wanted["explanations"]):
            np.testing.assert_allclose(heatmaps[row, turn], explanation["heatmap"], atol=1e-4)
        np.testing.assert_allclose(views[row], wanted["image"]["view"], atol=0.01)


def test_v2_binary_by_hand(live: Server) -> None:
    """Two files after the JSON, each after its length; the heatmaps come back as little-endian float32 after theirs."""
    tail = b"".join(struct.pack("<I", len(picture)) + picture for picture in (CAT, COFFEE))
    head = {
        "inputs": [{"name": "x", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(tail)}}],
        "outputs": [{"name": "heatmap", "parameters": {"binary_data": True}}, {"name": "index"}],
    }
    part = json.dumps(head).encode()

    response = post(live, f"v2/models/{DEMO}/explain", part + tail, **{"Inference-Header-Content-Length": str(len(part))})

    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    heatmap, index = json.loads(response.content[:length])["outputs"]
    assert (heatmap["shape"], heatmap["parameters"]) == ([2, 1, 7, 7], {"binary_data_size": 2 * 49 * 4})
    assert index["data"][0] in (281, 282, 285)
    values = np.frombuffer(response.content[length:], "<f4").reshape(2, 7, 7)
    np.testing.assert_allclose(values[1], alone(live, DEMO, COFFEE)["explanations"][0]["heatmap"], atol=1e-4)


def test_v2_tensors_by_hand(live: Server, layered: Layered) -> None:
    """FP32 `[n, 3, H, W]`, flat and nested: the same predictions; without a picture there is no view."""
    tensor = TENSORS[:1, :, : layered.side, : layered.side]
    asked = {"name": "x", "datatype": "FP32", "shape": tensor.shape}
    flat, nested = (
        good(post(live, f"v2/models/{layered.name}/explain", {"inputs": [{**asked, "data": data}]}))
        for data in (tensor.ravel().tolist(), tensor.tolist())
    )

    assert_close(flat, nested)
    assert [each["name"] for each in flat["outputs"]] == ["label", "index", "probability", "heatmap", "target", "range"]


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        (f"v1/models/{DEMO}:predict", {"instances": [TEXTS[0], TEXTS[0][:400]]}, "InvalidImage"),
        (f"v1/models/{DEMO}:explain", {"instances": [TEXTS[0], {"data": TEXTS[0], "target": "tabbi"}]}, "UnknownLabel"),
        (
            f"v2/models/{DEMO}/infer",
            {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [2], "data": [TEXTS[0], "!"]}]},
            "InvalidBase64",
        ),
        (
            f"v2/models/{DEMO}/explain",
            {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [2], "data": [TEXTS[0], "AAAA"]}]},
            "UnsupportedFormat",
        ),
    ],
)
def test_a_bad_instance_names_its_index(live: Server, path: str, body: Any, kind: str) -> None:
    """A 400 whose message starts with `instance 1:`."""
    response = post(live, path, body)

    assert (response.status_code, response.json()["type"]) == (400, kind)
    assert response.json()["message"].startswith("instance 1: ")


def test_many_requests_of_many_instances_at_once(live: Server) -> None:
    """Sixty requests of both protocols and modes, of one to three instances, good and bad: each gets what it got alone."""
    png = base64.b64encode(encoded(noise(300, 200), "PNG")).decode()
    kinds: list[tuple[str, Any]] = []
    for model in (DEMO, "hostile"):
        kinds += [
            (f"v1/models/{model}:predict", {"instances": [TEXTS[0], png]}),
            (f"v1/models/{model}:explain", {"instances": [{"data": each, "top_k": 2} for each in TEXTS]}),
            (f"v1/models/{model}:explain", {"instances": [png, {"b64": "AAAA"}]}),
            (f"v2/models/{model}/infer", {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [2], "data": [png, TEXTS[1]]}]}),
            (f"v2/models/{model}/explain", {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": [TEXTS[2]]}]}),
            (f"explanations/{model}", {"data": TEXTS[1], "method": "contrast"}),
        ]
    before = [post(live, *kind) for kind in kinds]
    assert {answer.status_code for answer in before} == {200, 400}

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda place: post(live, *kinds[place % len(kinds)]), range(60)))

    for place, answer in enumerate(answers):
        wanted = before[place % len(kinds)]
        assert (answer.status_code, answer.headers["content-type"]) == (wanted.status_code, wanted.headers["content-type"])
        assert_close(answer.json(), wanted.json())
