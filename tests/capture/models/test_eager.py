"""Eager models that get in the way of a gradient: without grad mode, or writing into what a layer gave."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.support.models import nets
from tests.support.processes.waiting import HANG
from torch import Tensor, nn

from camserve.capture import open_backend, open_model, synthesize_pictures
from camserve.capture.models.eager import EagerCapture
from camserve.capture.models.hooks import hook_parents
from camserve.capture.precision import cast_input
from camserve.core.config import Config
from camserve.core.errors import ConfigError

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
SIZE = (nets.SIDE, nets.SIDE)
PICTURES = nets.pictures(3)
TARGETS = torch.tensor([4, 0, 3])


def opened_at(model: object, *layers: str) -> Any:
    """A backend for pictures of the nets' size; nothing is timed."""
    return open_backend(model, Config(layers=layers, channels_last=False), SIZE, CPU)


class Frozen(nn.Module):
    """A trunk of two stages, and a head of two linear layers; how its forward runs is for the classes below."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, nets.CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.head(self.trunk(x).mean((2, 3)))


class InBlock(Frozen):
    """A frozen backbone."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        with torch.no_grad():
            x = self.trunk(x)
        return self.head(x.mean((2, 3)))


class InInference(Frozen):
    """A frozen backbone, in inference mode."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        with torch.inference_mode():
            x = self.trunk(x)
        return self.head(x.mean((2, 3)))


class Decorated(Frozen):
    """A model for predictions only."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return super().forward(x)


class Without(nn.Sequential):
    """Modules in turn, without gradients."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """As a sequence does."""
        return super().forward(x)


class Nested(Frozen):
    """Both the model and its backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Without(*self.trunk)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return super().forward(x)


@pytest.mark.parametrize(
    ("made", "layer"),
    [
        (InBlock, "trunk"),
        (InBlock, "trunk.1"),
        (Decorated, "trunk"),
        (Decorated, "trunk.0"),
        (Nested, "trunk"),
        (Nested, "trunk.1"),
        (InInference, "trunk"),
        (InInference, "trunk.3"),
    ],
)
def test_a_model_that_runs_without_gradients_is_explained(made: type[Frozen], layer: str) -> None:
    """As the same model without the block or the decorator; and grad mode is afterwards what it was."""
    scores, activation, gradient = nets.by_autograd(Frozen().eval(), layer, PICTURES, TARGETS)
    model = made().eval()
    backend = opened_at(model, layer)
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            captured = backend.capture.forward(PICTURES, [layer])
            assert torch.is_grad_enabled() is mode
        assert torch.allclose(captured.logits, scores, atol=1e-6)
        assert torch.allclose(captured.activation(layer), activation, atol=1e-6)
        assert torch.allclose(captured.gradients(layer, torch.arange(3), TARGETS), gradient, atol=1e-7)
        assert not captured.activation(layer).is_inference()
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("made", [InBlock, Decorated, Nested, InInference])
def test_the_rule_finds_the_layer_of_a_model_without_gradients(made: type[Frozen]) -> None:
    """The trunk, as without the block; inside inference mode too, whose end the leaf is at."""
    assert opened_at(made().eval()).layers == ("trunk",)


def test_a_layer_deep_in_inference_mode_is_refused_with_the_reason() -> None:
    """No gradient passes through the rest of the block: the message names what does it, and the layer that works."""
    message = r"^layer trunk\.1 cannot be explained: .* no gradient .*torch\.inference_mode\(\).*; the rule would take trunk$"
    with pytest.raises(ConfigError, match=message):
        opened_at(InInference().eval(), "trunk.1")


def test_modules_are_followed_in_their_own_thread_only() -> None:
    """Where a module ends in another thread, the grad mode there is none of ours."""
    model, ended = nets.net("pooled"), []
    with hook_parents(model, ["stem.0", "features.0"], lambda: ended.append(threading.current_thread().name)):
        threads = [threading.Thread(target=model, args=(PICTURES,))]
        for thread in threads:
            thread.start()
            thread.join(HANG)
        assert ended == []
        model(PICTURES)
    assert len(ended) == 2  # the stem and the features
    assert not any(module._forward_hooks for module in model.modules())


