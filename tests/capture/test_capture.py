"""One table for all kinds of models, and what holds for any capture: the same values as autograd, nothing held, no neighbours."""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.comparison import oracle
from tests.support.models import nets
from tests.support.processes.waiting import HANG
from torch import Tensor, nn
from torchvision.models import resnet18

from camserve.capture import Backend, Capture, Captured, open_backend, open_model, synthesize_pictures
from camserve.core.config import Config
from camserve.explain import methods

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
SIZE = (nets.SIDE, nets.SIDE)
ROWS = torch.tensor([2, 0, 1])
TARGETS = torch.tensor([4, 0, 3])
TOLERANCE = 1e-5


def close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether two tensors are equal up to a share of the largest value expected."""
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def backend(model: object, *layers: str, **keys: object) -> Backend:
    """A backend for pictures of the nets' size; nothing is timed."""
    return open_backend(model, Config(layers=layers, **{"channels_last": False, **keys}), SIZE, CPU)  # type: ignore[arg-type]


def as_grid(name: str, layer: str, values: Tensor) -> Tensor:
    """A layer's output as `[N, C, h, w]`, written down by hand for each net."""
    if name in ("tokens", "attending"):
        return values[:, 1:].reshape(-1, 4, 4, values.shape[2]).permute(0, 3, 1, 2)
    if name == "sequence":
        return values.reshape(4, 4, -1, values.shape[2]).permute(2, 3, 0, 1)
    return values.permute(0, 3, 1, 2) if (name, layer) == ("last", "norm") else values


TABLE = [
    (name, kind, layer)
    for name, (_, layers) in nets.NETS.items()
    for kind in nets.KINDS
    for layer in (("pool_input",) if kind == "frozen" else layers)
    if kind != "frozen" or name in ("pooled", "deep")
]


@pytest.mark.parametrize(("name", "kind", "layer"), TABLE)
def test_every_kind_gives_what_autograd_gives(name: str, kind: str, layer: str) -> None:
    """Scores, activation and gradients of a layer are those of autograd through the whole eager module with an ordinary hook."""
    module = nets.net(name)
    original = {"pooled": "features", "deep": "relu"}[name] if layer == "pool_input" else layer
    batch = nets.pictures(3)
    targets = torch.empty(3, dtype=torch.long)
    targets[ROWS] = TARGETS
    scores, activation, gradient = nets.by_autograd(module, original, batch, targets)
    captured = backend(nets.loaded(name, kind), layer).capture.forward(batch, [layer])
    assert close(captured.logits, scores)
    assert close(captured.activation(layer), as_grid(name, layer, activation))
    found = captured.gradients(layer, ROWS, TARGETS)
    assert close(found.expand_as(captured.activation(layer)), as_grid(name, layer, gradient)[ROWS])


@pytest.mark.parametrize("kind", nets.KINDS)
def test_predictions_are_the_models_own(kind: str) -> None:
    """Without layers a pass is a plain prediction, whatever the number of pictures, and has no graph."""
    for count in (1, 2, 5):
        batch = nets.pictures(count, seed=count)
        captured = backend(nets.loaded("pooled", kind)).capture.forward(batch, ())
        with torch.no_grad():
            assert close(captured.logits, nets.net("pooled")(batch))
        assert not captured.logits.requires_grad


@pytest.mark.parametrize("kind", ["eager", "script", "exported for 3"])
@pytest.mark.parametrize("layers", [("relu", "conv", "norm"), ("norm", "conv")])
def test_several_layers_in_one_pass(kind: str, layers: tuple[str, ...]) -> None:
    """Each layer's gradient is the one of a pass of its own, in whatever order they follow each other."""
    both = backend(nets.loaded("deep", kind), *layers)
    batch = nets.pictures(4)
    together = both.capture.forward(batch, layers)
    rows, targets = torch.arange(4), torch.tensor([0, 1, 2, 3])
    for layer in layers:
        alone = backend(nets.net("deep"), layer).capture.forward(batch, [layer])
        assert close(together.activation(layer), alone.activation(layer))
        assert close(together.gradients(layer, rows, targets), alone.gradients(layer, rows, targets))


def test_a_layer_with_a_closed_form_and_one_without_share_a_pass() -> None:
    """The closed form takes nothing away from the layers below it."""
    made = backend(nets.net("pooled"), "features", "stem")
    assert made.closed_form == ("features",)
    captured = made.capture.forward(nets.pictures(3), ["features", "stem"])
    _, _, gradient = nets.by_autograd(nets.net("pooled"), "stem", nets.pictures(3), TARGETS)
    assert close(captured.gradients("stem", torch.arange(3), TARGETS), gradient)
    assert captured.gradients("features", ROWS, TARGETS).shape[2:] == (1, 1)


