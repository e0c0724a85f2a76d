"""What clients get of models of one logit, of several labels at once and of values, on every route, against float64."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from tests.protocol.test_openapi import check_schema
from tests.support.comparison.closeness import assert_close, error_of_sum, unscaled
from tests.support.models import heads
from torch import nn

from camserve import Model
from camserve.core.errors import ConfigError
from camserve.core.messages import Call, Reply
from camserve.monitoring.measure import measure
from camserve.pipeline.prepare import Hooks
from camserve.tools.client.result import read_result
from camserve.tools.watching.baseline import Collector

ERROR = error_of_sum(8 * 64)
NAMES = ["atelectasis", "effusion", "mass", "nodule", "-scar"]
KEYS: dict[str, Any] = {"resize": heads.SIDE, "crop": heads.SIDE, "layers": [heads.LAYER], "channels_last": False}


def draw(seed: int = 0) -> bytes:
    """A picture's file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def shifted(net: heads.Net, *probabilities: float) -> heads.Net:
    """The net with biases that give the first picture these probabilities, each label's by itself."""
    net = net.eval()
    (given,) = tensors(net)
    with torch.no_grad():
        now = net.logits(net.features(given[None]))[0]
        wanted = torch.tensor(probabilities)
        net.fc.bias.data += torch.log(wanted / (1 - wanted)) - now
    return net


def tensors(net: nn.Module, seed: int = 0) -> list[torch.Tensor]:
    """What the model gets of that picture."""
    plain = Model(heads.Net(2).eval(), **KEYS)
    return [plain.preprocess(Image.open(io.BytesIO(draw(seed))).convert("RGB"))]


def ask(model: Model, body: bytes = b"", explain: bool = True, **headers: str) -> Reply:
    """One answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    (reply,) = model.run([Call(explain, named, {"body": body or draw()})])
    return reply


def answer(model: Model, body: bytes = b"", explain: bool = True, **headers: str) -> dict[str, Any]:
    """One JSON answer, which fits the model's own OpenAPI document."""
    reply = ask(model, body, explain, **headers)
    assert reply.status == 200, reply.body
    read: dict[str, Any] = json.loads(reply.body)
    schema = "Answer" if explain else "Predictions"
    check_schema(read, {"$ref": f"#/components/schemas/{schema}"}, model.openapi)
    return read


def send(options: Mapping[str, object]) -> bytes:
    """A JSON request."""
    return json.dumps({"data": base64.b64encode(draw()).decode(), **options}).encode()


@pytest.mark.numeric
@pytest.mark.parametrize("inside", [False, True], ids=["logits", "sigmoid inside"])
@pytest.mark.parametrize("deep", [False, True], ids=["linear", "deep"])
def test_several_labels_at_once(inside: bool, deep: bool) -> None:
    """Each has a probability of its own; those that reach the threshold are explained, the most probable first."""
    net = shifted((heads.Sigmoid if inside else heads.Net)(5, deep), 0.53, 0.02, 0.9, 0.49, 0.04)
    kind: dict[str, Any] = {} if inside else {"scores": "sigmoid"}
    model = Model(net, labels=NAMES, **KEYS, **kind)
    found = answer(model)
    assert found["predictions"] == pytest.approx(dict(zip(NAMES, (0.53, 0.02, 0.9, 0.49, 0.04), strict=True)), abs=1e-5)
    assert found["predictions"] == answer(model, explain=False)
    assert (found["scores"], found["threshold"]) == ("sigmoid", 0.5)
    assert [each["target"] for each in found["explanations"]] == [2, 0]
    right = heads.right(net, tensors(net)[0])
    for each in found["explanations"]:
        assert_close(unscaled(each["heatmap"], each["range"]), right.map(each["target"]), ERROR)
    assert [each["target"] for each in answer(model, x_explain_top_k="3")["explanations"]] == [2, 0, 3]
    assert [each["target"] for each in answer(model, x_explain_target="mass")["explanations"]] == [2]
    lower = Model(net, labels=NAMES, threshold=0.03, max_targets=3, scores="sigmoid", **KEYS)
    assert [each["target"] for each in answer(lower)["explanations"]] == [2, 0, 3]


