"""Operators with weights, pooling, and norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from camserve.capture.models.programs.graphs.operators.node import GraphError, Node, Operation, Result, check_size, expand_shapes

CONVOLUTIONS = MappingProxyType({1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d})
TRANSPOSED = MappingProxyType({1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d})
MAXIMA = MappingProxyType({1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d})


def find_pads(node: Node, x: Tensor, kernel: Sequence[int], ceil: bool = False) -> tuple[list[int], list[int]]:
    """Return the padding before and behind each axis of a map `[N, C, ...]`; `ceil`: pooling may reach beyond the end."""
    axes = len(kernel)
    strides, dilations = node.get("strides") or [1] * axes, node.get("dilations") or [1] * axes
    auto = node.get("auto_pad", b"NOTSET")
    if auto in (b"NOTSET", b""):
        pads = list(node.get("pads") or [0] * 2 * axes)
        before, after = pads[:axes], pads[axes:]
    elif auto == b"VALID":
        before, after = [0] * axes, [0] * axes
    else:
        spans = [dilation * (side - 1) + 1 for dilation, side in zip(dilations, kernel, strict=True)]
        totals = [
            max(0, (-(-length // stride) - 1) * stride + span - length)
            for length, stride, span in zip(x.shape[2:], strides, spans, strict=True)
        ]
        small = [total // 2 for total in totals]
        large = [total - half for total, half in zip(totals, small, strict=True)]
        before, after = (small, large) if auto == b"SAME_UPPER" else (large, small)
    if any(low < 0 or high < 0 for low, high in zip(before, after, strict=True)):
        raise GraphError("negative padding")
    check_size([*x.shape[:2], *(side + low + high for side, low, high in zip(x.shape[2:], before, after, strict=True))])
    if ceil:
        after = [
            high + _beyond(length + low + high, dilation * (side - 1) + 1, stride, length + low)
            for length, low, high, dilation, side, stride in zip(
                x.shape[2:], before, after, dilations, kernel, strides, strict=True
            )
        ]
    return before, after


def _beyond(length: int, span: int, stride: int, start_limit: int) -> int:
    """Return how far the last window reaches beyond a padded axis; none may begin in the padding behind it."""
    count = -(-(length - span) // stride) + 1
    if (count - 1) * stride >= start_limit:
        count -= 1
    return max(0, (count - 1) * stride + span - length)


def pad_map(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad a map `[N, C, ...]`."""
    sides = [side for low, high in zip(reversed(before), reversed(after), strict=True) for side in (low, high)]
    return functional.pad(x, sides, value=value) if any(sides) else x


def convolve(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve a map with a weight."""
    kernel = list(weight.shape[2:])
    before, after = find_pads(node, x, kernel)
    padding = list(before) if before == after else [0] * len(kernel)
    given = x if before == after else pad_map(x, before, after)
    how = {"stride": node.get("strides") or 1, "dilation": node.get("dilations") or 1, "groups": node.get("group", 1)}
    return CONVOLUTIONS[len(kernel)](given, weight, bias, padding=padding, **how)


def _convolve_transposed(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = list(weight.shape[2:])
    if node.get("auto_pad", b"NOTSET") != b"NOTSET" or node.get("output_shape"):
        raise GraphError("ConvTranspose with auto_pad or output_shape")
    before, after = find_pads(node, x, kernel)
    strides = node.get("strides") or [1] * len(kernel)
    check_size(
        [
            len(x),
            weight.shape[1],
            *(side * stride + size for side, stride, size in zip(x.shape[2:], strides, kernel, strict=True)),
        ]
    )
    if before != after:
        raise GraphError("ConvTranspose with other padding before than behind")
    how = {"stride": strides, "dilation": node.get("dilations") or 1, "groups": node.get("group", 1)}
    return TRANSPOSED[len(kernel)](x, weight, bias, padding=before, output_padding=node.get("output_padding") or 0, **how)


def _pool_maximum(node: Node, x: Tensor) -> Result:
    kernel = list(node.get("kernel_shape"))
    before, after = find_pads(node, x, kernel, bool(node.get("ceil_mode", 0)))
    given = pad_map(x, before, after, -math.inf if x.is_floating_point() else 0)
    if len(node.outputs) > 1 and node.outputs[1]:
        raise GraphError("MaxPool with indices")
    return MAXIMA[len(kernel)](given, kernel, node.get("strides") or [1] * len(kernel), 0, node.get("dilations") or 1)


def _pool_mean(node: Node, x: Tensor) -> Tensor:
    """Pool the mean, of what is padded too only where the node says so; of what lies beyond the padding never."""
    kernel = list(node.get("kernel_shape"))
    if any(side != 1 for side in node.get("dilations") or ()):
        raise GraphError("AveragePool with dilations")
    before, after = find_pads(node, x, kernel, bool(node.get("ceil_mode", 0)))
    plain = find_pads(node, x, kernel)[1]
    strides, axes = node.get("strides") or [1] * len(kernel), len(kernel)
    pool: Any = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[axes]
    sums = pool(pad_map(x, before, after), kernel, strides)
    counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if node.get("count_include_pad", 0):
        counted = pad_map(counted, before, plain, 1.0)
        counted = pad_map(counted, [0] * axes, [high - low for high, low in zip(after, plain, strict=True)])
    else:
        counted = pad_map(counted, before, after)
    shares: Tensor = pool(counted, kernel, strides)
    return sums / shares  # type: ignore[no-any-return]


def _pool_globally(_node: Node, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def _normalise_batch(node: Node, x: Tensor, *weights: Tensor) -> Tensor:
    scale, bias, mean, var = weights
    if node.get("training_mode", 0) or len([name for name in node.outputs if name]) > 1:
        raise GraphError("BatchNormalization in training mode; export the model in evaluation mode, model.eval()")
    return functional.batch_norm(x, mean, var, scale, bias, training=False, eps=node.get("epsilon", 1e-5))


def _normalise_instance(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


def _normalise_layer(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = node.get("axis", -1) % x.ndim
    normed = functional.layer_norm(x, list(x.shape[axis:]), eps=node.get("epsilon", 1e-5)) * scale
    return normed if bias is None else normed + bias


def _normalise_groups(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    if node.opset < 21:  # a weight for each group then, one for each channel since
        scale, bias = (each.repeat_interleave(x.shape[1] // groups) for each in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


def _normalise_root(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axes = list(range(node.get("axis", -1) % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + node.get("epsilon", 1e-5)) * scale


def _normalise_length(node: Node, x: Tensor) -> Tensor:
    return functional.normalize(x, node.get("p", 2), node.get("axis", -1))


def _normalise_locally(node: Node, x: Tensor) -> Tensor:
    return functional.local_response_norm(
        x, node.get("size"), node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    )


def multiply(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices."""
    if a.ndim > 1 and b.ndim > 1:
        check_size([*expand_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]])
    return a @ b


