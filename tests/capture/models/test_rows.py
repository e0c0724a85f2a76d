"""A picture's scores and map depend on nothing else: not on the others of its pass, nor on what was asked before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.support.models import nets
from tests.support.models.graphs import write_graph
from torch import Tensor, nn
from torch.nn import functional

from camserve.capture import load_graph, open_backend
from camserve.capture.backend import Backend
from camserve.capture.choose.scores import ROW_ERROR, check_rows
from camserve.capture.models.eager import EagerClassifier
from camserve.capture.models.kinds import copy_exactly
from camserve.core.config import Config
from camserve.core.errors import ConfigError

SIZE = (nets.SIDE, nets.SIDE)
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions, and a forward of one's own."""

    def __init__(self, run: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.norm = nn.BatchNorm2d(12, track_running_stats=False)
        self.fc = nn.Linear(12, nets.CLASSES)
        self.kept = torch.zeros(12)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.run(self, x)

    def pooled(self, x: Tensor) -> Tensor:
        """`[N, 12]`."""
        return self.trunk(x).mean((2, 3))


def opened(model: object, runtime: str = "torch") -> Backend:
    """A model as a worker opens it."""
    return open_backend(model, Config(channels_last=False, runtime=runtime), SIZE, torch.device("cpu"))


def scale_by_batch(net: Net, x: Tensor) -> Tensor:
    """The mistake of a norm over all pictures."""
    return net.fc(10 * (pooled := net.pooled(x)) / pooled.norm())


def draw_the_same(net: Net, x: Tensor) -> Tensor:
    """Monte Carlo dropout with draws that are fixed, though each row has its own."""
    pooled = net.pooled(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.stack([net.fc(functional.dropout(pooled, 0.3, training=True)) for _ in range(4)]).mean(0)


DEPENDENT: dict[str, Forward] = {
    "statistics of the batch": lambda net, x: net.fc(net.norm(net.trunk(x)).relu().mean((2, 3))),
    "a norm over all": scale_by_batch,
    "fixed draws": draw_the_same,
    "inverted where bright": lambda net, x: net.fc(net.pooled(1 - x if x.mean() > 0.5 else x)),
    "inverted where dark": lambda net, x: net.fc(net.pooled(-x if x.mean() < -0.5 else x)),
    "raised where nothing is dark": lambda net, x: net.fc(net.pooled(x if x.min() < 0.05 else x - x.min())),
    "one at a time": lambda net, x: net.fc(net.pooled(x).view(1, 12)),
    "one row": lambda net, x: net.fc(net.pooled(x)).mean(0),
}


@pytest.mark.parametrize("kind", ["trace", "onnx"])
def test_programs_keep_to_one_picture_too(kind: str, tmp_path: Path) -> None:
    """Whose second picture shows what is common to both."""
    pictures, file = nets.pictures(2), tmp_path / "net.onnx"
    net = Net(lambda net, x: net.fc(net.pooled(x) / x.std())).eval()
    stored = load_graph(write_graph(net, file, pictures)) if kind == "onnx" else nets.stored(net, "trace", pictures)
    made, given = opened(stored), nets.pictures(3)
    assert made.notes[0].startswith("Warning: pictures in one pass change each other's scores")
    assert torch.allclose(made.capture.forward(given, ()).logits, torch.cat([net(each) for each in given.split(1)]), atol=1e-4)


def scale_pictures(net: Net, x: Tensor) -> Tensor:
    """By what all of a pass have in common, which is the same of a picture and its negative."""
    return net.fc(net.pooled(3 * x / x.square().mean().sqrt()))


@pytest.mark.numeric
def test_a_program_for_up_to_64_pictures_keeps_to_one_too() -> None:
    """Each has the scores that it has alone."""
    net, given = Net(scale_pictures).eval(), nets.pictures(3) * torch.tensor([1.0, 0.2, 3.0]).reshape(3, 1, 1, 1)
    program = torch.export.export(net, (given,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    made = opened(program)
    assert made.notes[0].startswith("Warning: pictures in one pass change each other's scores")
    assert torch.allclose(made.capture.forward(given, made.layers).logits, torch.cat([net(each) for each in given.split(1)]))


@pytest.mark.parametrize("forward", [scale_pictures, scale_by_batch])
@pytest.mark.parametrize("kind", ["exported for 2", "onnx"])
def test_what_takes_two_that_change_each_other_is_refused(kind: str, forward: Forward, tmp_path: Path) -> None:
    """It never gives what a picture would get alone."""
    net, given = Net(forward).eval(), nets.pictures(2)
    graph = kind == "onnx"
    model = load_graph(write_graph(net, tmp_path / "net.onnx", given, dynamic=False)) if graph else nets.stored(net, kind, given)
    with pytest.raises(ConfigError, match=r"takes 2 pictures at once, and these change|scores in another pass, or beside other"):
        opened(model)


def test_where_bright_pictures_are_not_finite_the_others_tell() -> None:
    """What they say is compared, though of one picture there is nothing to compare."""
    blown = Net(lambda net, x: net.fc(net.norm(net.trunk(x)).relu().mean((2, 3)) / (x.mean((1, 2, 3))[:, None] < 1)))
    assert opened(blown.eval()).notes[0].startswith("Warning: pictures in one pass change each other's scores")


@pytest.mark.parametrize("name", DEPENDENT)
def test_each_picture_gets_what_it_gets_alone(name: str) -> None:
    """Scores, activations and gradients, in a pass of its own, and the user is told."""
    net = Net(DEPENDENT[name]).eval()
    made, given = opened(net), nets.pictures(3) / 4 + torch.tensor([0.0, 2.0, -2.0]).reshape(3, 1, 1, 1)
    (note,) = made.notes
    assert note.startswith("Warning: pictures in one pass change each other's scores")
    together = made.capture.forward(given, made.layers)
    targets = torch.zeros(1, dtype=torch.long)
    for place, picture in enumerate(given.split(1)):
        alone = net(picture).reshape(1, -1)
        assert torch.allclose(together.logits[place : place + 1], alone, atol=1e-5)
        if name != "one row":
            *_, gradient = nets.by_autograd(net, made.layers[0], picture, targets)
            found = together.gradients(made.layers[0], torch.tensor([place]), targets)
            assert torch.allclose(found.expand_as(gradient), gradient, atol=1e-5)
    assert "each picture has a pass of its own" in opened(Net(DEPENDENT[name]).eval(), "onnxruntime").runtime.why


def keep_mean(net: Net, x: Tensor) -> Tensor:
    """A running mean that each pass moves."""
    pooled = net.pooled(x)
    net.kept = 0.9 * net.kept + 0.1 * pooled.mean(0)
    return net.fc(pooled - net.kept)


CHANGING: dict[str, Forward] = {
    "dropout": lambda net, x: net.fc(functional.dropout(net.pooled(x), 0.3)),
    "noise": lambda net, x: net.fc(net.pooled(x + torch.randn_like(x))),
    "kept": keep_mean,
}


@pytest.mark.parametrize(
    ("name", "kind"), [("dropout", "eager"), ("dropout", "trace"), ("noise", "eager"), ("noise", "trace"), ("kept", "eager")]
)
def test_what_changes_from_call_to_call_is_refused(name: str, kind: str) -> None:
    """Draws, and what is kept of earlier pictures: no map of one pass explains another. It is said what to do."""
    with pytest.raises(ConfigError, match=r"^two passes over the same picture give other scores, .*fork_rng"):
        opened(nets.stored(Net(CHANGING[name]).eval(), kind, nets.pictures(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_change(dtype: torch.dtype) -> None:
    """Kernels add in another order with another number of pictures, and half precision rounds by more."""
    made = opened(Net(lambda net, x: net.fc(net.pooled(x.to(dtype)))).eval().to(dtype))
    assert made.notes == ()


def magnify(_: Net, x: Tensor) -> Tensor:
    """As much as a hundred layers may magnify the step by which a kernel rounds two pictures otherwise than one."""
    return torch.sin(2e4 * x[:, :, :2, :2].flatten(1) * (1 + (len(x) > 1) * 2**-23))


@pytest.mark.parametrize(("share", "batch"), [(0.0, (1, None)), (0.1, (1, 1))])
def test_rounding_that_a_model_magnifies_is_no_change(share: float, batch: tuple[int, int | None]) -> None:
    """ResNet-152 with random weights is off by 3e-4. What pictures change of each other's scores is seen in such a model too."""
    model = EagerClassifier(Net(lambda net, x: net.fc(magnify(net, x) + share * net.norm(net.trunk(x)).mean((2, 3)))).eval())
    pictures = nets.pictures(2)
    with torch.no_grad():
        alone = torch.cat([model.module(each) for each in pictures[:, None]])
        assert (model.module(pictures) - alone).abs().max() > 3 * ROW_ERROR * alone.abs().max()
    notes = check_rows(model, pictures)
    assert (bool(notes), model.batch) == (share > 0, batch)


def test_a_model_that_takes_no_single_picture_is_refused() -> None:
    """As statistics of one value are none: a lone request would fail."""
    made = Net(lambda net, x: net.fc(nn.BatchNorm1d(12).train()(net.pooled(x))))
    with pytest.raises(ConfigError, match=r"does not run on pictures of shape \[1, 3, "):
        opened(made.eval())


def test_half_precision_rounds_by_more() -> None:
    """Another number of pictures may round each score by a step, which is no change."""
    made = opened(Net(lambda net, x: net.fc(net.pooled(x.bfloat16())) * (1 + (len(x) > 1) / 128)).eval().bfloat16())
    assert made.notes == ()


def test_a_copy_in_float32_keeps_to_one_picture() -> None:
    """That trials run on it, and not on the slower model of half precision."""
    model = EagerClassifier(Net(lambda net, x: net.fc(net.pooled(x.to(net.fc.weight)).view(1, 12))).eval().bfloat16())
    model.batch = (1, 1)
    exact = copy_exactly(model, nets.pictures(2))
    assert exact is not model
    assert exact.batch == (1, 1)


@pytest.mark.parametrize("tune", [False, True])
def test_all_trials_keep_to_one_picture(tune: bool) -> None:
    """Also those of a copy in float32, and of the memory format."""
    for forward, dtype in (
        (DEPENDENT["one at a time"], torch.float32),
        (lambda net, x: net.fc(net.pooled(x.to(net.fc.weight)).view(1, 12)), torch.bfloat16),
    ):
        made = open_backend(Net(forward).eval().to(dtype), Config(), SIZE, torch.device("cpu"), tune=tune)
        assert len(made.notes) == 1
        assert len(made.capture.forward(nets.pictures(3), ()).logits) == 3
