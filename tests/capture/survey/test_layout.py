"""How outputs lie in memory: which shapes are maps, and their cells in the right order."""

from __future__ import annotations

import pytest
import torch

from camserve.capture.survey.layout import Layout, extract_tensor, guess_grid, replace_tensor, synthesize_pictures
from camserve.capture.survey.readings import Moments, Output, Readings


def layout_of(shape: tuple[int, ...], picture: tuple[int, int], token_grid: tuple[int, ...] | None = None) -> Layout | None:
    """The layout of the only output of a run, for two pictures."""
    output = Output("layer", "Module", shape, Moments(negative=True, mean=0, square=1, absolute=0.8))
    return Readings([output], 2, picture, token_grid).all[0].layout


@pytest.mark.parametrize(
    ("shape", "picture", "expected"),
    [
        ((2, 512, 7, 7), (224, 224), Layout("nchw", 7, 7, 512)),
        ((2, 7, 7, 768), (224, 224), Layout("nhwc", 7, 7, 768)),
        ((2, 192, 35, 35), (299, 299), Layout("nchw", 35, 35, 192)),
        ((2, 64, 10, 20), (320, 640), Layout("nchw", 10, 20, 64)),
        ((2, 10, 20, 64), (320, 640), Layout("nhwc", 10, 20, 64)),
        ((2, 197, 768), (224, 224), Layout("tokens", 14, 14, 768, 1)),
        ((2, 196, 768), (224, 224), Layout("tokens", 14, 14, 768)),
        ((2, 198, 768), (224, 224), Layout("tokens", 14, 14, 768, 2)),
        ((2, 201, 768), (224, 224), Layout("tokens", 14, 14, 768, 5)),
        ((197, 2, 768), (224, 224), Layout("sequence", 14, 14, 768, 1)),
        ((2, 1370, 1280), (518, 518), Layout("tokens", 37, 37, 1280, 1)),
        ((2, 201, 16), (160, 320), Layout("tokens", 10, 20, 16, 1)),
        ((8, 49, 96), (224, 224), None),
        ((2, 1000), (224, 224), None),
        ((2, 77, 768), (224, 224), None),
        ((2, 3, 4, 5, 6), (224, 224), None),
        ((2, 8, 500, 500), (224, 224), None),
    ],
)
def test_shapes(shape: tuple[int, ...], picture: tuple[int, int], expected: Layout | None) -> None:
    """Channels first or last, tokens with and without extra ones, tokens before the batch; and what is no map."""
    assert layout_of(shape, picture) == expected
    if expected:
        assert expected.shape(2) == shape


def test_the_token_grid_may_be_given() -> None:
    """Where it cannot be told from the picture: another number of registers, or of rows; others are told as before."""
    assert layout_of((2, 60, 8), (224, 224)) is None
    assert layout_of((2, 60, 8), (224, 224), (6, 10)) == Layout("tokens", 6, 10, 8)
    assert layout_of((2, 76, 8), (224, 224), (6, 10)) == Layout("tokens", 6, 10, 8, 16)
    assert layout_of((2, 197, 8), (224, 224), (6, 10)) == Layout("tokens", 14, 14, 8, 1)


@pytest.mark.parametrize(
    ("tokens", "picture", "grid"),
    [(18, (100, 60), None), (19, (100, 60), None), (15, (100, 60), (5, 3, 0)), (16, (100, 60), (5, 3, 1)), (4, (32, 64), None)],
)
def test_an_ambiguous_token_grid_is_not_guessed(tokens: int, picture: tuple[int, int], grid: tuple[int, int, int] | None) -> None:
    """18 tokens of 100x60 pixels are 6x3 patches of 16 and a border sooner than 5x3 patches of 20 and three tokens of others."""
    assert guess_grid(tokens, picture) == grid


def test_cells_keep_their_places() -> None:
    """The value of row i, column j, channel k stands at `[n, k, i, j]`, whatever the layout."""
    wanted = torch.arange(2 * 3 * 2 * 4.0).reshape(2, 3, 2, 4)
    last = wanted.permute(0, 2, 3, 1)
    tokens = torch.cat([torch.full((2, 1, 3), -1.0), last.reshape(2, 8, 3)], 1)
    for order, values, extra in (
        ("nchw", wanted, 0),
        ("nhwc", last, 0),
        ("tokens", tokens, 1),
        ("sequence", tokens.transpose(0, 1), 1),
    ):
        assert torch.equal(Layout(order, 2, 4, 3, extra).to_grid(values), wanted)  # type: ignore[arg-type]


def test_tokens_of_a_larger_picture_keep_the_proportions() -> None:
    """Twice as many cells both ways than surveyed."""
    layout = Layout("tokens", 2, 4, 3, 1)
    assert layout.to_grid(torch.zeros(1, 1 + 4 * 8, 3)).shape == (1, 3, 4, 8)


@pytest.mark.parametrize(
    ("surveyed", "picture", "grid"),
    [
        ((224, 224), (112, 448), (8, 32)),  # as many cells as a square picture has
        ((224, 224), (224, 336), (16, 24)),
        ((224, 224), (448, 112), (32, 8)),
        ((224, 224), (230, 341), (16, 24)),  # a border of less than a patch is left out
        ((224, 224), (225, 337), (17, 25)),  # patches go beyond the border
        ((230, 230), (448, 462), (32, 33)),  # what is left out of the surveyed pictures counts in the others
        ((224, 224), (300, 500), (16, 16)),  # the model resizes every picture
    ],
)
def test_tokens_of_another_size_lie_by_the_patches(
    surveyed: tuple[int, int], picture: tuple[int, int], grid: tuple[int, int]
) -> None:
    """Patches of 14 pixels, 16 x 16 in the pictures that were surveyed."""
    layout, scale = Layout("tokens", 16, 16, 3, 1), (picture[0] / surveyed[0], picture[1] / surveyed[1])
    assert layout.to_grid(torch.zeros(1, 1 + grid[0] * grid[1], 3), scale).shape[2:] == grid


def test_tokens_that_no_patches_make_are_no_grid() -> None:
    """Better no map than one whose rows are mixed up."""
    with pytest.raises(ValueError, match=r"^1000 tokens are no grid of about 32\.0 x 16\.0 cells$"):
        Layout("tokens", 16, 16, 3).to_grid(torch.zeros(1, 1000, 3), (2.0, 1.0))


def test_the_first_tensor_is_replaced_in_place_of_itself() -> None:
    """A tuple stays a tuple, a named one keeps its type, a list its length."""
    one, two = torch.zeros(1), torch.ones(1)
    named = torch.return_types.max((one, one))
    assert extract_tensor((one, two)) is one
    assert extract_tensor({"a": one}) is None
    assert replace_tensor((one, 7), two) == (two, 7)
    assert replace_tensor([one, 7], two) == [two, 7]
    assert replace_tensor(one, two) is two
    assert type(named) is torch.return_types.max


def test_synthetic_pictures_are_always_the_same() -> None:
    """The same seed, the same picture; of the size that was asked for."""
    assert synthesize_pictures((20, 30)).shape == (2, 3, 20, 30)
    assert torch.equal(synthesize_pictures((20, 30)), synthesize_pictures((20, 30)))
    assert not torch.equal(synthesize_pictures((20, 30)), synthesize_pictures((20, 30), seed=1))