def test_nothing_found_is_no_finding() -> None:
    """No explanation, no heatmap on the picture, an empty array; the most probable label on request."""
    net = shifted(heads.Net(5), 0.04, 0.02, 0.03, 0.01, 0.02)
    model = Model(net, labels=NAMES, scores="sigmoid", **KEYS)
    found = answer(model)
    assert found["explanations"] == []
    assert found["classes"][0]["label"] == "atelectasis"
    assert [each["target"] for each in answer(model, x_explain_top_k="1")["explanations"]] == [0]
    result = read_result(found)
    with pytest.raises(ValueError, match=r"no label reaches the threshold of 0.5"):
        _ = result.heatmap
    array = ask(model, accept="application/x-npy")
    assert np.load(io.BytesIO(array.body)).shape == (0, 8, 8)
    assert array.headers["x-explain-target"] == "[]"
    picture = ask(model, accept="image/png")
    shown = np.asarray(Image.open(io.BytesIO(picture.body)))
    strip = shown.shape[0] - 40
    assert strip > 0  # with the words
    original = np.asarray(Image.open(io.BytesIO(draw())))
    np.testing.assert_array_equal(shown[strip:, 5:45], original[:, 5:45])
    (shown_here,) = model.explain(Image.open(io.BytesIO(draw())))
    assert shown_here.targets == ()
    assert shown_here.overlay.size == (50, shown.shape[0])
    assert "no label reaches the threshold" in repr(shown_here)


def test_labels_beyond_the_fifth_are_listed_where_they_count() -> None:
    """Whatever a neighbour in the batch has."""
    net = shifted(heads.Net(8), 0.9, 0.8, 0.7, 0.6, 0.58, 0.57, 0.02, 0.01)
    model = Model(net, scores="sigmoid", **KEYS)
    assert list(answer(model)["predictions"]) == ["0", "1", "2", "3", "4", "5"]
    alone = [answer(model, draw(seed)) for seed in range(4)]
    together = model.run([Call(True, {}, {"body": draw(seed)}) for seed in range(4)])
    assert [list(json.loads(reply.body)["predictions"]) for reply in together] == [list(each["predictions"]) for each in alone]


def test_v1_and_v2_of_several_labels() -> None:
    """V1 has a list for each picture; V2's tensors are filled up with -1, zeros and no number."""
    net = heads.Net(5)
    net.fc.weight.data *= 30
    model = Model(shifted(net, 0.53, 0.02, 0.9, 0.49, 0.04), labels=NAMES, scores="sigmoid", **KEYS)
    given = [base64.b64encode(draw(seed)).decode() for seed in range(6)]
    v1 = json.loads(ask(model, json.dumps({"instances": given}).encode()).body)
    check_schema(v1, {"$ref": "#/components/schemas/V1Explanations"}, model.openapi)
    targets = [[each["target"] for each in part["explanations"]] for part in v1["explanations"]]
    longest = max(map(len, targets))
    assert len(set(map(len, targets))) > 1
    body = {"inputs": [{"name": "pictures", "shape": [6], "datatype": "BYTES", "data": given}]}
    v2 = json.loads(ask(model, json.dumps(body).encode()).body)
    check_schema(v2, {"$ref": "#/components/schemas/V2Explained"}, model.openapi)
    outputs = {each["name"]: np.array(each["data"], object).reshape(each["shape"]) for each in v2["outputs"]}
    assert outputs["heatmap"].shape == (6, longest, 8, 8)
    for row, wanted in zip(outputs["target"], targets, strict=True):
        assert list(row) == [*wanted, *[-1] * (longest - len(wanted))]
    missing = outputs["target"] == -1
    assert not outputs["heatmap"][missing].any()
    assert all(value is None for value in outputs["range"][missing].ravel())


