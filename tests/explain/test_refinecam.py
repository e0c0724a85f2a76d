"""Several layers taken together: RefineCAM against the formula in float64, on networks of each kind, and how it is asked for."""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.support import build
from tests.support.comparison import equality, oracle
from tests.support.comparison.closeness import assert_close, unscaled
from tests.support.models import nets
from tests.support.models.graphs import write_graph
from torch import Tensor, nn

from camserve import Model
from camserve.capture import open_backend
from camserve.capture.backend import Backend
from camserve.capture.models.passes import Pass
from camserve.capture.models.programs.graphs.module import load_graph
from camserve.core.config import Config
from camserve.core.errors import ConfigError, RequestError
from camserve.core.messages import Call
from camserve.explain import explainer
from camserve.explain.explainer import Explainer, Prediction
from camserve.explain.methods import CONTRAST_CLASSES, refine
from camserve.explain.ranking import Task
from camserve.pictures.bounds.limits import Deadline

CPU = torch.device("cpu")
Floats = NDArray[np.float64]

LAYERS = {
    "pooled": ("stem", "features"),
    "deep": ("norm", "relu"),
    "functional": ("body.0", "body"),
    "attending": ("layers.0", "layers.1.norm"),
    "last": ("patch", "norm"),
}
"""Of each net, in the order in which they run; the last of `pooled` has a closed form, the others need backward passes."""


IN_GRAPH = {
    "pooled": ("/stem/stem.2/Relu_output_0", "/features/features.1/Relu_output_0"),
    "deep": ("/conv/Conv_output_0", "/relu/Relu_output_0"),
    "attending": ("/layers.0/Add_output_0", "/layers.1/norm/LayerNormalization_output_0"),
    "last": ("/patch/Conv_output_0", "/norm/LayerNormalization_output_0"),
}
"""The same layers in a graph."""


def grid(values: Tensor, picture: Tensor, *, last: bool) -> Floats:
    """A layer's values of one picture as `[C, h, w]`: a map, tokens behind a class token, or a map whose channels lie `last`."""
    if values.ndim == 2:
        rows, columns = picture.shape[1] // 8, picture.shape[2] // 8
        values = values[1:].T.reshape(-1, rows, columns)
    elif last:
        values = values.permute(2, 0, 1)
    return values.double().numpy()


def exact(module: nn.Module, layers: tuple[str, ...], picture: Tensor, target: int) -> Floats:
    """RefineCAM of one picture by autograd in float64: LayerCAM's maps, and at the last layer that of the contrast."""
    double, batch = copy.deepcopy(module).double(), picture[None].double()
    logits = double(batch)
    scores = (logits if isinstance(logits, Tensor) else logits[0])[0]
    rivals = [int(each) for each in scores.argsort(descending=True) if each != target][:CONTRAST_CLASSES]

    def seen(layer: str, index: int) -> tuple[Floats, Floats]:
        _, output, gradient = nets.by_autograd(double, layer, batch, torch.tensor([index]))
        last = isinstance(double.get_submodule(layer), nn.LayerNorm)
        return grid(output[0], picture, last=last), grid(gradient[0], picture, last=last)

    maps = [oracle.layercam(*seen(layer, target)) for layer in layers[:-1]]
    contrasts = [seen(layers[-1], rival)[1] for rival in rivals]
    return oracle.refinecam([*maps, oracle.finer_cam(*seen(layers[-1], target), contrasts)])


def opened(name: str, kind: str, folder: Path) -> Explainer:
    """A net as an archive holds it, at its layers, given the last first; `onnxruntime`: an eager one whose trunk runs there."""
    module: object
    keys: dict[str, Any] = {}
    if kind in ("onnx", "onnxruntime"):
        pytest.importorskip("onnxruntime")
    if kind == "onnx":
        module, layers = load_graph(write_graph(nets.net(name), folder / "net.onnx", nets.pictures(2))), IN_GRAPH[name]
    elif kind == "onnxruntime":
        module, layers, keys = nets.net(name), LAYERS[name], {"runtime": kind}
    else:
        module, layers = nets.loaded(name, kind), LAYERS[name]
    made = open_backend(module, Config(layers=layers[::-1], **keys), (nets.SIDE, nets.SIDE), CPU)
    assert made.placed == layers
    assert made.runtime.name == {"onnx": "onnxruntime"}.get(kind, keys.get("runtime", "torch"))
    return Explainer(made, CPU)


