"""Every installed runtime gives what autograd gives: scores, activations, gradients and maps; whatever else it is asked for."""

from __future__ import annotations

import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tests.support.comparison.closeness import assert_close, exact
from tests.support.models import heads, nets
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from camserve.capture import Backend, open_backend
from camserve.capture.runtimes import choose
from camserve.capture.runtimes.engines import ENGINES, is_installed, open_engine
from camserve.capture.runtimes.graph import export_graph, split_graph
from camserve.capture.runtimes.outputs import Outputs
from camserve.core.config import Config
from camserve.explain import methods

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
SIZE = (nets.SIDE, nets.SIDE)
TOLERANCE = 1e-5
INSTALLED = [name for name in ENGINES if is_installed(name)]
"""OpenVINO is in an environment of its own, where these tests run again (`test_openvino`)."""

LAYERS = [(name, layer) for name, (_, layers) in nets.NETS.items() for layer in layers]


def opened(model: object, runtime: str, *layers: str, **keys: Any) -> Backend:
    """A model in a runtime."""
    return open_backend(model, Config(layers=layers, runtime=runtime, **{"channels_last": False, **keys}), SIZE, CPU)


def close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether two tensors are equal up to a share of the largest value expected."""
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("runtime", INSTALLED)
@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_a_runtime_gives_what_torch_gives(runtime: str, name: str, layer: str) -> None:
    """Of any number of pictures, in any order of targets; the layer is one that the runtime gives, not one left to torch."""
    plain = opened(nets.net(name), "torch", layer)
    made = opened(nets.net(name), runtime, layer)
    assert (made.runtime.name, made.runtime.layers, made.runtime.why) == (runtime, (layer,), "")
    for count in (1, 2, 5, 8):
        batch, targets, rows = nets.pictures(count, seed=count), torch.arange(count) % nets.CLASSES, torch.arange(count).flip(0)
        wanted, found = (each.capture.forward(batch, [layer]) for each in (plain, made))
        assert close(found.values, wanted.values)
        assert close(made.capture.forward(batch, ()).values, wanted.values)
        assert close(found.activation(layer), wanted.activation(layer))
        assert close(found.logits, wanted.logits)
        assert found.has_closed_form(layer) is wanted.has_closed_form(layer)
        assert close(found.gradients(layer, rows, targets), wanted.gradients(layer, rows, targets))


@pytest.mark.parametrize("runtime", INSTALLED)
@pytest.mark.parametrize(("name", "layer"), [("pooled", "features"), ("deep", "relu"), ("deep", "norm")])
def test_maps_are_the_formulas(runtime: str, name: str, layer: str) -> None:
    """Against the paper's formula, literally, over what autograd gives in float64."""
    made = opened(nets.net(name), runtime, layer)
    batch = nets.pictures(3)
    captured = made.capture.forward(batch, [layer])
    targets = torch.tensor([4, 0, 2])
    gradients = captured.gradients(layer, torch.arange(3), targets)
    maps = methods.METHODS["gradcam++"].function(captured.activation(layer), gradients)
    for picture, target, found in zip(batch, targets.tolist(), maps, strict=True):
        right = exact(nets.net(name), layer, picture, target)
        assert_close(found.numpy(), right.map, min(right.map_error, 1e-4))


@pytest.mark.parametrize("runtime", INSTALLED)
def test_several_layers_are_outputs_of_one_graph(runtime: str) -> None:
    """One with a closed form, and one behind which the head is run, asked for together and alone."""
    made = opened(nets.net("pooled"), runtime, "features", "stem")
    plain = opened(nets.net("pooled"), "torch", "features", "stem")
    assert set(made.runtime.layers) == {"features", "stem"}
    batch, rows, targets = nets.pictures(3), torch.arange(3), torch.tensor([0, 1, 2])
    wanted = plain.capture.forward(batch, ["features", "stem"])
    for layers in (["features", "stem"], ["stem"], ["features"]):
        found = made.capture.forward(batch, layers)
        for layer in layers:
            assert close(found.gradients(layer, rows, targets), wanted.gradients(layer, rows, targets))


@pytest.mark.parametrize("runtime", INSTALLED)
def test_pictures_of_another_size_run_in_torch(runtime: str) -> None:
    """The graph is of one size; what it says of others would be an error, or worse."""
    made, plain = (opened(nets.net("deep"), each, "norm") for each in (runtime, "torch"))
    batch = nets.pictures(2, side=48)
    found, wanted = (each.capture.forward(batch, ["norm"]) for each in (made, plain))
    assert torch.equal(found.values, wanted.values)
    assert torch.equal(found.activation("norm"), wanted.activation("norm"))