@pytest.mark.numeric
@pytest.mark.parametrize("make", [heads.Net, heads.Squeezed, heads.Sigmoid], ids=["[N, 1]", "[N]", "sigmoid"])
@pytest.mark.parametrize("probability", [0.2, 0.8])
def test_one_logit(make: type[heads.Net], probability: float) -> None:
    """The more probable of two classes is explained, by the logit or by its negative; names are those of both, or of one."""
    net = shifted(make(1), probability)
    right = heads.right(net, tensors(net)[0])
    for labels in (["not pneumonia", "pneumonia"], ["pneumonia"]):
        model = Model(net, labels=labels, **KEYS)
        found = answer(model)
        assert found["predictions"] == pytest.approx({"not pneumonia": 1 - probability, "pneumonia": probability}, abs=1e-5)
        (explanation,) = found["explanations"]
        assert explanation["target"] == int(probability > 0.5)
        for each in answer(model, x_explain_target='["not pneumonia", "pneumonia"]')["explanations"]:
            assert_close(unscaled(each["heatmap"], each["range"]), right.map(0, 1 if each["target"] else -1), ERROR)
    careful = Model(net, labels=["pneumonia"], threshold=0.15, **KEYS)
    assert answer(careful)["explanations"][0]["label"] == "pneumonia"
    assert model.metadata["closed_form"] == [heads.LAYER]


def test_a_softmax_inside_is_not_taken_twice() -> None:
    """Its probabilities are the answer's."""
    net = heads.Softmax(5).eval()
    with torch.no_grad():
        own = net(tensors(net)[0][None])[0]
    found = answer(Model(net, **KEYS))
    assert {each["index"]: each["probability"] for each in found["classes"]} == pytest.approx(
        dict(enumerate(own.tolist())), abs=1e-6
    )
    assert "scores" not in found


LOWERED = {
    "a text": send({"target": "-age"}),
    "an index as text": send({"target": "-0"}),
    "a list": send({"target": ["-age"]}),
    "any case": send({"target": "-AGE"}),
}


@pytest.fixture(scope="module")
def aged() -> tuple[heads.Net, Model]:
    """A model of one value."""
    net = heads.Net(1).eval()
    net.fc.bias.data += 50
    return net, Model(net, labels=["age"], scores="none", **KEYS)


@pytest.mark.numeric
def test_a_value_is_explained_in_both_directions(aged: tuple[heads.Net, Model]) -> None:
    """In JSON, in headers and in forms; each answer says which it is."""
    net, model = aged
    right = heads.right(net, tensors(net)[0])
    found = answer(model)
    assert found["predictions"] == pytest.approx({"age": right.logits[0]}, abs=1e-4)
    assert found["scores"] == "none"
    (raises,) = found["explanations"]
    assert (raises["label"], raises["direction"]) == ("age", "raises")
    assert_close(unscaled(raises["heatmap"], raises["range"]), right.map(0), ERROR)
    bodies = {name: answer(model, body) for name, body in LOWERED.items()}
    headers = {text: answer(model, x_explain_target=text) for text in ("-0", "-age", '["-age"]', "[-0]")}
    (reply,) = model.run([Call(True, {}, {"data": draw(), "target": b"-0"})])
    for got in (*bodies.values(), *headers.values(), json.loads(reply.body)):
        (each,) = got["explanations"]
        assert (each["target"], each["label"], each["direction"]) == (0, "-age", "lowers")
        assert_close(unscaled(each["heatmap"], each["range"]), right.map(0, -1), ERROR)


def test_what_lowers_a_value_elsewhere(aged: tuple[heads.Net, Model]) -> None:
    """Arrays and pictures say it in a header, V2 in an output; the library takes the same words."""
    _, model = aged
    array = ask(model, accept="application/x-npy", x_explain_target='["age", "-age"]')
    assert array.headers["x-explain-direction"] == '["raises","lowers"]'
    assert np.load(io.BytesIO(array.body)).shape == (2, 8, 8)
    given = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(draw()).decode()]}
    v2 = json.loads(ask(model, json.dumps({"inputs": [given], "parameters": {"target": "-0"}}).encode()).body)
    check_schema(v2, {"$ref": "#/components/schemas/V2Explained"}, model.openapi)
    assert {each["name"]: each["data"] for each in v2["outputs"]}["direction"] == ["lowers"]
    v1 = json.loads(ask(model, json.dumps({"instances": [json.loads(send({"target": "-age"}))]}).encode()).body)
    assert v1["explanations"][0]["explanations"][0]["direction"] == "lowers"
    assert read_result(answer(model, x_explain_target="-age")).explanations[0].lowers
    (shown,) = model.explain(Image.open(io.BytesIO(draw())), target="-age")
    assert shown.label == "-age"