class Again(nn.Module):
    """Runs its activation `times` times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.act = nn.Sigmoid()
        self.fc = nn.Linear(4, 5)
        self.times = 2

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        x = self.conv(x)
        for _ in range(self.times):
            x = self.act(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("times", [1, 3])
def test_a_layer_that_suddenly_runs_another_number_of_times_is_an_error(times: int) -> None:
    """Nobody gets the map of a call that is not the one surveyed; the message says so."""
    model = Again()
    made = backend(model, "act")
    model.times = times
    with pytest.raises(RuntimeError, match=f"layer act ran {times} times in this pass, and 2 times when the model was loaded"):
        made.capture.forward(nets.pictures(2), ["act"])


def test_nothing_is_held_after_a_pass() -> None:
    """Letting go of the pass frees its activations without the collector; no parameter has a gradient, no module a hook."""
    model = nets.net("deep")
    made = backend(model, "norm")
    gc.collect()
    gc.disable()
    try:
        captured = made.capture.forward(nets.pictures(2), ["norm"])
        captured.gradients("norm", torch.arange(2), torch.tensor([0, 1]))
        held = [weakref.ref(captured), weakref.ref(captured.leaves["norm"])]  # type: ignore[attr-defined]
        del captured
        assert [each() for each in held] == [None, None]
    finally:
        gc.enable()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_no_hook_stays_after_a_failed_pass() -> None:
    """A pass that raises leaves the model as it was, and the next one is right."""
    model = nets.net("pooled")
    made = backend(model, "stem")
    with pytest.raises(RuntimeError):
        made.capture.forward(torch.zeros(1, 4, 32, 32), ["stem"])
    assert not any(module._forward_hooks for module in model.modules())
    assert made.capture.forward(nets.pictures(1), ["stem"]).logits.shape == (1, nets.CLASSES)


@pytest.mark.parametrize("kind", ["eager", "script", "exported"])
def test_threads_share_a_capture(kind: str) -> None:
    """Four threads with pictures of their own, one capture: every answer is the one that it gets alone."""
    capture = backend(nets.loaded("twice", kind), "act", "squeeze").capture
    ready = threading.Barrier(4)

    def answer(seed: int, wait: bool) -> tuple[Tensor, Tensor, Tensor]:
        if wait:
            ready.wait(timeout=HANG)
        layer = ("act", "squeeze")[seed % 2]
        captured = capture.forward(nets.pictures(2, seed), [layer])
        rows, targets = torch.arange(2), torch.tensor([seed % 5, 1])
        return captured.logits, captured.activation(layer), captured.gradients(layer, rows, targets)

    alone = [answer(seed, False) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: answer(seed, True), range(16), timeout=HANG))
    for one, other in zip(alone, together, strict=True):
        assert all(close(found, expected) for found, expected in zip(other, one, strict=True))


def test_hooks_of_one_thread_leave_a_prediction_of_another_alone() -> None:
    """A prediction that runs while another thread's hooks are on the model has no graph and changes nothing there."""
    model = nets.net("deep")
    made = backend(model, "norm")
    inside, done = threading.Event(), threading.Event()

    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if threading.current_thread().name == "explains":
                inside.set()
                assert done.wait(HANG)
            return x

    relu = model.get_submodule("relu")
    model.relu = nn.Sequential(Waiting(), relu)
    try:
        found: list[Captured] = []
        thread = threading.Thread(target=lambda: found.append(made.capture.forward(nets.pictures(1), ["norm"])), name="explains")
        thread.start()
        assert inside.wait(HANG)
        other = made.capture.forward(nets.pictures(1, seed=9), ())
        done.set()
        thread.join(HANG)
    finally:
        model.relu = relu
    assert not other.scores.requires_grad  # type: ignore[attr-defined]
    expected = made.capture.forward(nets.pictures(1), ["norm"])
    assert torch.equal(found[0].activation("norm"), expected.activation("norm"))


def test_nothing_below_the_layer_is_saved_for_backward() -> None:
    """ResNet-18 at layer4, where the closed form is not used: under 2 MiB a picture, and none of it from the trunk."""
    torch.manual_seed(0)
    model = resnet18().eval()
    classifier = open_model(model, synthesize_pictures((224, 224)))
    sites = {"layer4.0": classifier.survey(synthesize_pictures((224, 224))).site("layer4.0")}
    saved: list[Tensor] = []

    def pack(value: Tensor) -> Tensor:
        saved.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        captured = classifier.capture(sites).forward(synthesize_pictures((224, 224)), ["layer4.0"])
    trained = {parameter.data_ptr() for parameter in [*model.parameters(), *model.buffers()]}
    kept = {value.data_ptr(): value.nbytes for value in saved if value.data_ptr() not in trained}
    assert kept
    assert sum(kept.values()) < 2 * 2 * 2**20
    assert all(value.shape[2:] in ((7, 7), (1, 1)) for value in saved if value.ndim == 4 and value.data_ptr() in kept)
    assert captured.gradients("layer4.0", torch.arange(2), torch.tensor([1, 2])).abs().max() > 0