def _multiply_add(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if node.get("transA", 0) else a
    b = b.T if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    if c is not None and alpha == beta == 1 and c.ndim == 1:
        check_size([len(a), b.shape[1]])
        return torch.addmm(c, a, b)
    made = multiply(node, a, b)
    made = made if alpha == 1 else made * alpha
    return made if c is None else made + (c if beta == 1 else c * beta)


def _sum_products(node: Node, *tensors: Tensor) -> Tensor:
    text = node.get("equation", b"").decode()
    given, _, made = text.replace(" ", "").partition("->")
    if "." not in text:
        sides = {
            name: side
            for names, each in zip(given.split(","), tensors, strict=True)
            for name, side in zip(names, each.shape, strict=True)
        }
        check_size(sides[name] for name in made)
    return torch.einsum(text, *tensors)


def _attend(node: Node, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *past: Tensor | None) -> Tensor:
    """Attention of version 23: tokens `[N, heads, T, C]`, or `[N, T, heads * C]`."""
    known = {"is_causal", "kv_num_heads", "q_num_heads", "scale", "softmax_precision"}
    other = [name for name, value in node.attributes.items() if name not in known and value]
    if any(each is not None for each in past) or other or len([name for name in node.outputs if name]) > 1:
        raise GraphError(f"Attention with what went before, further outputs, or {', '.join(other) or 'the like'}")
    if query.ndim == 3:
        queries, keys = node.get("q_num_heads"), node.get("kv_num_heads")
        query, key, value = (
            each.reshape(*each.shape[:2], heads, -1).transpose(1, 2)
            for each, heads in ((query, queries), (key, keys), (value, keys))
        )
        made = _attention(node, query, key, value, mask).transpose(1, 2)
        return made.reshape(*made.shape[:2], -1)
    return _attention(node, query, key, value, mask)


def _attention(node: Node, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    times = query.shape[1] // key.shape[1]
    key, value = (each if times == 1 else each.repeat_interleave(times, 1) for each in (key, value))
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=bool(node.get("is_causal", 0)), scale=node.get("scale")
    )


LAYERS: MappingProxyType[str, Operation] = MappingProxyType(
    {
        "Attention": _attend,
        "AveragePool": _pool_mean,
        "BatchNormalization": _normalise_batch,
        "Conv": convolve,
        "ConvTranspose": _convolve_transposed,
        "Einsum": _sum_products,
        "Gemm": _multiply_add,
        "GlobalAveragePool": _pool_globally,
        "GlobalMaxPool": lambda _node, x: x.amax(list(range(2, x.ndim)), keepdim=True),
        "GroupNormalization": _normalise_groups,
        "InstanceNormalization": _normalise_instance,
        "LRN": _normalise_locally,
        "LayerNormalization": _normalise_layer,
        "LpNormalization": _normalise_length,
        "MatMul": multiply,
        "MaxPool": _pool_maximum,
        "RMSNormalization": _normalise_root,
    }
)