# ------------------------------------------------------------------ the formula


@pytest.mark.numeric
@pytest.mark.parametrize(
    "shapes", [((4, 5), (2, 3)), ((3, 4), (3, 4)), ((6, 2), (2, 6), (1, 1)), ((7, 7), (14, 14), (28, 28)), ((1, 1), (2, 2))]
)
def test_equals_the_formula(shapes: tuple[tuple[int, int], ...]) -> None:
    """Whatever the grids are, and in whatever order they come: as fine as the finest along each axis."""
    random = torch.Generator().manual_seed(1)
    maps = [torch.randn(3, *shape, generator=random).relu() * 10.0 ** (5 * place - 7) for place, shape in enumerate(shapes)]
    found = refine(maps)
    assert found.dtype == torch.float32
    for row in range(3):
        wanted = oracle.refinecam([each[row].numpy() for each in maps])
        np.testing.assert_allclose(found[row].numpy(), wanted, rtol=1e-5, atol=1e-7)


def test_by_hand() -> None:
    """Two rows of cells over one: bilinear between the two columns' centres, a quarter of the way at the cells' own."""
    fine, coarse = torch.tensor([[[1.0, 2.0, 4.0, 2.0]]]), torch.tensor([[[6.0, 3.0]]])
    shares = torch.tensor([[[1.0, 0.875, 0.625, 0.5]]])
    torch.testing.assert_close(refine([fine, coarse]), torch.tensor([[[0.25, 0.5, 1.0, 0.5]]]) * shares)


def test_what_says_nothing_stays_so() -> None:
    """A map that is 0 everywhere makes the product 0, one that is the same everywhere changes nothing, overflow stays seen."""
    fine = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(refine([fine, torch.zeros(1, 2, 2)]), torch.zeros(1, 4, 4))
    torch.testing.assert_close(refine([fine, torch.full((1, 2, 2), 1e-30)]), fine / fine.max())
    for bad in (float("inf"), float("nan")):
        assert not torch.isfinite(refine([fine, torch.tensor([[[bad, 1.0], [1.0, 1.0]]])])).all()
    small, large = torch.tensor([[[1e-38, 2e-38]]]), torch.tensor([[[3e38, 1e38]]])
    torch.testing.assert_close(refine([small, large]), torch.tensor([[[0.5, 1 / 3]]]), rtol=1e-5, atol=0)


