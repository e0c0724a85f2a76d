"""Where cells lie, followed from map to map: as the arithmetic of receptive fields has it, whatever is cut or left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from tests.support.models import heads, nets
from torch import Tensor, nn
from torch.nn import functional

from camserve.capture import open_backend
from camserve.capture.alignment import steps
from camserve.capture.alignment.align import Aligned
from camserve.capture.backend import Backend
from camserve.capture.survey.layout import UPRIGHT, Turn
from camserve.core.config import Config
from camserve.core.errors import ConfigError

pytestmark = pytest.mark.numeric

SIDE = 64
WIDTH = 16

Span = tuple[float, float]


def conv(inside: int, stride: int = 1, side: int = 3, border: int | None = None) -> nn.Sequential:
    """A convolution, a norm and a ReLU."""
    border = side // 2 if border is None else border
    return nn.Sequential(nn.Conv2d(inside, WIDTH, side, stride, border), nn.BatchNorm2d(WIDTH), nn.ReLU())


class Residual(nn.Module):
    """A block of two convolutions, whose input is added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(WIDTH), conv(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, h, w]`, twice."""
        return x + self.second(self.first(x))


class Cut(nn.Module):
    """Some rows and columns of what it gets."""

    def __init__(self, rows: slice, columns: slice) -> None:
        super().__init__()
        self.part = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, h, w]` to `[N, C, fewer, fewer]`."""
        rows, columns = self.part
        return x[:, :, rows, columns]


def padded(sides: tuple[int, int, int, int], mode: str = "constant") -> nn.Module:
    """Padded at the left, right, top and bottom."""
    return heads.Applied(lambda x: functional.pad(x, sides, mode))


class Gate(nn.Module):
    """A gate over all cells."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, h, w]`, twice."""
        return x * self.weigh(x.mean((2, 3)))[:, :, None, None].sigmoid()


