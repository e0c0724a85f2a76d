"""The closed form: behind global average pooling and one linear layer, gradients are rows of that layer's matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture.base import Site
from camserve.capture.eager import _hooked
from camserve.capture.layout import Layout, logits_of

RELATIVE_ERROR = 1e-4
"""How far the model's scores may be from the closed form's: float32 sums in another order differ by a tenth of it."""


def pooled_head(model: nn.Module, site: Site, pictures: Tensor, outputs: int) -> Tensor | None:
    """The weight `[outputs, C]` of the linear layer if `logits = weight @ mean(activation) + bias`, else None.

    Decided by trial, not by names: the layer's output is replaced by random activations of both signs at two scales, and
    the model's scores must be the closed form's. A ReLU, a norm or a second layer behind the site makes it fail.
    Then the gradient of logit c is `weight[c] / (h * w)` in every cell.
    """
    if site.layout.order == "tokens":
        return None
    for module in reversed(list(model.modules())):
        if isinstance(module, nn.Linear) and module.weight.shape == (outputs, site.layout.channels):
            if all(_agrees(model, site, pictures, module, scale) for scale in (1.0, 30.0)):
                return module.weight.detach().float()
            return None
    return None


def _agrees(model: nn.Module, site: Site, pictures: Tensor, linear: nn.Linear, scale: float) -> bool:
    fed: list[Tensor] = []

    def replace(_layer: str, output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        values = scale * torch.randn(output.shape, generator=generator)
        fed.append(values.clone())  # the head may write into what it gets
        return values.to(output)

    with torch.no_grad(), _hooked(model, {site.layer: site}, replace):
        scores = logits_of(model(pictures)).double().cpu()
    pooled = _mean(fed[0], site.layout).to(linear.weight.dtype).double()
    weight, bias = linear.weight.double().cpu(), _double(linear.bias)
    expected = pooled @ weight.T + bias
    return bool((scores - expected).abs().max() <= RELATIVE_ERROR * expected.abs().max())


def _mean(values: Tensor, layout: Layout) -> Tensor:
    return layout.grid(values).double().mean((2, 3))


def _double(bias: Any) -> Tensor | float:
    return bias.double().cpu() if isinstance(bias, Tensor) else 0.0
