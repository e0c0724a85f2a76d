"""Operators that move values, or take some of them."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from camserve.capture.models.programs.graphs.operators.node import (
    GraphError,
    Node,
    Operation,
    Result,
    check_size,
    expand_shapes,
    list_whole,
    take_axes,
)


def _reshape(node: Node, x: Tensor, shape: Tensor | None = None) -> Tensor:
    sides = list(node.get("shape", ())) if shape is None else list_whole(shape)
    if not node.get("allowzero", 0):
        sides = [x.shape[place] if side == 0 else side for place, side in enumerate(sides)]
    return x.reshape(sides)


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(list(node.get("perm") or reversed(range(x.ndim))))


def _squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = take_axes(node, axes)
    return x.squeeze() if found is None else x.squeeze(tuple(found))


def _unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = take_axes(node, axes) or []
    for axis in sorted(axis % (x.ndim + len(found)) for axis in found):
        x = x.unsqueeze(axis)
    return x


def _concat(node: Node, *tensors: Tensor) -> Tensor:
    return torch.cat(tensors, node.get("axis", 1))


def _split(node: Node, x: Tensor, sizes: Tensor | None = None) -> Result:
    axis = node.get("axis", 0)
    given = list(node.get("split") or ()) if sizes is None else list_whole(sizes)
    if not given:
        count = node.get("num_outputs", len(node.outputs))
        each = -(-x.shape[axis] // count)
        given = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    return torch.split(x, given, axis)


def _slice(node: Node, x: Tensor, *given: Tensor | None) -> Tensor:
    names = ("starts", "ends", "axes", "steps")
    lists: list[Any] = (
        [None if each is None else list_whole(each) for each in given] if given else [node.get(name) for name in names]
    )
    starts, ends, axes, steps = [*lists, None, None, None][:4]
    axes = list(range(len(starts))) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(axes), strict=True):
        x = _slice_axis(x, start, end, axis, step)
    return x


def _slice_axis(x: Tensor, start: int, end: int, axis: int, step: int) -> Tensor:
    length = x.shape[axis]
    places = range(*slice(start, None if step < 0 and end < -length else end, step).indices(length))
    if step > 0:
        picked: list[slice] = [slice(None)] * (axis % x.ndim)
        return x[(*picked, slice(places.start, max(places.start, places.stop), step))]
    return x.index_select(axis, torch.tensor(list(places), dtype=torch.long, device=x.device))


def _gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0) % max(x.ndim, 1)
    shape = check_size([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])
    length = x.shape[axis]
    places = torch.where(indices < 0, indices + length, indices).long().flatten().to(x.device)
    return x.index_select(axis, places).reshape(shape)


def _gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).long().to(x.device))


def _gather_places(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    if node.get("batch_dims", 0):
        raise GraphError("GatherND within batches")
    check_size([*indices.shape[:-1], *x.shape[indices.shape[-1] :]])
    return x[_places(x, indices)]


def _scatter_places(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    if node.get("reduction", b"none") != b"none":
        raise GraphError("ScatterND that reduces")
    return x.index_put(_places(x, indices), updates.to(x.dtype))


def _places(x: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
    """Return indices `[..., k]` of the first k axes, one tensor for each axis."""
    several = indices.long().to(x.device).unbind(-1)
    return tuple(torch.where(each < 0, each + side, each) for each, side in zip(several, x.shape, strict=False))


def _expand(_node: Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(expand_shapes(x.shape, list_whole(shape)))


def _tile(_node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    times = list_whole(repeats)
    check_size(side * count for side, count in zip(x.shape, times, strict=True))
    return x.repeat(times)


def _pad(node: Node, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    given = list(node.get("pads") or node.get("paddings") or ()) if pads is None else list_whole(pads)
    padded = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in list_whole(axes)]
    before, after = [0] * x.ndim, [0] * x.ndim
    for place, axis in enumerate(padded):
        before[axis], after[axis] = given[place], given[place + len(padded)]
    check_size(side + low + high for side, low, high in zip(x.shape, before, after, strict=True))
    sides = [side for axis in reversed(range(x.ndim)) for side in (before[axis], after[axis])]
    mode = node.get("mode", b"constant")
    if mode == b"constant":
        return functional.pad(x, sides, value=node.get("value", 0.0) if value is None else value.item())
    while len(sides) > 2 and sides[-2:] == [0, 0]:
        sides = sides[:-2]
    kinds = {b"reflect": "reflect", b"edge": "replicate", b"wrap": "circular"}
    return functional.pad(x, sides, mode=kinds[mode])


def _shape(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[node.get("start", 0) : node.get("end")], dtype=torch.long)


def _fill(node: Node, shape: Tensor) -> Tensor:
    value = node.get("value")
    value = torch.zeros(1) if value is None else value
    return torch.full(check_size(list_whole(shape)), value.flatten()[0].item(), dtype=value.dtype)


def _range(_node: Node, start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    check_size([max(0, math.ceil((end.item() - start.item()) / step.item()))])
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    block, (count, channels, height, width) = node.get("blocksize"), x.shape
    if node.get("mode", b"DCR") == b"CRD":
        return functional.pixel_shuffle(x, block)
    parts = x.reshape(count, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(count, channels // block**2, height * block, width * block)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    block, (count, channels, height, width) = node.get("blocksize"), x.shape
    if node.get("mode", b"DCR") == b"CRD":
        return functional.pixel_unshuffle(x, block)
    parts = x.reshape(count, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(count, channels * block**2, height // block, width // block)


def _resize(node: Node, x: Tensor, *given: Tensor | None) -> Tensor:
    """Resize maps as torch does: by the nearest cell, or between cells. What else ONNX has is refused."""
    if node.get("axes") or node.get("antialias", 0) or node.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise GraphError("Resize of some axes, that keeps proportions, or that smooths")
    if len(given) <= 1:  # version 10, and Upsample: the scales alone
        scales, sizes, way, rounds = (given[0] if given else torch.tensor(node.get("scales"))), None, b"asymmetric", b"floor"
    else:
        _, scales, sizes = [*given, None][:3]
        way = node.get("coordinate_transformation_mode", b"half_pixel")
        rounds = node.get("nearest_mode", b"round_prefer_floor")
    shape = check_size(_find_size(x, scales, sizes))
    mode = node.get("mode", b"nearest")
    if x.ndim != 4 or shape[:2] != list(x.shape[:2]) or (way == b"pytorch_half_pixel" and 1 in shape[2:]):
        raise GraphError(f"Resize of {list(x.shape)} to {shape}")
    if mode == b"nearest" and way == b"asymmetric" and rounds == b"floor":
        return functional.interpolate(x, shape[2:], mode="nearest")
    if mode in (b"linear", b"cubic") and way in (b"half_pixel", b"pytorch_half_pixel", b"align_corners"):
        if mode == b"cubic" and abs(node.get("cubic_coeff_a", -0.75) + 0.75) > 1e-6:
            raise GraphError("Resize with other coefficients than torch's")
        kind = "bilinear" if mode == b"linear" else "bicubic"
        return functional.interpolate(x, shape[2:], mode=kind, align_corners=way == b"align_corners")
    raise GraphError(f"Resize with mode {mode.decode()}, {way.decode()} and {rounds.decode()}")


def _find_size(x: Tensor, scales: Tensor | None, sizes: Tensor | None) -> list[int]:
    if sizes is not None:
        return list_whole(sizes)
    if scales is None or not scales.numel():
        raise GraphError("Resize without scales and sizes")
    shape = [math.floor(side * scale) for side, scale in zip(x.shape, scales.tolist(), strict=True)]
    if any(abs(side * scale - made) > 1e-3 for side, scale, made in zip(x.shape, scales.tolist(), shape, strict=True)):
        raise GraphError(f"Resize by {scales.tolist()}, which are not whole cells of {list(x.shape)}")
    return shape


def _trilu(node: Node, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    place = 0 if diagonal is None else int(diagonal.item())
    return x.triu(place) if node.get("upper", 1) else x.tril(place)


def _cumulate(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    if node.get("exclusive", 0) or node.get("reverse", 0):
        raise GraphError("CumSum that is exclusive or reverse")
    return x.cumsum(int(axis.item()))


def _constant(node: Node) -> Any:
    for name, value in node.attributes.items():
        if isinstance(value, Tensor):
            return value
        if name in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.float32)
        if name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.long)
    raise GraphError("a Constant that is no tensor of numbers")


SHAPES: MappingProxyType[str, Operation] = MappingProxyType(
    {
        "Concat": _concat,
        "Constant": _constant,
        "ConstantOfShape": _fill,
        "CumSum": _cumulate,
        "DepthToSpace": _depth_to_space,
        "Expand": _expand,
        "Flatten": _flatten,
        "Gather": _gather,
        "GatherElements": _gather_elements,
        "GatherND": _gather_places,
        "Pad": _pad,
        "Range": _range,
        "Reshape": _reshape,
        "Resize": _resize,
        "ScatterND": _scatter_places,
        "Shape": _shape,
        "Size": lambda _node, x: torch.tensor(x.numel()),
        "Slice": _slice,
        "SpaceToDepth": _space_to_depth,
        "Split": _split,
        "Squeeze": _squeeze,
        "Tile": _tile,
        "Transpose": _transpose,
        "Trilu": _trilu,
        "Unsqueeze": _unsqueeze,
        "Upsample": _resize,
    }
)