@pytest.mark.parametrize("runtime", INSTALLED)
@pytest.mark.parametrize("ended", [heads.Sigmoid, heads.Softmax])
def test_behind_a_models_last_function(runtime: str, ended: type[heads.Net]) -> None:
    """Probabilities are the model's own, and what is differentiated is what goes into the function."""
    pictures = heads.pictures(3)
    size = (pictures.shape[2], pictures.shape[3])
    config = Config(channels_last=False)
    plain = open_backend(ended().eval(), config, size, CPU)
    torch.manual_seed(0)
    models = [ended().eval() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    layer = plain.layers[0]
    plain, made = (
        open_backend(model, Config(layers=(layer,), channels_last=False, runtime=each), size, CPU)
        for model, each in zip(models, ("torch", runtime), strict=True)
    )
    assert made.runtime.name == runtime
    wanted, found = (each.capture.forward(pictures, [layer]) for each in (plain, made))
    rows, targets = torch.arange(3), torch.tensor([1, 0, 1])
    assert close(found.values, wanted.values)
    assert close(found.logits, wanted.logits)
    assert close(found.gradients(layer, rows, targets), wanted.gradients(layer, rows, targets))


@pytest.mark.parametrize("runtime", INSTALLED)
def test_threads_do_not_mix_their_pictures(runtime: str) -> None:
    """Each pass keeps its own results, also after the next one has run in the same thread."""
    made, plain = (opened(nets.net("deep"), each, "relu") for each in (runtime, "torch"))
    batches = [nets.pictures(1 + seed % 3, seed=seed) for seed in range(12)]

    def explain(batch: Tensor) -> tuple[Tensor, Tensor]:
        captured = made.capture.forward(batch, ["relu"])
        made.capture.forward(torch.zeros_like(batch), ["relu"])
        rows = torch.arange(len(batch))
        return captured.values, captured.gradients("relu", rows, rows % nets.CLASSES)

    with ThreadPoolExecutor(4) as pool:
        for batch, (values, gradients) in zip(batches, pool.map(explain, batches), strict=True):
            wanted, rows = plain.capture.forward(batch, ["relu"]), torch.arange(len(batch))
            assert close(values, wanted.values)
            assert close(gradients, wanted.gradients("relu", rows, rows % nets.CLASSES))


@pytest.mark.parametrize("runtime", INSTALLED)
@pytest.mark.parametrize("name", ["scores", "pictures", "4", "at:4"])
def test_a_layer_may_have_any_name(runtime: str, name: str) -> None:
    """Also that of the graph's input, of its first output, and one that a graph does not take."""
    torch.manual_seed(0)
    layers = OrderedDict([(name, nn.Conv2d(3, 6, 4, 4)), ("act", nn.ReLU()), ("pool", nn.AdaptiveAvgPool2d(1))])
    net = nn.Sequential(OrderedDict([*layers.items(), ("flat", nn.Flatten()), ("fc", nn.Linear(6, 5))])).eval()
    made = [opened(net, each, name) for each in ("torch", runtime)]
    pictures = torch.randn(3, 3, *SIZE)

    own, other = (each.capture.forward(pictures, [name]) for each in made)

    assert made[1].runtime.name == runtime
    assert torch.allclose(own.values, other.values, atol=1e-5)
    assert torch.allclose(own.activation(name), other.activation(name), atol=1e-5)


@pytest.mark.parametrize("runtime", INSTALLED)
def test_a_head_is_run_once(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch, which differentiates it; scores, logits and gradients of a whole batch are the model's own all the same."""
    torch.manual_seed(0)
    layers = OrderedDict([("conv", nn.Conv2d(3, 6, 4, 4)), ("act", nn.ReLU()), ("pool", nn.AdaptiveAvgPool2d(2))])
    behind = [("flat", nn.Flatten()), ("one", nn.Linear(24, 12)), ("bend", nn.Tanh()), ("two", nn.Linear(12, nets.CLASSES))]
    net = nn.Sequential(OrderedDict([*layers.items(), *behind])).eval()
    made, plain = (opened(net, each, "act") for each in (runtime, "torch"))
    pictures, rows, targets = nets.pictures(5), torch.arange(5), torch.tensor([3, 0, 2, 1, 4])

    capture: Any = made.capture
    with monkeypatch.context() as patch:
        patch.setattr(capture.engine, "run", lambda *_: pytest.fail("the whole model was run"))
        found, wanted = (each.capture.forward(pictures, ["act"]) for each in (made, plain))

    assert made.runtime.layers == ("act",)
    assert close(found.values, wanted.values)
    assert close(found.logits, wanted.logits)
    assert not found.values.requires_grad
    assert close(found.activation("act"), wanted.activation("act"))
    assert close(found.gradients("act", rows, targets), wanted.gradients("act", rows, targets))
    assert close(made.capture.forward(pictures, ()).values, wanted.values)


class Around(nn.Module):
    """What goes around the layer `act` is needed behind it: a module's output, or what no module gives."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = share
        self.stem = nn.Conv2d(3, 6, 4, 4)
        self.act = nn.ReLU()
        self.behind = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 512), nn.Tanh(), nn.Linear(512, nets.CLASSES)
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores `[N, K]`."""
        around = self.stem(pictures) if self.share == 1 else self.stem(pictures) * self.share
        scores: Tensor = self.behind(self.act(around) * around.sigmoid() + around)
        return scores


@pytest.mark.parametrize("runtime", INSTALLED)
def test_what_goes_around_the_layer_comes_from_the_graph_before_it(runtime: str) -> None:
    """The head takes it too; a second layer that is asked for with it comes from the same graph."""
    torch.manual_seed(0)
    net = Around().eval()
    made, plain = (opened(net, each, "act", "stem") for each in (runtime, "torch"))
    pictures, rows, targets = nets.pictures(4, seed=1), torch.arange(4), torch.tensor([3, 0, 2, 1])
    capture: Any = made.capture
    assert [side.name for side in capture.heads["act"].sides] == ["stem (before, call 1)"]
    capture.engine.run = lambda *_: pytest.fail("the whole model was run")
    for layers in (["act"], ["stem"], ["act", "stem"]):
        found, wanted = (each.capture.forward(pictures, layers) for each in (made, plain))
        assert close(found.values, wanted.values)
        for layer in layers:
            assert close(found.gradients(layer, rows, targets), wanted.gradients(layer, rows, targets))


@pytest.mark.parametrize("runtime", INSTALLED)
@pytest.mark.parametrize("way", ["split for another layer", "not split"])
def test_what_no_graph_before_the_layers_gives_comes_from_the_whole(
    runtime: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an archive's graph was split for other layers, or where more than modules' outputs goes around them."""
    if way != "not split":
        monkeypatch.setattr(choose, "split_graph", lambda graph, _names: split_graph(graph, ["stem"]))
    torch.manual_seed(0)
    net = Around(0.5 if way == "not split" else 1).eval()
    made, plain = (opened(net, each, "act", "stem") for each in (runtime, "torch"))
    capture: Any = made.capture
    assert (made.runtime.name, made.runtime.layers) == (runtime, ("act", "stem"))
    assert (capture.engine.part is None) is (way == "not split")
    pictures, rows, targets = nets.pictures(2), torch.arange(2), torch.tensor([3, 0])
    for layers in (["act"], ["stem"], ["act", "stem"]):
        found, wanted = (each.capture.forward(pictures, layers) for each in (made, plain))
        assert close(found.values, wanted.values)
        for layer in layers:
            assert close(found.activation(layer), wanted.activation(layer))
            assert close(found.gradients(layer, rows, targets), wanted.gradients(layer, rows, targets))


@pytest.mark.parametrize("runtime", INSTALLED)
def test_constants_may_be_needed_on_both_sides_of_the_layer(runtime: str) -> None:
    """As those by which torchvision's vision transformer reshapes in each of its blocks."""
    torch.manual_seed(0)
    net = VisionTransformer(nets.SIDE, nets.SIDE // 4, 2, 2, 16, 16, num_classes=nets.CLASSES).eval()
    layer = "encoder.layers.encoder_layer_1.ln_1"
    made, plain = (opened(net, each, layer) for each in (runtime, "torch"))
    capture: Any = made.capture
    assert capture.engine.part is not None
    pictures, rows, targets = nets.pictures(3), torch.arange(3), torch.tensor([3, 0, 2])
    found, wanted = (each.capture.forward(pictures, [layer]) for each in (made, plain))
    assert close(found.gradients(layer, rows, targets), wanted.gradients(layer, rows, targets))
    assert close(made.capture.forward(pictures, ()).values, wanted.values)


@pytest.mark.parametrize("runtime", INSTALLED)
def test_no_thread_keeps_a_core_after_a_pass(runtime: str) -> None:
    """Waiting for the next one, it would take that core from decoding, drawing and the server."""
    net = nn.Sequential(nn.Conv2d(3, 64, 7, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    pictures = torch.zeros(4, 3, 224, 224)
    engine = open_engine(runtime, export_graph(Outputs(net, {}, ()), [], pictures[:2]), 2)
    spent = []
    for _ in range(3):
        time.sleep(0.05)  # torch's own threads wait too
        engine.run(pictures, ())
        begun = time.process_time()
        time.sleep(0.1)
        spent.append(time.process_time() - begun)
    assert min(spent) < 0.01