# ------------------------------------------------------------------ networks


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in LAYERS for kind in ("eager", "script", "exported")),
        *((name, kind) for name in IN_GRAPH for kind in ("onnx", "onnxruntime")),
    ],
)
def test_networks_equal_the_formula(name: str, kind: str, tmp_path: Path) -> None:
    """A convolutional network with a closed form and ones without, tokens, channels last: in a batch of mixed methods."""
    explainer, batch = opened(name, kind, tmp_path), nets.pictures(3)
    layers = explainer.backend.placed
    tasks = [Task(layers, "refinecam", (1, 3)), Task(layers[0], "gradcam"), Task(layers, "refinecam", (0,))]
    found = explainer.explain(list(batch), tasks)
    for row, targets in ((0, (1, 3)), (2, (0,))):
        seen = found[row]
        assert isinstance(seen, Prediction)
        for each, target in zip(seen.explanations, targets, strict=True):
            wanted = exact(nets.net(name), LAYERS[name], batch[row], target)
            if wanted.max() == 0:
                assert each.warnings == ("zero",)
            else:
                assert_close(unscaled(each.heatmap, each.range), wanted, 1e-4)
    (alone,) = explainer.explain([batch[2]], [tasks[2]])
    assert isinstance(alone, Prediction)
    assert np.abs(alone.explanations[0].heatmap - found[2].explanations[0].heatmap).max() < 1e-4  # type: ignore[union-attr]


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["pooled", "attending"])
@pytest.mark.parametrize("size", [(32, 48), (56, 24)])
def test_other_proportions_equal_the_formula(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Pictures of another size than the surveyed one have grids of their own, and no closed form."""
    explainer = opened(name, "eager", tmp_path)
    picture = torch.randn(3, *size, generator=torch.Generator().manual_seed(3))
    (seen,) = explainer.explain([picture], [Task(LAYERS[name], "refinecam", (2,))])
    assert isinstance(seen, Prediction)
    wanted = exact(nets.net(name), LAYERS[name], picture, 2)
    assert seen.grid == seen.explanations[0].heatmap.shape == wanted.shape
    assert_close(unscaled(seen.explanations[0].heatmap, seen.explanations[0].range), wanted, 1e-4)


# ------------------------------------------------------------------ requests


class Stages(nn.Module):
    """Three stages of 16, 8 and 4 cells a side, pooled, and a linear layer."""

    def __init__(self, classes: int = 6, sigmoid: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        widths = (3, 6, 8, 10)
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(*pair, 3, 2, 1), nn.ReLU()) for pair in pairwise(widths))
        self.fc = nn.Linear(widths[-1], classes)
        self.sigmoid = sigmoid

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, 32, 32]` to `[N, classes]`."""
        for stage in self.stages:
            x = stage(x)
        scores = self.fc(x.mean((2, 3)))
        return torch.sigmoid(scores) if self.sigmoid else scores


ALL = ("stages.0", "stages.1", "stages.2")
PICTURE = Image.fromarray(build.noise(48, 40, 4))
KEYS: dict[str, Any] = {"resize": 32, "crop": 32, "channels_last": False, "layers": ["stages.2", "stages.0", "stages.1"]}


@pytest.fixture(scope="module")
def model() -> Model:
    """Serves three layers, the last one first."""
    return Model(Stages().eval(), **KEYS)


def run(model: Model, **given: Any) -> tuple[int, dict[str, Any]]:
    """What a request in JSON gets: its status, and its body."""
    body = {"data": base64.b64encode(build.encoded(PICTURE)).decode(), **given}
    (reply,) = model.run([Call(True, {"content-type": "application/json"}, {"body": body})])
    return reply.status, json.loads(reply.body)


@pytest.mark.parametrize(
    ("given", "layer", "cells"),
    [
        ({"method": "refinecam"}, "stages.0,stages.1,stages.2", 16),
        ({"layer": ["stages.2", "stages.1"]}, "stages.1,stages.2", 8),
        ({"layer": "stages.2, stages.0", "method": "refinecam"}, "stages.0,stages.2", 16),
        ({"layer": ["stages.1", "stages.1", "stages.2"]}, "stages.1,stages.2", 8),
        ({"layer": '["stages.1", "stages.2"]'}, None, 0),
        ({}, "stages.2", 4),
    ],
)
def test_a_request_says_which_layers(model: Model, given: dict[str, Any], layer: str | None, cells: int) -> None:
    """The method's are all that are served, several are the method's, and the answer says them in the order in which they run."""
    status, answer = run(model, **given)
    if layer is None:
        assert (status, answer["type"]) == (400, "InvalidOption")  # a JSON string is a name
        return
    assert status == 200
    assert (answer["layer"], answer["method"]) == (layer, "refinecam" if "," in layer else "gradcam++")
    (explanation,) = answer["explanations"]
    assert np.shape(explanation["heatmap"]) == (cells, cells)
    if "," in layer:
        low, high = explanation["range"]
        assert 0 <= low < high <= 1
        again = run(model, layer=answer["layer"])[1]
        assert again["explanations"] == answer["explanations"]


def test_text_spells_layers_too(model: Model) -> None:
    """A header has names with commas between, or a JSON list."""
    for text in ("stages.1,stages.2", " stages.2 , stages.1", '["stages.2", "stages.1"]'):
        headers = {"x-explain-layer": text}
        (reply,) = model.run([Call(True, headers, {"body": build.encoded(PICTURE)})])
        assert json.loads(reply.body)["layer"] == "stages.1,stages.2"


ONE_OR_SEVERAL = "stages.2, stages.0 or stages.1, or for refinecam a list of two of them or more"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": ["stages.1", "fc"]}, f'layer: expected {ONE_OR_SEVERAL}, got "fc" among them'),
        ({"layer": ["stages.1"]}, f"layer: expected {ONE_OR_SEVERAL}, got a list of 1"),
        ({"layer": ["stages.1", "stages.1"]}, f"layer: expected {ONE_OR_SEVERAL}, got a list of 2"),
        ({"layer": []}, f"layer: expected {ONE_OR_SEVERAL}, got a list of 0"),
        ({"layer": ["stages.1", 2]}, f"layer: expected {ONE_OR_SEVERAL}, got a list of 2"),
        ({"layer": "stages.1,"}, f'layer: expected {ONE_OR_SEVERAL}, got "" among them'),
        ({"layer": ["stages.1", "stages.2"], "method": "gradcam"}, "layer: gradcam takes one layer, got 2; only refinecam takes"),
        ({"layer": "stages.1", "method": "refinecam"}, 'layer: refinecam takes two layers or more, got "stages.1"; leave layer'),
    ],
)
def test_what_does_not_fit_is_refused(model: Model, given: dict[str, Any], message: str) -> None:
    """With what came, and what is accepted."""
    status, answer = run(model, **given)
    assert (status, answer["type"]) == (400, "InvalidOption")
    assert answer["message"].startswith(message)


