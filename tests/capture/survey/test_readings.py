"""What the outputs of a run are: each is read in the light of the others."""

from __future__ import annotations

import pytest

from camserve.capture.survey.layout import Layout
from camserve.capture.survey.readings import ATTENTION, UNKNOWN_GRID, UNKNOWN_ORDER, Moments, Output, Readings, infer_orders
from camserve.core.errors import ConfigError

SIGNED = Moments(negative=True, mean=0.1, square=1, absolute=0.8)


def output(shape: tuple[int, ...], kind: str = "Module", moments: Moments | None = SIGNED) -> Output:
    """One call's output."""
    return Output("layer", kind, shape, moments)


def softmax(shape: tuple[int, ...]) -> Output:
    """Attention weights: nothing is negative, and rows add up to 1."""
    return output(shape, "Softmax", Moments(negative=False, mean=1 / shape[3], square=1, absolute=1 / shape[3]))


def read(
    *outputs: Output, picture: tuple[int, int] = (224, 224), token_grid: tuple[int, ...] | None = None
) -> list[Layout | None]:
    """The layouts of a run's outputs, for two pictures."""
    return [reading.layout for reading in Readings(outputs, 2, picture, token_grid).all]


@pytest.mark.parametrize(
    ("before", "attention", "picture"),
    [
        ((2, 197, 32), softmax((2, 4, 197, 197)), (224, 224)),
        ((2, 50, 32), softmax((2, 4, 50, 50)), (224, 224)),
        ((197, 2, 32), softmax((2, 4, 197, 197)), (224, 224)),
        ((2, 65, 32), output((2, 4, 65, 65)), (256, 256)),  # before the softmax
        ((2, 65, 32), output((2, 4, 65, 64)), (256, 256)),  # keys of one head
        ((2, 64, 16, 16), softmax((2, 4, 256, 256)), (256, 256)),  # between maps
    ],
    ids=["224/16", "224/32", "sequence", "scores", "keys", "between maps"],
)
def test_attention_is_no_map(before: tuple[int, ...], attention: Output, picture: tuple[int, int]) -> None:
    """Heads by tokens by tokens look like channels by rows by columns."""
    readings = Readings([output(before), attention, output(before)], 2, picture).all
    assert readings[1].layout is None
    assert readings[1].fault == ATTENTION
    assert readings[0].layout is not None
    assert readings[2].layout == readings[0].layout


def test_a_map_with_as_many_rows_as_another_stage_has_tokens_stays_one() -> None:
    """64x64 cells in the first stage, and 8x8 = 64 tokens in the last."""
    found = read(
        *(output((2, 32, 64, 64)), output((2, 4096, 32)), output((2, 96, 8, 8)), output((2, 64, 96)), output((2, 96, 8, 8))),
        picture=(256, 256),
    )
    assert found == [
        Layout("nchw", 64, 64, 32),
        Layout("tokens", 64, 64, 32),
        Layout("nchw", 8, 8, 96),
        Layout("tokens", 8, 8, 96),
        Layout("nchw", 8, 8, 96),
    ]


def test_a_map_whose_mean_is_that_of_attention_stays_one() -> None:
    """Where nothing in the model has as many cells as it has columns."""
    assert read(softmax((2, 32, 56, 56)))[0] == Layout("nchw", 56, 56, 32)
    assert read(softmax((2, 32, 56, 56)), output((2, 64, 7, 8)))[0] is None


def test_gates_of_channels_are_no_tokens() -> None:
    """A row of one value for each of 64 channels says nothing of a map of 64x64 cells behind it."""
    found = read(output((2, 64, 1)), output((2, 32, 64, 64)), picture=(256, 256))
    assert found[1] == Layout("nchw", 64, 64, 32)


@pytest.mark.parametrize(
    ("grid", "tokens", "extra", "picture"),
    [
        ((27, 27), 729, 0, (384, 384)),
        ((14, 14), 197, 1, (230, 230)),
        ((6, 3), 18, 0, (100, 60)),
        ((6, 3), 19, 1, (100, 60)),
        ((6, 3), 23, 5, (100, 60)),
    ],
)
def test_tokens_lie_as_the_map_that_they_were(grid: tuple[int, int], tokens: int, extra: int, picture: tuple[int, int]) -> None:
    """A picture's side need not be a multiple of the patch's: the embedding's map has the grid."""
    found = read(output((2, 32, *grid), "Conv2d"), output((2, tokens, 32)), picture=picture)
    assert found[1] == Layout("tokens", *grid, 32, extra)


def test_the_map_that_needs_fewest_extra_tokens_counts_then_the_nearest() -> None:
    """Not the stem's, nor one of a later stage; where none came before, one behind them."""
    maps = [output((2, 8, 12, 6)), output((2, 16, 6, 3))]
    assert read(*maps, output((2, 73, 8)), picture=(100, 60))[2] == Layout("tokens", 12, 6, 8, 1)
    assert read(*maps, output((2, 19, 8)), output((2, 8, 12, 6)), picture=(100, 60))[2] == Layout("tokens", 6, 3, 8, 1)
    assert read(output((2, 19, 8)), *maps, picture=(100, 60))[0] == Layout("tokens", 6, 3, 8, 1)
    several = [output((2, 8, 4, 5)), output((2, 8, 5, 4)), output((2, 8, 4, 4))]
    assert read(*several, output((2, 21, 8)))[3] == Layout("tokens", 5, 4, 8, 1)
    assert read(output((2, 40, 4, 4)), output((2, 16, 8)), picture=(100, 60))[1] == Layout("tokens", 4, 4, 8)  # not 5x3 and one
    assert read(output((2, 40, 13, 13)), output((2, 196, 8)), picture=(208, 208))[1] is None
    assert read(output((2, 40, 13, 15)), output((2, 196, 8)), picture=(224, 224))[1] == Layout("tokens", 14, 14, 8)


