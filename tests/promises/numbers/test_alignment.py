"""What changes in a part of a picture changes the cell of the map that the answer's view puts there: for each family of networks."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tests.support.models import architectures, nets, places
from torch import Tensor, nn

from camserve import Model

pytestmark = pytest.mark.numeric

FAR = 0.6
"""Largest median distance along an axis, in cells, between what changed and the middle of the cells that changed most.

Convolutions of stride 2 with a border of 1 look half a cell aside: five of them in a row put a cell nearly that far."""

PATCHES = 16

Made = Callable[[], nn.Module]


def timm_model(name: str) -> Made:
    """A family of timm, with random weights that let every part act."""
    return lambda: settled(timm.create_model(name, pretrained=False, num_classes=architectures.CLASSES), (160, 160))


def settled(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """No head of zeros, no residual branch scaled to nothing, and statistics that fit."""
    for part in model.modules():
        if isinstance(part, nn.Linear) and not part.weight.any():
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(gamma := getattr(part, "gamma", None), nn.Parameter):
            nn.init.ones_(gamma)
    architectures.settle(model.eval(), torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0)))
    return model


def vision_transformer(size: tuple[int, int], **options: Any) -> Made:
    """timm's, small, for pictures of one size."""
    return lambda: timm.models.VisionTransformer(
        img_size=size, patch_size=16, embed_dim=32, depth=3, num_heads=4, num_classes=architectures.CLASSES, **options
    )


SQUARE, WIDE, TALL = (160, 160), (128, 192), (160, 96)

FAMILIES: dict[str, tuple[Made, tuple[int, int]]] = {
    **{name: (timm_model(name), SQUARE) for name in ("test_byobnet", "test_convnext", "test_efficientnet", "test_mambaout")},
    **{name: (timm_model(name), SQUARE) for name in ("test_maxvit", "test_coatnet", "test_nfnet", "test_resnet", "test_vit")},
    "test_resnet wide": (timm_model("test_resnet"), WIDE),
    "test_convnext tall": (timm_model("test_convnext"), TALL),
    "class token, wide": (vision_transformer(WIDE), WIDE),
    "no class token, tall": (vision_transformer(TALL, class_token=False, global_pool="avg"), TALL),
    "registers before": (vision_transformer(SQUARE, reg_tokens=4), SQUARE),
    "registers behind": (lambda: places.Ordered(before=1, behind=4), WIDE),
    "columns first": (lambda: places.Ordered("columns"), TALL),
    "channels last": (nets.Last, WIDE),
    "tokens first": (nets.Sequence, WIDE),
    "mirrored inside": (lambda: places.Viewing(places.Plain(), [lambda x: x.flip(3)]), WIDE),
    "views": (lambda: places.Viewing(places.Plain(), [lambda x: x, lambda x: x.flip(3), lambda x: x.flip(2)]), TALL),
}


def middle_of(change: Tensor) -> tuple[float, float]:
    """The middle, in cells, of the largest change `[h, w]` and its neighbours: strided convolutions see half a cell aside."""
    row, column = divmod(int(change.argmax()), change.shape[1])
    rows, columns = (
        range(max(0, place - 1), min(count, place + 2)) for place, count in zip((row, column), change.shape, strict=True)
    )
    weights = change[rows.start : rows.stop, columns.start : columns.stop].relu().square()
    middles = (
        float((weights.sum(axis) * torch.tensor(list(span))).sum() / weights.sum()) for axis, span in ((1, rows), (0, columns))
    )
    return next(middles), next(middles)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_map_lies_where_the_picture_changes(name: str) -> None:
    """Noise in one patch of a picture, at many places, found again by the view and the grid of the answer."""
    make, (height, width) = FAMILIES[name]
    torch.manual_seed(0)
    model = Model(make().eval(), resize=max(height, width) + 32, crop=(height, width), channels_last=False)
    generator = np.random.default_rng(0)
    picture = np.asarray(Image.fromarray(generator.integers(0, 255, (12, 17, 3), np.uint8)).resize((451, 300)))
    explained = model.explain(Image.fromarray(picture))[0]
    view, (rows, columns) = explained.view, explained.heatmap.shape
    assert view is not None
    cell_height, cell_width = (view.bottom - view.top) / rows, (view.right - view.left) / columns
    spots, tensors = [], [model.preprocess(Image.fromarray(picture))]
    for row, column in generator.permutation([(row, column) for row in range(rows) for column in range(columns)])[:PATCHES]:
        middle = view.top + (row + 0.5) * cell_height, view.left + (column + 0.5) * cell_width
        changed = picture.copy()
        high, low = round(middle[0] - cell_height / 2), round(middle[0] + cell_height / 2)
        first, last = round(middle[1] - cell_width / 2), round(middle[1] + cell_width / 2)
        changed[high:low, first:last] = generator.integers(0, 255, (low - high, last - first, 3))
        tensors.append(model.preprocess(Image.fromarray(changed)))
        spots.append((row, column))
    layer = model.backend.layers[0]
    activation = model.backend.capture.forward(torch.stack(tensors), [layer]).activation(layer)
    moved = (activation[1:] - activation[:1]).norm(dim=1)
    moved = moved - moved.mean(0)
    distances = []
    for change, (row, column) in zip(moved, spots, strict=True):
        found = middle_of(change)
        distances.append(max(abs(found[0] - row), abs(found[1] - column)))
    assert statistics.median(distances) <= FAR
    told = model.metadata["cells"][layer]
    assert told["grid"] == [rows, columns]
