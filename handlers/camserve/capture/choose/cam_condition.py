"""The closed form: behind global average pooling and one linear layer, gradients are rows of that layer's matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from camserve.capture.base import Classifier
from camserve.capture.models.passes import fit_batch
from camserve.capture.precision import disable_tf32
from camserve.capture.survey.layers import Site

RELATIVE_ERROR = {torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""How far the model's scores may be from the closed form's, by the precision of its weights: both round differently."""

FULL_PRECISION_ERROR = 1e-4
"""The same for float32 (sums in another order differ by a tenth of it) and float64."""

SCALES = (1.0, 30.0)
"""Activations of both signs at two scales: whatever bends between the layer and the scores bends these."""


def find_cam_weights(model: Classifier, site: Site, pictures: Tensor, outputs: int) -> Tensor | None:
    """The weight `[outputs, C]` of the head if `logits = weight @ mean(activation) + bias`, else None.

    Decided by trial, not by names or types: the layer's output is replaced by random activations, and the model's scores must
    be the closed form's with one of the model's own parameters. A ReLU, a norm or a second layer behind the site makes it fail.
    The gradient of logit c is then `weight[c] / (h * w)` in every cell, for pictures of this size.
    """
    shape = (outputs, site.layout.channels)
    rows = [weight for weight in model.weights() if tuple(weight.shape) in (shape, (*shape, 1, 1))]
    if not rows:
        return None
    pictures = fit_batch(pictures, model.batch)
    with disable_tf32():
        trials = [_trial(model, site, pictures, scale) for scale in SCALES]
    for weight in reversed(rows):
        head = weight.detach().flatten(1)
        if all(_agrees(head, *trial) for trial in trials):
            return head.float()
    return None


def _trial(model: Classifier, site: Site, pictures: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Mean activations `[N, C]` and what they add to the scores `[N, outputs]`, float64."""
    generator = torch.Generator().manual_seed(1)
    values = scale * torch.randn(site.layout.shape(len(pictures)), generator=generator)
    values = values.to(pictures.device)
    empty = model.run_with(site, pictures, torch.zeros_like(values))
    scores = model.run_with(site, pictures, values)
    return site.layout.to_grid(values).double().mean((2, 3)).cpu(), (scores.double() - empty.double()).cpu()


def _agrees(head: Tensor, pooled: Tensor, scores: Tensor) -> bool:
    tolerance = RELATIVE_ERROR.get(head.dtype, FULL_PRECISION_ERROR)
    expected = pooled @ head.double().cpu().T
    scale = expected.abs().max()
    return bool(scale > 0) and bool((scores - expected).abs().max() <= tolerance * scale)