def test_tokens_without_a_grid_are_said_to_be() -> None:
    """Not a few rows, or one value each: those are something else."""
    readings = Readings([output((2, 77, 8)), output((2, 7, 8)), output((2, 77, 1)), output((2, 10))], 2, (224, 224)).all
    assert [reading.fault for reading in readings] == [UNKNOWN_GRID, "", "", ""]


TOKENS = output((2, 24, 8))
EMBEDDING = output((2, 8, 4, 6), "Conv2d")


@pytest.mark.parametrize(
    ("outputs", "grid", "message"),
    [
        ((TOKENS,), (3, 5), r"^token_grid: 3x5 = 15 tokens fit no layer of this model: the numbers of tokens are 24 \(4x6\)$"),
        ((TOKENS,), (9, 9), "9x9 = 81 tokens fit no layer"),
        ((EMBEDDING, TOKENS), (4, 5), r"4x5 = 20 tokens fit no layer of this model: .* 24 \(4x6\)"),
        ((EMBEDDING, TOKENS), (6, 4), r"6x4 = 24 tokens fit no layer"),
        ((output((2, 77, 8)),), (2, 2), r"the numbers of tokens are 77 \(whose grid cannot be told\)"),
        ((EMBEDDING, output((2, 25, 8))), (9, 9), r"25 \(4x6 and 1 more\)"),
        ((output((2, 8, 8, 8)),), (8, 8), "8x8 = 64 tokens fit no layer of this model: no layer gives tokens$"),
    ],
    ids=["extra tokens", "too many", "other map", "turned", "more than 64 extra", "one extra", "no tokens"],
)
def test_a_token_grid_that_fits_no_layer_is_refused(outputs: tuple[Output, ...], grid: tuple[int, int], message: str) -> None:
    """It is never passed over, nor are tokens of the picture taken for others to make it fit."""
    readings = Readings(outputs, 2, (64, 96), grid)
    with pytest.raises(ConfigError, match=message):
        readings.check_token_grid()


@pytest.mark.parametrize(
    ("outputs", "grid", "layout"),
    [
        ((TOKENS,), (3, 8), Layout("tokens", 3, 8, 8)),
        ((TOKENS,), (4, 5), Layout("tokens", 4, 5, 8, 4)),
        ((EMBEDDING, TOKENS), (4, 6), Layout("tokens", 4, 6, 8)),
        ((output((2, 77, 8)),), (6, 10), Layout("tokens", 6, 10, 8, 17)),
    ],
)
def test_a_token_grid_that_fits_is_taken(outputs: tuple[Output, ...], grid: tuple[int, int], layout: Layout) -> None:
    """Before what the picture's size would say; with many extra tokens only where nothing else fits."""
    readings = Readings(outputs, 2, (64, 96), grid)
    readings.check_token_grid()
    assert readings.all[-1].layout == layout


EITHER = (2, 48, 48, 48)
CHANNELS_FIRST, CHANNELS_LAST = Layout("nchw", 48, 48, 48), Layout("nhwc", 48, 48, 48)
SWIN = (output(EITHER, "Conv2d"), output(EITHER, "Permute"), output(EITHER, "LayerNorm"), output((2, 24, 24, 192), "Linear"))


def test_another_size_tells_channels_from_cells() -> None:
    """Cells change with the picture, channels do not; what was not seen again stays open."""
    smaller = [output((2, 48, 24, 24)), output((2, 24, 24, 48)), output((2, 24, 24, 24))]
    assert dict(infer_orders(SWIN, [0, 1, 2], smaller, 2, (96, 96))) == {0: "nchw", 1: "nhwc"}
    assert dict(infer_orders(SWIN, [0, 1, 2], smaller[:1], 2, (96, 96))) == {0: "nchw"}
    renamed = [Output("other", each.kind, each.shape, each.moments) for each in smaller]
    assert not dict(infer_orders(SWIN, [0, 1, 2], renamed, 2, (96, 96)))
    assert not dict(infer_orders(SWIN, [0], [output((2, 50, 24, 24))], 2, (96, 96)))
    assert not dict(infer_orders(SWIN, [0], [output(EITHER)], 2, (96, 96)))  # pooled to a fixed number of cells
    assert not dict(infer_orders(SWIN, [0], [output((2, 48, 24, 48))], 2, (96, 96)))
    told = Readings(SWIN, 2, (192, 192), orders={0: "nchw", 1: "nhwc"})
    assert told.ambiguous == [0, 1, 2]
    assert [reading.layout for reading in told.all[:3]] == [CHANNELS_FIRST, CHANNELS_LAST, CHANNELS_LAST]


def test_without_it_the_class_tells_or_the_rest_of_the_model() -> None:
    """And where neither does the output is left out, with the reason."""
    readings = Readings(SWIN, 2, (192, 192)).all
    assert [reading.layout for reading in readings[:3]] == [CHANNELS_FIRST, None, CHANNELS_LAST]
    assert readings[1].fault == UNKNOWN_ORDER
    plain = Readings([output(EITHER, "Conv2d"), output(EITHER, "Sequential"), output((2, 96, 24, 24))], 2, (192, 192)).all
    assert [reading.layout for reading in plain[:2]] == [CHANNELS_FIRST, CHANNELS_FIRST]
    last = Readings([output(EITHER, "Block"), output((2, 24, 24, 96))], 2, (192, 192)).all
    assert last[0].layout == CHANNELS_LAST
    alone = [output(EITHER, "Block")]
    assert Readings(alone, 2, (192, 192)).all[0].fault == UNKNOWN_ORDER
    assert Readings(alone, 2, (192, 192), usual="nchw").all[0].layout == CHANNELS_FIRST