@pytest.mark.parametrize("target", [-1, -0.0, "-weight", "--age", ["-1"]], ids=str)
def test_other_targets_of_values_are_refused(aged: tuple[heads.Net, Model], target: object) -> None:
    """A number has no -0, so no negative number is one."""
    reply = ask(aged[1], send({"target": target}))
    assert (reply.status, json.loads(reply.body)["type"]) in ((400, "InvalidOption"), (400, "UnknownLabel"))


def test_values_have_no_contrast(aged: tuple[heads.Net, Model]) -> None:
    """The method is neither offered nor taken."""
    assert "contrast" not in aged[1].metadata["methods"]
    for name in ("contrast", "finercam"):
        reply = ask(aged[1], x_explain_method=name)
        assert (reply.status, json.loads(reply.body)["type"]) == (400, "InvalidOption")


def test_classes_have_no_direction() -> None:
    """Where scores are probabilities, nothing lowers one."""
    model = Model(heads.Net(3).eval(), labels=["a", "b", "-b"], **KEYS)
    assert json.loads(ask(model, x_explain_target="-a").body)["type"] == "UnknownLabel"
    assert answer(model, x_explain_target="-b")["explanations"][0]["target"] == 2
    assert "direction" not in answer(model)["explanations"][0]


def test_several_values_stand_in_their_own_order() -> None:
    """All of them: values have no rank. The first is explained."""
    net = heads.Net(7).eval()
    model = Model(net, scores="none", **KEYS)
    found = answer(model)
    assert [each["index"] for each in found["classes"]] == list(range(7))
    assert [each["target"] for each in found["explanations"]] == [0]


def test_the_monitor_follows() -> None:
    """Confidence and margin are of the labels' own probabilities; a value has no margin, and its map is measured."""
    labels = Model(shifted(heads.Net(5), 0.53, 0.02, 0.9, 0.49, 0.04), scores="sigmoid", **KEYS)
    value = Model(heads.Net(1).eval(), scores="none", **KEYS)
    for model, confidence, margin in ((labels, 0.9, 0.37), (value, None, np.nan)):
        collector = Collector(model.scale)
        model.observe(collector)
        answer(model, explain=False)
        values = collector.measurements().values
        assert values["confidence"] == pytest.approx([confidence or answer(model)["classes"][0]["probability"]], abs=1e-5)
        assert values["margin"] == pytest.approx([margin], abs=1e-5, nan_ok=True)
        assert np.isfinite(values["peak"]).all()
    assert measure([], None).targets == []


def test_a_reference_holds_for_one_way_of_reading_scores() -> None:
    """Another output or kind of scores makes it stale; those of plain logits are as they were."""
    plain = Model(heads.Net(5).eval(), **KEYS).provenance
    assert "scores" not in plain.input
    assert Model(heads.Net(5).eval(), scores="sigmoid", **KEYS).provenance.input == f"{plain.input} scores=sigmoid"
    assert Model(heads.FeaturesFirst(5).eval(), **KEYS).provenance.input == f"{plain.input} output=1"


@pytest.mark.parametrize("make", [heads.Squeezed, heads.Sigmoid, heads.FeaturesFirst])
def test_a_postprocess_of_ones_own_gets_what_the_model_gives(make: type[heads.Net]) -> None:
    """The one logit, or the probability; not what is made of it."""
    net = make(1).eval()
    got: list[torch.Tensor] = []

    def own(scores: torch.Tensor) -> str:
        got.append(scores)
        return "own"

    model = Model(net, hooks=Hooks(predictions_of=own), **KEYS)
    assert json.loads(ask(model, explain=False).body) == "own"
    with torch.no_grad():
        given = net(tensors(net)[0][None])
    wanted = given[1] if isinstance(given, tuple) else given
    assert torch.allclose(got[0], wanted.reshape(1), atol=1e-6)


def test_labels_that_do_not_fit_two_classes() -> None:
    """Are refused as ever."""
    with pytest.raises(ConfigError, match="the model has 2 outputs and the labels file 3 entries"):
        Model(heads.Net(1).eval(), labels=["a", "b", "c"], **KEYS)
    with pytest.raises(jsonschema.ValidationError):
        check_schema({"classes": []}, {"$ref": "#/components/schemas/Answer"}, Model(heads.Net(1).eval(), **KEYS).openapi)
