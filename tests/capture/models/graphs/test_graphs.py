"""A model's ONNX graph is explained as the model itself is: by the same layer, with the same maps, within what float32 rounds."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from tests.support.comparison.closeness import assert_close, exact
from tests.support.models import graphs, nets
from torch import Tensor, nn

from camserve.capture import Backend, load_graph, open_backend
from camserve.capture.runtimes.engines import ENGINES, is_installed
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.explain import methods

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
EQUAL = 1e-4


class Vgg(nn.Module):
    """Convolutions and a head of linear layers over all cells, as VGG has it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Linear(12 * 64, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, nets.CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, 32, 32]` to `[N, CLASSES]`."""
        return self.classifier(self.features(x).flatten(1))


class Labels(nn.Module):
    """Several labels at once: a sigmoid at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.Pooled()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to probabilities `[N, CLASSES]`."""
        return torch.sigmoid(self.net(x))


class Likely(nn.Module):
    """One class of several: a softmax at the end, of a head that needs autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.Deep()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to probabilities `[N, CLASSES]`."""
        return torch.softmax(self.net(x), 1)


SMALL = {"image_size": 64, "patch_size": 16, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 7}
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=7), 64),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=7), 64),
    "efficientnet_b0": (lambda: torchvision.models.efficientnet_b0(num_classes=7), 64),
    "vit": (lambda: torchvision.models.VisionTransformer(**SMALL), 64),
    "vgg": (Vgg, 32),
    "labels": (Labels, 32),
    "likely": (Likely, 32),
    "pooled": (nets.Pooled, 32),
    "attending": (nets.Attending, 32),
    "last": (nets.Last, 32),
    "sequence": (nets.Sequence, 32),
}
"""Models with random weights, and the sides of their pictures."""


def made(name: str) -> nn.Module:
    """A model with random weights and statistics."""
    torch.manual_seed(3)
    model = MODELS[name][0]()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        if isinstance(part, torchvision.models.VisionTransformer):
            nn.init.normal_(part.heads.head.weight)  # it begins with zeros
    return model.eval()


def opened(model: Any, side: int, **keys: Any) -> Backend:
    """A model, or a graph's file."""
    config = Config(**{"channels_last": False, **keys})
    return open_backend(load_graph(model) if isinstance(model, Path) else model, config, (side, side), CPU)


@cache
def opened_itself(name: str) -> Backend:
    """The model itself, which graphs are compared with."""
    return opened(made(name), MODELS[name][1])


def explain(backend: Backend, pictures: Tensor, targets: Tensor, method: str = "gradcam++") -> tuple[Tensor, Tensor]:
    """The model's own values, and the default layer's unscaled maps."""
    layer = backend.layers[0]
    captured = backend.capture.forward(pictures, [layer])
    gradients = captured.gradients(layer, torch.arange(len(pictures)), targets)
    return captured.values, methods.METHODS[method].function(captured.activation(layer), gradients)


def assert_same(one: Tensor, other: Tensor, tolerance: float = EQUAL) -> None:
    """Maps of one shape that differ by no more than a share of the largest value."""
    assert one.shape == other.shape
    assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_is_explained_as_its_model(name: str, tmp_path: Path) -> None:
    """The rule takes the same map; values, gradients of any class, and every method's maps are the model's."""
    model, side = made(name), MODELS[name][1]
    path = graphs.write_graph(model, tmp_path / "net.onnx", nets.pictures(2, side=side))
    eager, graph = opened_itself(name), opened(path, side)
    assert (graph.kind, graph.runtime.name, graph.runtime.why) == ("onnx", "onnxruntime", "")
    assert (graph.reader.kind, graph.reader.ending) == (eager.reader.kind, eager.reader.ending)
    assert bool(graph.closed_form) is bool(eager.closed_form)
    assert graph.uneven == eager.uneven
    for count in (1, 3):
        pictures, targets = nets.pictures(count, seed=9, side=side), torch.arange(count)
        for method in ("gradcam++", "layercam"):
            values, maps = explain(graph, pictures, targets, method)
            wanted, right = explain(eager, pictures, targets, method)
            assert torch.allclose(values, wanted, atol=1e-5, rtol=1e-4)
            assert_same(maps, right)
    plain = graph.capture.forward(pictures, ())
    assert torch.allclose(plain.values, values, atol=1e-6)


@pytest.mark.parametrize("runtime", ["auto", *(name for name in ENGINES if is_installed(name))])
def test_runtimes_that_can_be_asked_for(runtime: str, tmp_path: Path) -> None:
    """OpenVINO is in an environment of its own, where this runs again (`test_openvino`)."""
    asked = {"runtime": runtime, "given": frozenset({"runtime"})}
    for name in ("vgg", "attending", "likely"):
        model = made(name)
        path = graphs.write_graph(model, tmp_path / f"{name}.onnx", nets.pictures(2))
        graph, eager = opened(path, 32, **asked), opened_itself(name)
        assert graph.runtime.name == runtime or (runtime == "auto" and graph.runtime.name in ENGINES)
        assert graph.runtime.why == ""
        pictures, targets = nets.pictures(3, seed=2), torch.arange(3)
        for one, other in zip(explain(graph, pictures, targets), explain(eager, pictures, targets), strict=True):
            assert_same(one, other)


def test_runtimes_that_cannot_be_had(tmp_path: Path) -> None:
    """ONNX Runtime runs the graph in their place, and the metadata say why."""
    path = graphs.write_graph(made("pooled"), tmp_path / "net.onnx", nets.pictures(2))
    for runtime, why in (("tensorrt", "tensorrt: .*it takes a GPU"), ("compile", "compile: an ONNX graph runs in ONNX Runtime")):
        graph = opened(path, 32, runtime=runtime, given=frozenset({"runtime"}))
        assert graph.runtime.name == "onnxruntime"
        assert re.search(why, graph.runtime.why)
    with pytest.raises(ConfigError, match="precision: bfloat16: an ONNX graph computes in its own precision"):
        opened(path, 32, precision="bfloat16")


@pytest.mark.parametrize("name", ["resnet18", "vgg", "mobilenet_v3_small"])
def test_maps_are_the_formulas(name: str, tmp_path: Path) -> None:
    """Against the paper's formula, literally, over what autograd gives in float64."""
    model, side = made(name), MODELS[name][1]
    path = graphs.write_graph(model, tmp_path / "net.onnx", nets.pictures(2, side=side))
    graph, layer = opened(path, side), opened_itself(name).layers[0]
    (picture,) = nets.pictures(1, seed=4, side=side)
    _, (found,) = explain(graph, picture[None], torch.tensor([2]))
    right = exact(model, layer, picture, 2)
    assert_close(found.numpy(), right.map, max(right.map_error, EQUAL))


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 20])
def test_graphs_of_older_and_newer_versions(opset: int, tmp_path: Path) -> None:
    """Axes and shapes are attributes in some, and inputs in others."""
    for name in ("vgg", "last", "attending", "sequence"):
        model, side = made(name), MODELS[name][1]
        path = graphs.write_graph(model, tmp_path / f"{name}.onnx", nets.pictures(2, side=side), opset=opset)
        pictures, targets = nets.pictures(2, seed=9, side=side), torch.tensor([1, 4])
        _, maps = explain(opened(path, side), pictures, targets)
        _, right = explain(opened_itself(name), pictures, targets)
        assert_same(maps, right)


@pytest.mark.parametrize("count", [1, 3])
def test_a_graph_for_a_fixed_number_of_pictures(count: int, tmp_path: Path) -> None:
    """More are given in several passes, fewer are filled up; each gets what it would have got alone."""
    model = made("vgg")
    path = graphs.write_graph(model, tmp_path / "net.onnx", nets.pictures(count), dynamic=False)
    graph, eager = opened(path, 32), opened_itself("vgg")
    for given in (1, 2, 5):
        pictures, targets = nets.pictures(given, seed=2), torch.arange(given) % nets.CLASSES
        values, maps = explain(graph, pictures, targets)
        wanted, right = explain(eager, pictures, targets)
        assert torch.allclose(values, wanted, atol=1e-5)
        assert_same(maps, right)


def test_pictures_of_any_size(tmp_path: Path) -> None:
    """Where the graph takes them, the runtime runs them, with gradients of autograd where the closed form is of one size."""
    axes: Any = {"dynamic_axes": {"pictures": {0: "n", 2: "h", 3: "w"}}}
    model = made("pooled")
    path = graphs.write_graph(model, tmp_path / "net.onnx", nets.pictures(2), **axes)
    graph, eager = opened(path, 32), opened(model, 32)
    pictures, targets = nets.pictures(2, side=48), torch.tensor([0, 3])
    for one, other in zip(explain(graph, pictures, targets), explain(eager, pictures, targets), strict=True):
        assert_same(one, other)


def test_any_tensor_that_the_graph_names_is_a_layer(tmp_path: Path) -> None:
    """By its name; a wrong one is refused with the nearest."""
    model = made("vgg")
    path = graphs.write_graph(model, tmp_path / "net.onnx", nets.pictures(2))
    name = next(node.output[0] for node in onnx.load(path).graph.node if node.op_type == "Conv")
    graph, eager = opened(path, 32, layers=(name,)), opened(model, 32, layers=("features.0",))
    pictures, targets = nets.pictures(2, seed=2), torch.tensor([1, 2])
    _, maps = explain(graph, pictures, targets)
    _, right = explain(eager, pictures, targets)
    assert_same(maps, right)
    with pytest.raises(ValueError, match=r"layer /features/.*Cont does not exist.*; layers with a map: "):
        opened(path, 32, layers=(name[:-8] + "Cont",))


def test_what_goes_past_a_layer_is_given_to_what_is_behind_it(tmp_path: Path) -> None:
    """The residual connection around the norm is another output of the runtime's."""
    model = made("attending")
    path = graphs.write_graph(model, tmp_path / "net.onnx", nets.pictures(2))
    graph = opened(path, 32, layers=("/layers.1/norm/LayerNormalization_output_0",))
    eager = opened(model, 32, layers=("layers.1.norm",))
    assert list(graph.bypass.values()) == pytest.approx(list(eager.bypass.values()), abs=1e-4)
    pictures, targets = nets.pictures(2, seed=2), torch.tensor([1, 2])
    for one, other in zip(explain(graph, pictures, targets), explain(eager, pictures, targets), strict=True):
        assert_same(one, other)


def test_a_quantized_graph_is_explained_at_what_its_numbers_stand_for(tmp_path: Path) -> None:
    """8 bits: scores are the runtime's own, and maps those of the model but for the rounding."""
    for name in ("pooled", "vgg"):
        model = made(name)
        path = graphs.write_graph(model, tmp_path / f"{name}.onnx", nets.pictures(2))
        rounded = graphs.quantize(path, tmp_path / f"{name}8.onnx", nets.pictures(16, seed=7))
        graph, eager = opened(rounded, 32), opened(model, 32)
        maker = {output: node.op_type for node in onnx.load(rounded).graph.node for output in node.output}
        assert maker[graph.layers[0]] == "DequantizeLinear"
        pictures, targets = nets.pictures(4, seed=2), torch.arange(4)
        values, maps = explain(graph, pictures, targets)
        import onnxruntime

        (own,) = onnxruntime.InferenceSession(str(rounded)).run(None, {"pictures": pictures.numpy()})
        assert torch.allclose(values, torch.from_numpy(own), atol=1e-6)
        _, right = explain(eager, pictures, targets)
        assert_same(maps, right, 0.15)


def test_rounded_probabilities_are_refused(tmp_path: Path) -> None:
    """They do not add up to 1, and nothing tells a softmax from a sigmoid; where they are left out it is explained."""
    for name, function in (("likely", "Softmax"), ("labels", "Sigmoid")):
        path = graphs.write_graph(made(name), tmp_path / f"{name}.onnx", nets.pictures(2))
        rounded = graphs.quantize(path, tmp_path / f"{name}8.onnx", nets.pictures(8, seed=7))
        with pytest.raises(ConfigError, match=f"the graph ends in a {function}, and rounds its probabilities .*nodes_to_exclude"):
            opened(rounded, 32)


def test_a_graph_in_half_precision(tmp_path: Path) -> None:
    """It takes pictures in half precision, and is differentiated in full."""
    model = made("vgg")
    path = graphs.write_graph(model, tmp_path / "net.onnx", nets.pictures(2))
    graph, eager = opened(graphs.halve(path, tmp_path / "half.onnx"), 32), opened(model, 32)
    pictures, targets = nets.pictures(3, seed=2), torch.arange(3)
    for one, other in zip(explain(graph, pictures, targets), explain(eager, pictures, targets), strict=True):
        assert_same(one, other, 2e-2)


class Answer(nn.Module):
    """One logit: yes or no."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.Pooled()
        self.last = nn.Linear(nets.CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 1]`."""
        return self.last(torch.relu(self.net(x)))


class Two(nn.Module):
    """Scores, and what they are computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.Pooled()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, 3, H, W]` to means `[N, 8]` and scores `[N, CLASSES]`."""
        means = self.net.pool(self.net.features(self.net.stem(x))).flatten(1)
        return means, self.net.fc(means)


def test_one_logit_and_several_outputs(tmp_path: Path) -> None:
    """They are read as an eager model's; outputs have the graph's names."""
    torch.manual_seed(1)
    for model, names in ((Answer().eval(), ["answer"]), (Two().eval(), ["embedding", "logits"])):
        path = graphs.write_graph(model, tmp_path / "net.onnx", nets.pictures(2), output_names=names)
        graph, eager = opened(path, 32), opened(model, 32)
        assert graph.reader.binary is eager.reader.binary
        assert graph.reader.path == (() if len(names) == 1 else ("logits",))
        pictures, targets = nets.pictures(2, seed=2), torch.tensor([0, 1])
        for one, other in zip(explain(graph, pictures, targets), explain(eager, pictures, targets), strict=True):
            assert_same(one, other)


class Behind(nn.Module):
    """Takes pictures with their channels last, as TensorFlow's exporters write models."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.Deep()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, H, W, 3]` to `[N, CLASSES]`."""
        return self.net(x.permute(0, 3, 1, 2))


def test_channels_last(tmp_path: Path) -> None:
    """The graph gets them as it takes them."""
    torch.manual_seed(1)
    model = Behind().eval()
    path = graphs.write_graph(model, tmp_path / "net.onnx", nets.pictures(2).permute(0, 2, 3, 1))
    graph, eager = opened(path, 32), opened(model.net, 32)
    pictures, targets = nets.pictures(3, seed=2), torch.arange(3)
    for one, other in zip(explain(graph, pictures, targets), explain(eager, pictures, targets), strict=True):
        assert_same(one, other)


def test_weights_of_8_bits_and_ranges_of_each_pass(tmp_path: Path) -> None:
    """Dynamic quantization rounds by the range of the batch: pictures run one by one, and none changes another's answer."""
    from onnxruntime import quantization

    model = made("vgg")
    path = graphs.write_graph(model, tmp_path / "net.onnx", nets.pictures(2))
    quantization.quantize_dynamic(str(path), str(tmp_path / "net8.onnx"), op_types_to_quantize=["MatMul", "Gemm"])
    graph, eager = opened(tmp_path / "net8.onnx", 32), opened(model, 32)
    pictures, targets = nets.pictures(3, seed=2), torch.arange(3)
    values, maps = explain(graph, pictures, targets)
    alone, _ = explain(graph, pictures[1:2], targets[1:2])
    assert torch.equal(values[1:2], alone)
    wanted, right = explain(eager, pictures, targets)
    assert_same(values, wanted, 0.05)
    assert_same(maps, right, 0.1)