def test_an_archive_of_the_method(model: Model) -> None:
    """Its default is all layers together; one layer is asked for with a method that takes one."""
    own = Model(Stages().eval(), method="refinecam", **KEYS)
    assert (own.metadata["method"], own.metadata["layer"]) == ("refinecam", ",".join(ALL))
    assert own.metadata["methods"][-1] == "refinecam"
    assert (own.provenance.layer, own.provenance.method) == ("stages.2", "gradcam++")  # what is watched
    assert run(own)[1]["explanations"] == run(model, method="refinecam")[1]["explanations"]
    assert run(own, method="gradcam")[1]["layer"] == "stages.2"
    assert run(own, layer="stages.1")[1]["message"].startswith('layer: refinecam takes two layers or more, got "stages.1"')
    assert own.openapi["components"]["schemas"]["layer"]["default"] == list(ALL)
    with pytest.raises(ConfigError, match=r"method: refinecam takes two layers or more together, got stages\.2"):
        Model(Stages().eval(), method="refinecam", **{**KEYS, "layers": ["stages.2"]})


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (
            {"layers": ["stages.2"]},
            "it takes several layers together, and this archive serves one (package.py --layers serves more)",
        ),
        ({"scores": "none"}, "it contrasts classes, and values are none"),
    ],
)
def test_where_it_is_not_offered(keys: dict[str, Any], why: str) -> None:
    """It is no method of the metadata, and asking for it says why."""
    own = Model(Stages().eval(), **{**KEYS, **keys})
    assert "refinecam" not in own.metadata["methods"]
    status, answer = run(own, method="refinecam")
    assert (status, answer["message"].split("; ")[0]) == (400, f"method: refinecam cannot be had here: {why}")
    assert run(own, layer=list(ALL[:2]))[0] == 400


def fail(*_: object) -> Tensor:
    """As where one of the layers has no gradient."""
    raise RuntimeError("the scores have no gradient with respect to layer stages.0")


def overflow(maps: list[Tensor]) -> Tensor:
    """As where one map is not finite."""
    return refine(maps) / 0


@pytest.mark.parametrize(("refining", "why"), [(fail, "RuntimeError"), (overflow, "the map is not finite")])
def test_layers_that_cannot_be_taken_together(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refining: Any, why: str
) -> None:
    """Where the trial at load fails, the method is not offered, the log says why, and every layer is served by itself."""
    monkeypatch.setattr(explainer, "refine", refining)
    own = Model(Stages().eval(), **KEYS)
    assert f"method refinecam is not offered: stages.0, stages.1 or stages.2 cannot be taken together: {why}" in caplog.text
    assert run(own, layer="stages.0")[0] == 200
    assert "those of this archive cannot be, as its log says" in run(own, method="refinecam")[1]["message"]
    with pytest.raises(ConfigError, match="the self-test of refinecam"):
        Model(Stages().eval(), method="refinecam", **KEYS)