class Keeping(nn.Module):
    """Goes on with a layer's input, in place, after the layer passed it on."""

    def __init__(self, kept: nn.Module, view: bool = False, branch: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, 4, 1)
        self.keep = kept
        self.down = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, nets.CLASSES)
        self.view = view
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        x = torch.tanh(self.conv(x))
        y = self.keep(x)
        if self.view:
            y = y.flatten(2).unflatten(2, (8, 8))
        if self.branch:
            if x.dim() == 4:
                x.mul_(0.1)
            return self.fc((x + self.down(y)).relu().mean((2, 3)))
        x.mul_(0.1).add_(self.down(y))
        return self.fc(x.relu().mean((2, 3)))

    def from_kept(self, kept: Tensor) -> Tensor:
        """The scores, from the layer's output."""
        x = kept * 0.1
        return self.fc((x + self.down(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", ["eager", "script"])
@pytest.mark.parametrize("branch", [False, True], ids=["in turn", "in a branch"])
@pytest.mark.parametrize("kept", [nn.Identity(), nn.Dropout(0.5)], ids=["identity", "dropout"])
def test_what_a_layer_gave_is_kept_though_the_model_writes_into_it(kept: nn.Module, branch: bool, kind: str) -> None:
    """Scores are the model's own, the activation is what the layer gave, and the gradient is that of the values there."""
    model = Keeping(kept, branch=branch).eval()
    expected = torch.tanh(model.conv(PICTURES)).detach().requires_grad_()
    scores = model.from_kept(expected)
    (gradient,) = torch.autograd.grad(scores[torch.arange(3), TARGETS].sum(), expected)
    backend = opened_at(nets.stored(model, kind, PICTURES), "keep")
    for _ in range(3):
        captured = backend.capture.forward(PICTURES, ["keep"])
        assert torch.allclose(captured.logits, scores, atol=1e-6)
        assert torch.allclose(captured.activation("keep"), expected, atol=1e-6)
        assert torch.allclose(captured.gradients("keep", torch.arange(3), TARGETS), gradient, atol=1e-7)
        assert torch.allclose(backend.capture.forward(PICTURES, ()).logits, scores, atol=1e-6)


@pytest.mark.parametrize("kind", ["eager", "script"])
def test_a_view_of_what_a_layer_gave_sees_the_change_too(kind: str) -> None:
    """The layer's output is a view's base, and both are written into by a third name."""
    model = Keeping(nn.Identity(), view=True).eval()
    with torch.no_grad():
        expected = torch.tanh(model.conv(PICTURES))
        scores = model(PICTURES)
    captured = opened_at(nets.stored(model, kind, PICTURES), "keep").capture.forward(PICTURES, ["keep"])
    assert torch.allclose(captured.activation("keep"), expected, atol=1e-6)
    assert torch.allclose(captured.logits, scores, atol=1e-6)


@pytest.mark.parametrize("inference", [False, True])
def test_a_layer_with_a_closed_form_gives_what_it_gave(inference: bool) -> None:
    """The model goes on with its own values, in place if it likes; then the activation is a copy."""

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, 4, 1)
            self.fc = nn.Linear(6, nets.CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode() if inference else nullcontext():
                x = self.conv(x)
                if inference:
                    x.add_(3)
            return self.fc((x if inference else x.add_(3)).mean((2, 3)))

    model = Added().eval()
    backend = opened_at(model, "conv")
    assert backend.closed_form == ("conv",)
    captured = backend.capture.forward(PICTURES, ["conv"])
    assert torch.allclose(captured.activation("conv"), model.conv(PICTURES), atol=1e-6)
    assert torch.allclose(captured.logits, model(PICTURES), atol=1e-6)


def test_a_model_that_does_not_write_into_its_layers_runs_once() -> None:
    """A pass is a pass, and takes no copy that is not needed: the activation lies where the layer put it."""
    model = nets.Deep().eval()
    backend = opened_at(model, "relu")
    calls: list[int] = []
    given: list[int] = []
    handles = [model.conv.register_forward_hook(lambda *_: calls.append(1))]
    handles += [model.norm.register_forward_hook(lambda _module, _inputs, output: given.append(output.data_ptr()))]
    try:
        captured = backend.capture.forward(PICTURES, ["relu"])
    finally:
        for handle in handles:
            handle.remove()
    assert len(calls) == 1
    assert captured.activation("relu").data_ptr() == given[0]  # the ReLU works in place


def test_a_model_that_writes_into_a_layer_is_learnt_once() -> None:
    """The first pass runs twice, the following ones once."""
    model = Keeping(nn.Identity()).eval()
    sites = {"keep": open_model(model, synthesize_pictures(SIZE)).survey(synthesize_pictures(SIZE)).site("keep")}
    capture = EagerCapture(model, sites)
    calls: list[int] = []
    handle = model.conv.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for _ in range(3):
        capture.forward(PICTURES, ["keep"])
        counts.append(len(calls))
    handle.remove()
    assert counts == [2, 3, 4]


class Folding(nn.Module):
    """Takes two pictures for one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 4, 1)
        self.fc = nn.Linear(12, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[2, 3, H, W]` to `[1, CLASSES]`."""
        return self.fc(self.conv(x).mean((2, 3)).reshape(-1, 12))


def test_scores_that_are_no_row_for_each_picture_are_refused() -> None:
    """When the model is loaded, in words; and a pass in which it happens is an error."""
    message = r"^the model does not run on pictures of shape \[2, 3, 32, 32\]: .*one row of class scores for each .* got 1 for 2$"
    with pytest.raises(ConfigError, match=message):
        opened_at(Folding().eval())
    site = open_model(nets.net("deep"), PICTURES).survey(PICTURES).site("conv")
    for layers in ((), ("conv",)):
        with pytest.raises(ValueError, match=r"one row of class scores for each picture, got 1 for 2"):
            EagerCapture(Folding().eval(), {"conv": site}).forward(PICTURES[:2], layers)


class Buffered(nn.Module):
    """Weights that are no parameters."""

    kernel: Tensor
    matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(1))
        self.register_buffer("kernel", torch.randn(16, 3, 3, 3))
        self.register_buffer("matrix", torch.randn(nets.CLASSES, 16))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.act(nn.functional.conv2d(x, self.kernel, None, 4, 1)).mean((2, 3)) @ self.matrix.T


@pytest.mark.parametrize("kind", ["eager", "trace", "exported"])
def test_weights_may_be_buffers(kind: str) -> None:
    """A model without a parameter is explained, and fed in the type of its buffers."""
    model = Buffered().double().eval()
    assert cast_input(model, PICTURES).dtype == torch.float64
    assert cast_input(nn.Identity(), PICTURES) is PICTURES
    backend = opened_at(nets.stored(model, kind, PICTURES.double()), "act")
    _, activation, gradient = nets.by_autograd(model, "act", PICTURES.double(), TARGETS)
    captured = backend.capture.forward(PICTURES, ["act"])
    assert torch.allclose(captured.activation("act"), activation)
    assert torch.allclose(captured.gradients("act", torch.arange(3), TARGETS).expand_as(gradient), gradient)


@pytest.mark.parametrize("error", [KeyError("size"), AttributeError("no grid"), ZeroDivisionError("by zero"), IndexError("3")])
def test_whatever_a_model_raises_is_said_in_one_line(error: Exception) -> None:
    """A model's own code may fail in its own way; that is a configuration that does not work, and no traceback."""

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    with pytest.raises(ConfigError, match=r"^the model does not run on pictures of shape \[2, 3, 32, 32\]: "):
        opened_at(Failing())
