"""Where a layer's cells lie in the picture is found by trial: other tokens, other orders, and what is turned or cut inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.support.comparison import oracle
from tests.support.models import nets, places
from tests.support.models.places import Ordered, Plain, Viewing
from torch import Tensor, nn

from camserve.capture import Backend, open_backend
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.explain import methods

CPU = torch.device("cpu")
SIZE = (64, 96)
GRID = (8, 12)


def opened(model: object, size: tuple[int, int] = SIZE, **keys: object) -> Backend:
    """A backend; nothing is timed."""
    return open_backend(model, Config(channels_last=False, **keys), size, CPU)  # type: ignore[arg-type]


def right_map(model: Ordered, pictures: Tensor, layer: str, targets: Tensor) -> list[np.ndarray]:
    """By the literal formula in float64, from autograd: the tokens of the patches, put back where the model took them from."""
    _, output, slope = nets.by_autograd(model, layer, pictures, targets)
    before, behind, _ = model.sides
    indices = torch.arange(GRID[0] * GRID[1]).reshape(1, 1, *GRID)
    order = places.ORDERS[model.order](indices).flatten()
    maps = []
    for values, gradient in zip(output, slope, strict=True):
        kept = [each[before : len(each) - behind] for each in (values, gradient)]
        placed = [torch.zeros_like(each).index_copy(0, order, each).T.reshape(-1, *GRID).double() for each in kept]
        maps.append(oracle.gradcam_plus_plus(*placed, rectify_sum=True))
    return maps


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("order", "before", "behind", "note"),
    [
        ("rows", 0, 0, ""),
        ("rows", 1, 0, ""),
        ("rows", 0, 4, "its cells are tokens 0 to 95 of 100"),
        ("rows", 1, 3, "its cells are tokens 1 to 96 of 100"),
        ("columns", 0, 0, "its grid is transposed"),
        ("columns", 0, 2, "its cells are tokens 0 to 95 of 98, its grid is transposed"),
        ("mirrored", 1, 0, "its grid is mirrored"),
        ("reversed", 0, 0, "its grid is upside down and mirrored"),
    ],
)
def test_tokens_where_they_lie(order: str, before: int, behind: int, note: str) -> None:
    """The map is that of the patches' tokens, at the patches' places, wherever the others stand; what was found is said."""
    model = Ordered(order, before, behind)
    pictures = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(4))
    made = opened(model)
    (layer,) = made.layers
    assert made.aligned[layer].note.startswith(note)
    assert bool(made.aligned[layer].note) is bool(note)
    assert made.aligned[layer].distance == pytest.approx(0, abs=0.01)
    captured = made.capture.forward(pictures, [layer])
    targets = captured.logits.argmax(1)
    gradients = captured.gradients(layer, torch.arange(2), targets)
    maps = methods.gradcam_plus_plus(captured.activation(layer), gradients)
    for found, wanted in zip(maps.numpy(), right_map(model, pictures, layer, targets), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * wanted.max())


@pytest.mark.parametrize("kind", ["script", "trace", "exported", "exported for 3"])
def test_tokens_where_they_lie_in_archives(kind: str) -> None:
    """Registers behind the patches, in every kind of archive."""
    made = opened(nets.stored(Registers().eval(), kind, torch.randn(3, 3, *SIZE)))
    assert made.aligned[made.layers[0]].note.startswith("its cells are tokens 0 to 95 of 98")


class Registers(nn.Module):
    """A small transformer with two registers behind the patches, which TorchScript can take."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, 8, 8, 8)
        self.registers = nn.Parameter(torch.randn(1, 2, 8))
        self.blocks = nn.Sequential(nets.Block(8), nets.Block(8))
        self.fc = nn.Linear(8, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        x = torch.cat([self.patch(x).flatten(2).transpose(1, 2), self.registers.expand(x.shape[0], -1, -1)], 1)
        return self.fc(self.blocks(x)[:, :-2].mean(1))


@pytest.mark.parametrize(
    "model", [Ordered("shuffled"), Ordered("windows"), Ordered(middle=1), Ordered("shuffled", 1)], ids=lambda model: model.order
)
def test_tokens_in_no_known_order_are_refused(model: Ordered) -> None:
    """Shuffled, in windows, or with another token in their middle."""
    with pytest.raises(ConfigError, match=r"^layer \S+ cannot be explained: its cells lie in another order"):
        opened(model)


def test_the_configuration_may_say_where_tokens_lie() -> None:
    """With an offset it is taken; without one the trial goes on; an offset that leaves too few tokens is refused."""
    model = Ordered(before=1, behind=3)
    for grid, before in (((8, 12), 1), ((8, 12, 1), 1), ((8, 12, 3), 3)):
        made = opened(model, token_grid=grid)
        layout = made.aligned[made.layers[0]].site.layout
        assert (layout.extra, layout.behind) == (before, 4 - before)
    with pytest.raises(ConfigError, match="token_grid: 8x12 = 96 tokens and 5 before them fit no layer of this model"):
        opened(model, token_grid=(8, 12, 5))


class Mixed(nn.Module):
    """Tokens that all change alike with any patch: nothing tells which of them are cells."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 8)
        self.fc = nn.Linear(8, nets.CLASSES)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 98)[None, :, None])

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.fc(nn.functional.gelu(self.mix(x.mean((2, 3))[:, None] * self.scale)).mean(1))


def test_tokens_that_no_trial_tells_are_refused() -> None:
    """The message asks for the grid and how many tokens stand before it; with that the layer is explained."""
    torch.manual_seed(0)
    model = Mixed().eval()
    with pytest.raises(ConfigError, match=r"98 tokens, of which 8x12 could be cells .*--token-grid ROWS COLUMNS BEFORE"):
        opened(model)
    assert opened(model, token_grid=(8, 12, 0)).layers == ("mix",)


@pytest.mark.numeric
@pytest.mark.parametrize(
    "turn", [lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.rot90(1, (2, 3)), lambda x: x.transpose(2, 3)]
)
def test_a_picture_turned_inside_is_turned_back(turn: places.Change) -> None:
    """The map lies as the picture does: as the plain model's map of the turned picture, turned back."""
    pictures = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    made, plain = opened(Viewing(Plain(), [turn]), (64, 64), layers=("model.body",)), opened(Plain(), (64, 64), layers=("body",))
    found = made.capture.forward(pictures, ["model.body"]).activation("model.body")
    wanted = plain.capture.forward(turn(pictures), ["body"]).activation("body")
    assert torch.allclose(turn(found), wanted, atol=1e-6)
    assert "is turned back" in made.aligned["model.body"].note


def test_a_picture_in_another_order_inside_is_refused() -> None:
    """A map over all of the picture would show what lies elsewhere, and no part of it is one rectangle."""
    with pytest.raises(ConfigError, match=r"^layer model.body cannot be explained: its cells lie in another order"):
        opened(Viewing(Plain(), [lambda x: x.roll(24, 2)]), (64, 64))


@pytest.mark.parametrize("scale", [0.5, 1.5, 2])
def test_a_picture_resized_inside_is_read_as_it_is(scale: float) -> None:
    """All of the picture is still seen, upright."""
    made = opened(Viewing(Plain(), [lambda x: nn.functional.interpolate(x, scale_factor=scale)]), (64, 64))
    aligned = made.aligned[made.layers[0]]
    assert aligned.note == ""
    assert aligned.distance is not None
    assert aligned.distance <= 1


class Warping(nn.Module):
    """A network that looks where it finds something to look at, as a spatial transformer does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.look = nn.Sequential(nn.Conv2d(3, 8, 7, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 6))
        self.plain = Plain()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        moved = torch.tensor([1.0, 0, 0, 0, 1, 0]) + 0.6 * torch.tanh(4 * self.look(x))
        grid = nn.functional.affine_grid(moved.view(-1, 2, 3), list(x.shape), align_corners=False)
        return self.plain(nn.functional.grid_sample(x, grid, align_corners=False))


def test_a_picture_warped_inside_is_refused() -> None:
    """Cells lie elsewhere in each picture: no map over the picture is right for all."""
    with pytest.raises(ConfigError, match=r"or elsewhere in each picture \(where the model warps it\)"):
        opened(Warping().eval(), (64, 64))
