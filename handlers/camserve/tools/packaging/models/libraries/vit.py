"""torchvision's vision transformers are built for pictures of one size, and their weights fit no other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import Tensor


def find_image_size(arch: str, published: Any, state: Mapping[str, Tensor] | None) -> int | None:
    """Finds the side, in pixels, of the pictures that an architecture's weights are for; None: it takes any.

    The number of position embeddings in `state` says it, or, where that is None, the metadata of the weights that
    torchvision publishes.
    """
    if not torchvision.models.get_model_builder(arch).__module__.endswith(".vision_transformer"):
        return None
    side = int(published.meta["min_size"][0])
    if state is None:
        return side
    positions, patches = state.get("encoder.pos_embedding"), state.get("conv_proj.weight")
    if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4:
        return side  # these weights fit no transformer at all, as will be said
    cells = math.isqrt(positions.shape[1])  # one more is the class token's, and is rounded away
    return int(cells * patches.shape[3]) or side


def find_weights_of_size(published: Any, side: int) -> Any:
    """Finds the first of an architecture's published weights that are for pictures of this side; None: there are none."""
    kind: Any = type(published)
    return next((each for each in kind if each.meta["min_size"][0] == side), None)