def test_a_model_that_served_in_inference_mode_is_explained() -> None:
    """A pass inside `inference_mode`, on pictures made there, gives the same gradients."""
    made = backend(nets.net("deep"), "norm")
    expected = made.capture.forward(nets.pictures(2), ["norm"]).gradients("norm", torch.arange(2), torch.tensor([0, 1]))
    with torch.inference_mode():
        captured = made.capture.forward(nets.pictures(2), ["norm"])
    assert torch.equal(captured.gradients("norm", torch.arange(2), torch.tensor([0, 1])), expected)


# properties of the maps, over the capture


def maps(model: object, layer: str, batch: Tensor, targets: Tensor, method: str = "gradcam++") -> Tensor:
    """The maps `[N, h, w]` of one target for each picture."""
    captured = backend(model, layer).capture.forward(batch, [layer])
    gradients = captured.gradients(layer, torch.arange(len(batch)), targets)
    return methods.METHODS[method].function(captured.activation(layer), gradients)


def test_a_batch_of_eight_is_eight_batches_of_one() -> None:
    """No picture's map depends on its neighbours."""
    batch, targets = nets.pictures(8), torch.arange(8) % nets.CLASSES
    for name, layer in (("deep", "norm"), ("pooled", "features"), ("tokens", "blocks.0")):
        together = maps(nets.net(name), layer, batch, targets)
        alone = [maps(nets.net(name), layer, batch[i : i + 1], targets[i : i + 1]) for i in range(8)]
        assert close(together, torch.cat(alone))


@settings(max_examples=15)
@given(order=st.permutations(range(5)), data=st.data())
def test_order_and_choice_of_rows_do_not_matter(order: list[int], data: st.DataObject) -> None:
    """Any pictures in any order, any of them asked for: each gets its own map, for any kind of model."""
    kind = data.draw(st.sampled_from(["eager", "script", "exported for 3"]))
    chosen = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True))
    batch, targets = nets.pictures(5), torch.tensor([0, 1, 2, 3, 4])
    capture = _shared(kind)
    whole = capture.forward(batch, ["norm"]).gradients("norm", torch.arange(5), targets)
    captured = capture.forward(batch[order], ["norm"])
    asked = torch.tensor(order)[chosen]
    found = captured.gradients("norm", torch.tensor(chosen), targets[asked])
    assert close(found, whole[asked])


@functools.cache
def _shared(kind: str) -> Capture:
    return backend(nets.loaded("deep", kind), "norm").capture


def test_channels_may_be_rescaled() -> None:
    """`A -> c A` in each channel, undone behind it, leaves the map as it was."""
    model = nets.Pooled()
    scaled = nets.Pooled()
    factors = torch.tensor([0.01, 0.1, 0.5, 1, 2, 10, 100, 1000.0])
    scaled.load_state_dict(model.state_dict())
    with torch.no_grad():
        scaled.get_parameter("features.0.weight").mul_(factors[:, None, None, None])
        scaled.get_parameter("features.0.bias").mul_(factors)
        scaled.fc.weight /= factors
    targets = torch.tensor([0, 1, 2])
    for method in ("gradcam++", "gradcam", "layercam", "hirescam", "xgradcam"):
        plain = maps(model, "features", nets.pictures(3), targets, method)
        assert close(maps(scaled, "features", nets.pictures(3), targets, method), plain)


def test_a_flipped_picture_has_a_flipped_map() -> None:
    """Horizontally, where the network's kernels are flipped with it."""
    model, flipped = nets.Pooled(), nets.Pooled()
    for each in (model, flipped):  # a stride of 2 over an even side is not symmetrical
        for conv in (each.get_submodule("stem.0"), each.get_submodule("features.0")):
            vars(conv)["stride"] = (1, 1)
    flipped.load_state_dict(model.state_dict())
    with torch.no_grad():
        for weight in map(flipped.get_parameter, ("stem.0.weight", "features.0.weight")):
            weight.copy_(weight.flip(3))
    targets = torch.tensor([0, 1])
    plain = maps(model, "features", nets.pictures(2), targets)
    assert close(maps(flipped, "features", nets.pictures(2).flip(3), targets).flip(2), plain)