class Net(nn.Module):
    """A trunk, pooling and one linear layer; `whole`: the trunk runs as one function, whose parts no hook sees."""

    def __init__(self, parts: Sequence[nn.Module], *, whole: bool = False) -> None:
        super().__init__()
        self.body: nn.Module = Whole(parts) if whole else nn.Sequential(*parts)
        self.fc = nn.Linear(WIDTH, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.fc(self.body(x).mean((2, 3)))


class Whole(nn.Module):
    """Parts that no hook sees."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(value for part in parts for value in part.parameters())
        self.parts = [part.eval() for part in (nn.Sequential(*parts),)]

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, C, h, w]`."""
        for part in self.parts:
            x = part(x)
        return x


def half_left_out() -> list[nn.Module]:
    """Two convolutions of 5 x 5 without a border, each before a pooling: the network of many a first lesson."""
    return [conv(3, 1, 5, 0), nn.MaxPool2d(2), conv(WIDTH, 1, 5, 0), nn.MaxPool2d(2)]


CASES: dict[str, tuple[Callable[[], Sequence[nn.Module]], int, tuple[Span, Span]]] = {
    "two of eight rows cut": (
        lambda: [conv(3, 4), conv(WIDTH, 2), Cut(slice(2, None), slice(0, None)), conv(WIDTH)],
        SIDE,
        ((12.5 / 64, 60.5 / 64), (-3.5 / 64, 60.5 / 64)),
    ),
    "one of eight on each side": (
        lambda: [conv(3, 4), conv(WIDTH, 2), Cut(slice(1, 7), slice(1, 7)), conv(WIDTH)],
        SIDE,
        ((4.5 / 64, 52.5 / 64),) * 2,
    ),
    "five of eight": (
        lambda: [conv(3, 4), conv(WIDTH, 2), Cut(slice(0, 5), slice(3, 8)), conv(WIDTH)],
        SIDE,
        ((-3.5 / 64, 36.5 / 64), (20.5 / 64, 60.5 / 64)),
    ),
    "a deep network, cut": (
        lambda: [conv(3, 4), *(Residual() for _ in range(4)), conv(WIDTH, 2), *(Residual() for _ in range(6)), *cut_behind()],
        SIDE,
        ((12.5 / 64, 60.5 / 64),) * 2,
    ),
    "gates over all cells, cut": (
        lambda: [conv(3, 4), Gate(), conv(WIDTH, 2), Gate(), *cut_behind(), Gate()],
        SIDE,
        ((12.5 / 64, 60.5 / 64),) * 2,
    ),
    "five cells, no borders": (half_left_out, 32, ((6 / 32, 26 / 32),) * 2),
    "borders left out eight times": (
        lambda: [conv(3, 2), *(conv(WIDTH, border=0) for _ in range(8))],
        SIDE,
        ((15.5 / 64, 47.5 / 64),) * 2,
    ),
    "a wide kernel without a border": (
        lambda: [conv(3, 4), conv(WIDTH, side=7, border=0), conv(WIDTH, border=0)],
        SIDE,
        ((14.5 / 64, 46.5 / 64),) * 2,
    ),
    "a picture padded at two sides, no borders": (
        lambda: [padded((0, 30, 0, 10)), conv(3, 2, 7, 0), conv(WIDTH, 2, 7, 0), conv(WIDTH, 2, 5, 0)],
        128,
        ((13.5 / 128, 117.5 / 128), (13.5 / 128, 141.5 / 128)),
    ),
    "a picture padded with its mirror image": (
        lambda: [padded((12, 4, 12, 4), "reflect"), conv(3, 4), conv(WIDTH, 2)],
        SIDE,
        ((-15.5 / 64, 64.5 / 64),) * 2,
    ),
    "features of which most is padded": (
        lambda: [conv(3, 4), padded((0, 48, 0, 48)), nn.AvgPool2d(2), conv(WIDTH, 2)],
        SIDE,
        ((-5.5 / 64, 250.5 / 64),) * 2,
    ),
    "a picture cut, then bordered": (
        lambda: [Whole([Cut(slice(16, None), slice(0, 48)), conv(3, 1, 5)]), conv(WIDTH, 8)],
        SIDE,
        ((12.5 / 64, 60.5 / 64), (-3.5 / 64, 44.5 / 64)),
    ),
    "twice as many cells, cut": (
        lambda: [conv(3, 4), nn.Upsample(scale_factor=2), Cut(slice(8, None), slice(8, None)), conv(WIDTH, 2)],
        SIDE,
        ((13.5 / 64, 61.5 / 64),) * 2,
    ),
    "turned upside down, cut": (
        lambda: [conv(3, 4), heads.Applied(lambda x: x.flip(2, 3)), conv(WIDTH, 2), *cut_behind()],
        SIDE,
        ((0.5 / 64, 48.5 / 64),) * 2,
    ),
    "transposed, cut": (
        lambda: [
            heads.Applied(lambda x: x.transpose(2, 3)),
            conv(3, 4),
            conv(WIDTH, 2),
            Cut(slice(2, None), slice(0, None)),
            conv(WIDTH),
        ],
        SIDE,
        ((-3.5 / 64, 60.5 / 64), (12.5 / 64, 60.5 / 64)),
    ),
    "wider borders than kernels": (
        lambda: [conv(3, 4), conv(WIDTH, 2, border=3), conv(WIDTH)],
        SIDE,
        ((-11.5 / 64, 68.5 / 64),) * 2,
    ),
}
"""A trunk, the picture's side, and over what part of the height and the width its cells lie."""


TURNS = {"turned upside down, cut": Turn(False, True, True), "transposed, cut": Turn(True, False, False)}
"""How cells are turned, where they are."""


def cut_behind() -> list[nn.Module]:
    """The first two rows and columns are cut off."""
    return [Cut(slice(2, None), slice(2, None)), conv(WIDTH)]


def opened(model: nn.Module, side: int = SIDE, kind: str = "eager") -> Backend:
    """A backend of the net with random statistics; nothing is timed."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean, part.running_var = 0.3 * torch.randn(part.num_features), 0.5 + torch.rand(part.num_features)
    taken = model.eval() if kind == "eager" else nets.stored(model.eval(), kind, torch.randn(2, 3, side, side))
    return open_backend(taken, Config(channels_last=None), (side, side), torch.device("cpu"))


def placed(backend: Backend) -> Aligned:
    """Where the default layer lies."""
    (aligned,) = backend.aligned.values()
    return aligned


def check_part(aligned: Aligned, wanted: tuple[Span, Span], tolerance: float = 1e-6) -> None:
    """The layer lies over this part, and that is said."""
    (view,) = aligned.site.views
    for found, span in zip((view.rows, view.columns), wanted, strict=True):
        assert found == pytest.approx(span, abs=tolerance)
    assert aligned.told
    assert aligned.note.startswith("its cells lie over ")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", CASES)
def test_cells_lie_where_kernels_strides_and_borders_put_them(case: str, seed: int) -> None:
    """Exactly: a map over all of the picture would be more than 0.6 cell out of place."""
    make, side, wanted = CASES[case]
    torch.manual_seed(seed)
    aligned = placed(opened(Net(make()), side))
    check_part(aligned, wanted)
    assert aligned.site.layout.turn == TURNS.get(case, UPRIGHT)


@pytest.mark.parametrize("kind", ["script", "trace", "exported", "frozen"])
def test_archives_of_every_kind_are_followed(kind: str) -> None:
    """A frozen program has no names, so that one step leads from the map to the picture."""
    make, side, wanted = CASES["five cells, no borders"]
    torch.manual_seed(0)
    check_part(placed(opened(Net(make()), side, kind)), wanted)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.startswith(("wider", "twice", "transposed", "a picture padded at"))]
)
def test_a_trunk_of_one_function_is_followed_or_doubted(case: str, seed: int) -> None:
    """No hook sees its maps: one step leads to the picture, where that shows about the same in all."""
    make, side, wanted = CASES[case]
    torch.manual_seed(seed)
    aligned = placed(opened(Net(make(), whole=True), side))
    if aligned.told:
        check_part(aligned, wanted, 0.6 / aligned.site.layout.height)
    else:
        assert "over another one in each picture" in aligned.note


class Twice(Net):
    """A trunk that runs on the picture, and on its mirror image."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return super().forward(x) + super().forward(x.flip(3))


def test_each_view_is_followed() -> None:
    """Exactly, the mirrored one too."""
    make, side, (rows, columns) = CASES["two of eight rows cut"]
    torch.manual_seed(0)
    plain, mirrored = placed(opened(Twice(make()), side)).site.views
    assert plain.rows == mirrored.rows == pytest.approx(rows)
    assert plain.columns == pytest.approx(columns)
    assert mirrored.columns == pytest.approx((1 - columns[1], 1 - columns[0]))
    assert mirrored.layout.turn == Turn(mirrored=True)


class Patches(nn.Module):
    """A small transformer whose patches leave the last rows and columns out."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.fc = nn.Conv2d(3, 16, 16, 16), nn.Linear(16, nets.CLASSES)
        self.blocks = nn.Sequential(nets.Block(16), nets.Block(16))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.fc(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def test_tokens_lie_as_their_patches() -> None:
    """Of 95 pixels, the last 15 are no patch: a map over all of the picture would be 0.7 of a cell out of place."""
    torch.manual_seed(0)
    check_part(placed(opened(Patches(), 95)), ((0, 80 / 95),) * 2)


class Turned(nn.Module):
    """An early map of many cells, convolutions that look at all there is, around the edges, and what they give upside down."""

    def __init__(self) -> None:
        super().__init__()
        wide = [nn.Conv2d(WIDTH, WIDTH, 7, padding=3, padding_mode="circular") for _ in range(3)]
        self.first, self.wide = nn.Sequential(conv(3, 2), conv(WIDTH, 4)), nn.Sequential(nn.MaxPool2d(2), *wide)
        self.last, self.fc = conv(WIDTH), nn.Linear(WIDTH, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.fc(self.last(self.wide(self.first(x)).flip(2, 3)).mean((2, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_an_early_map_does_not_tell_where_a_later_one_lies(seed: int) -> None:
    """Where neither steps nor the layer's own cells do, it is refused or doubted."""
    torch.manual_seed(seed)
    model = Turned()
    try:
        aligned = open_backend(
            model.eval(), Config(layers=("last",), channels_last=None), (SIDE, SIDE), torch.device("cpu")
        ).aligned["last"]
    except ConfigError as error:
        assert "in another order than any" in str(error)  # noqa: PT017 either is right
    else:
        assert not aligned.told or aligned.site.layout.turn == Turn(False, True, True)


class Deep(nn.Module):
    """Many convolutions on few cells: with random weights neither probes nor slopes tell where cells lie."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 4), conv(WIDTH, 2), *(conv(WIDTH, side=5) for _ in range(12)))
        self.fc = nn.Linear(WIDTH, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.fc(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_a_network_of_which_nothing_is_cut_lies_over_all_of_the_picture(seed: int) -> None:
    """However deep it is, and without a doubt: its strides displace it by half a cell, as those of any network do."""
    torch.manual_seed(seed)
    backend = opened(Deep())
    aligned = placed(backend)
    assert aligned.site.views == ()
    assert aligned.told
    assert backend.doubts == {}


def test_the_largest_maps_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step leads through them, and is about as exact: what is held of a large model is bounded."""
    make, side, wanted = CASES["a deep network, cut"]
    monkeypatch.setattr(steps, "MOST", 40 * WIDTH * 8 * 8)
    torch.manual_seed(0)
    check_part(placed(opened(Net(make()), side)), wanted, 0.2 / 6)


class Wandering(nn.Module):
    """A cut whose place the picture tells, by its sum: any change of it moves all cells."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = conv(3, 4), conv(WIDTH), nn.Linear(WIDTH, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        places = [int(number) % 5 for number in (x.flatten(1).double().sum(1) * 1e4).long().tolist()]
        parts = [each[:, place : place + 12, 4:] for each, place in zip(self.first(x), places, strict=True)]
        return self.fc(self.second(torch.stack(parts)).mean((2, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_that_wanders_is_refused_or_doubted(seed: int) -> None:
    """The steps lead to another place in each picture."""
    torch.manual_seed(seed)
    try:
        backend = opened(Wandering())
    except ConfigError as error:
        assert "in another order than any" in str(error)  # noqa: PT017 either is right
    else:
        assert not placed(backend).told
        assert backend.doubts