def test_layers_that_no_trial_places_are_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What lies no one knows where is not laid on anything: such a layer is served by itself, as ever."""
    real: property = vars(Backend)["placed"]

    def place(self: Backend) -> Any:
        return real.__get__(
            replace(self, aligned={name: replace(each, told=name not in left) for name, each in self.aligned.items()})
        )

    monkeypatch.setattr(Backend, "placed", property(place))
    left = {"stages.0"}
    own = Model(Stages().eval(), **KEYS)
    assert run(own, method="refinecam")[1]["layer"] == "stages.1,stages.2"
    assert run(own, layer="stages.0")[0] == 200
    message = run(own, layer=list(ALL))[1]["message"]
    assert message.endswith('or for refinecam a list of two of stages.1 or stages.2 or more, got "stages.0" among them')
    left = {"stages.0", "stages.2"}
    own = Model(Stages().eval(), **KEYS)
    assert "refinecam" not in own.metadata["methods"]
    assert "method refinecam is not offered: no trial tells where the cells of stages.2 or stages.0 lie" in caplog.text


@pytest.mark.numeric
def test_each_request_of_a_batch_gets_what_it_would_get_alone(model: Model) -> None:
    """Mixed methods, layers, targets and media; the map's place, its region, contours and checks are those of the finest grid."""
    asked: list[dict[str, Any]] = [
        {"method": "refinecam", "target": [1, 4]},
        {"layer": ["stages.1", "stages.2"], "target": 2, "contours": [0.5]},
        {"method": "contrast", "layer": "stages.0"},
        {"method": "refinecam", "check": True, "inside": [0, 0, 24, 40]},
        {"layer": ["stages.1", "fc"]},
        {"method": "refinecam", "format": "npy"},
    ]
    data = base64.b64encode(build.encoded(PICTURE)).decode()
    calls = [Call(True, {"content-type": "application/json"}, {"body": {"data": data, **each}}) for each in asked]
    for together, call in zip(model.run(calls), calls, strict=True):
        (alone,) = model.run([call])
        assert (together.status, together.content_type) == (alone.status, alone.content_type)
        equality.assert_close(*(json.loads(each.body) for each in (together, alone))) if "json" in alone.content_type else None
    checked = run(model, method="refinecam", check=True, inside=[0, 0, 48, 40])[1]["explanations"][0]
    assert checked["check"]["verdict"] in ("supported", "weak", "unsupported")
    assert checked["inside"]["share"] == pytest.approx(1, abs=1e-6)


@pytest.mark.numeric
def test_several_labels_at_once() -> None:
    """Behind a sigmoid the maps are of the logits, as for a model without it."""
    plain, ended = (Model(Stages(sigmoid=end).eval(), **KEYS) for end in (False, True))
    one, other = (run(each, method="refinecam", target=[0, 3])[1]["explanations"] for each in (plain, ended))
    for first, second in zip(one, other, strict=True):
        np.testing.assert_allclose(first["heatmap"], second["heatmap"], atol=1e-4)


def test_what_it_costs(model: Model) -> None:
    """A pass for each target at each layer, and at the last one for each rival, unless its gradients are known."""
    explainer_ = model.pipeline.explainer
    assert explainer_.count_passes(Task(ALL, "refinecam", (1, 2))) == 1 + 2 * 2
    assert explainer_.count_passes(Task(ALL[:2], "refinecam")) == 1 + 1 + (1 + CONTRAST_CLASSES)
    assert explainer_.count_passes(Task("stages.0", "contrast")) == 1 + 1 + CONTRAST_CLASSES
    assert explainer_.count_passes(Task("stages.2", "contrast")) == 1


@pytest.mark.parametrize("most", range(1, 5))
def test_no_pass_begins_once_time_is_over(model: Model, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Between two layers, and between two rivals at the last one: the answer is a 503."""
    passes: list[str] = []
    differentiate: Any = Pass.gradients

    def count(self: Pass, layer: str, *given: Any) -> Tensor:
        passes.append(layer)
        found: Tensor = differentiate(self, layer, *given)
        return found

    class Short(Deadline):
        @property
        def over(self) -> bool:
            return len(passes) >= most

    monkeypatch.setattr(Pass, "gradients", count)
    (found,) = model.pipeline.explainer.explain([torch.rand(3, 32, 32)], [Task(ALL[:2], "refinecam")], deadline=Short())
    assert isinstance(found, RequestError)
    assert (found.status, len(passes)) == (503, most)