@pytest.mark.parametrize("kind", ["eager", "script", "exported for 3"])
def test_targets_are_independent(kind: str) -> None:
    """A target's gradients do not depend on which targets were asked before, or of the other pictures."""
    capture = backend(nets.loaded("deep", kind), "norm").capture
    fresh = capture.forward(nets.pictures(3), ["norm"]).gradients("norm", torch.tensor([1]), torch.tensor([2]))
    captured = capture.forward(nets.pictures(3), ["norm"])
    for target in (0, 3, 1):
        captured.gradients("norm", torch.arange(3), torch.full((3,), target))
    assert torch.equal(captured.gradients("norm", torch.tensor([1]), torch.tensor([2])), fresh)
    assert close(captured.gradients("norm", torch.tensor([0, 1, 2]), torch.tensor([4, 2, 0]))[1:2], fresh)


@pytest.mark.parametrize("method", [name for name, method in methods.METHODS.items() if not method.contrasts])
def test_maps_are_the_papers(method: str) -> None:
    """Capture and formula together against the literal formula in float64, on gradients of autograd, for a signed layer."""
    batch, targets = nets.pictures(2), torch.tensor([1, 3])
    _, activation, gradient = nets.by_autograd(nets.net("deep"), "norm", batch, targets)
    found = maps(nets.net("deep"), "norm", batch, targets, method)
    options = {"rectify_sum": True} if method == "gradcam++" else {}
    for row in range(2):
        expected = oracle.MAPS[method](activation[row].numpy(), gradient[row].numpy(), **options)
        np.testing.assert_allclose(found[row].numpy(), expected, atol=TOLERANCE * expected.max())


@pytest.mark.parametrize("kind", ["eager", "script", "exported"])
@pytest.mark.parametrize("name", ["pooled", "deep"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_changes_maps_by_a_thousandth(precision: str, name: str, kind: str) -> None:
    """Maps are float32, and exact for the half precision activations and gradients; those alone move the heatmap.

    bfloat16 has 8 bits: its heatmaps are within 0.025 of the float32 model's, those of float16 within 0.002.
    """
    layer = {"pooled": "features", "deep": "norm"}[name]
    made = backend(nets.loaded(name, kind), layer, precision=precision)
    captured = made.capture.forward(nets.pictures(2), [layer])
    targets = torch.tensor([1, 3])
    assert captured.activation(layer).dtype == getattr(torch, precision)
    assert captured.logits.dtype == torch.float32
    gradients = captured.gradients(layer, torch.arange(2), targets)
    found = methods.gradcam_plus_plus(captured.activation(layer), gradients)
    assert found.dtype == torch.float32
    full = maps(nets.net(name), layer, nets.pictures(2), targets)
    scaled, whole = (methods.scale_maps(each)[0] for each in (found, full))
    assert np.abs(scaled - whole).max() <= {"bfloat16": 2.5e-2, "float16": 2e-3}[precision]
    for row in range(2):
        own = oracle.gradcam_plus_plus(captured.activation(layer)[row].float(), gradients[row].float(), rectify_sum=True)
        np.testing.assert_allclose(found[row], own, atol=TOLERANCE * own.max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_type_is_fed_in_it(dtype: torch.dtype) -> None:
    """A model that was cast gets its pictures cast, and its maps are float32."""
    model = nets.Pooled().eval()
    plain = maps(model, "features", nets.pictures(2), torch.tensor([0, 1]))
    cast = nets.Pooled().eval()
    cast.load_state_dict(model.state_dict())
    found = maps(cast.to(dtype), "features", nets.pictures(2), torch.tensor([0, 1]))
    assert found.dtype == torch.float32
    assert close(found, plain, 1e-5 if dtype == torch.float64 else 2e-2)


def test_degenerate_maps_are_said_to_be() -> None:
    """A dead layer gives zeros and the warning, a target that nothing speaks for too; never a NaN."""
    model = nets.Pooled().eval()
    with torch.no_grad():
        model.fc.weight[2] = -model.fc.weight[2].abs()
    heat, ranges, warnings = methods.scale_maps(maps(model, "features", nets.pictures(1), torch.tensor([2])))
    assert (heat == 0).all()
    assert (ranges, warnings) == ([(0.0, 0.0)], [("zero",)])
    with torch.no_grad():
        model.get_parameter("features.0.bias").fill_(-1e3)
    _, _, warnings = methods.scale_maps(maps(model, "features", nets.pictures(1), torch.tensor([1])))
    assert warnings == [("zero",)]
