"""What gradients behind a layer are, in closed form, and whether those of autograd say how the scores follow.

The CAM condition: behind global average pooling and one linear layer, gradients are rows of that layer's weight.
Zhou et al. 2016 (arXiv 1512.04150) introduced class activation maps for models of this form. A gradient is known there in
closed form, without a backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from camserve.capture.base import Captured, Classifier
from camserve.capture.models.passes import fit_batch
from camserve.capture.precision import disable_tf32
from camserve.capture.survey.layers import MODEL_ERRORS, Site

RELATIVE_ERROR = {torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Relative tolerance between the model's scores and the closed form's, by the type of the weights: both round differently."""

QUANTIZED_ERROR = 5e-2
"""The same where weights have 8 bits: what they are multiplied with is rounded to 127 or 255 steps. A ReLU, a norm or a second
layer behind the site changes scores by several tenths."""

QUANTIZED_SCORES_ERROR = 1e-1
"""The same where the activations, their means and the scores are rounded too."""

FULL_PRECISION_ERROR = 1e-4
"""The same for float32, where sums in another order differ by a tenth of it, and for float64."""

SCALES = (1.0, 30.0)
"""Scales of the random activations. They have both signs, so that anything nonlinear before the scores shows at one of them."""

CLASSES = 3
"""Most classes whose gradients are compared."""

STEPS = (0.01, 0.03)
"""How far a layer's cells are moved to see how the scores follow, in standard deviations of its output. Where the first step
shows a difference, the second tells whether it is steady, or half precision's rounding."""

MAX_GRADIENT_ERROR = 0.2
"""Largest difference between gradients and how the scores follow that is no doubt: ReLUs that open and close make up to 0.08."""

LEAST = 3e-5
"""Where scores change by less, as a share of their size, rounding hides how they follow."""


def find_cam_weights(model: Classifier, site: Site, pictures: Tensor, outputs: int) -> Tensor | None:
    """Return the weight of the head if `logits = weight @ mean(activation) + bias`, else None.

    This is decided by trial, not by names or classes: the layer's output is replaced by random activations, and the model's
    scores must equal the formula's with one of the model's own parameters. A ReLU, a norm or a second layer behind the site
    makes it fail. The gradient of logit c is then `weight[c] / (h * w)` in every cell, for pictures of this size.

    Args:
        site: the layer.
        pictures: `[N, 3, H, W]`.
        outputs: number of the model's classes, K. Of one logit they are two, whose weights are `-w` and `w`.

    Returns:
        `[K, C]`, float32. None of a layer with several views, whose channels share the head.
    """
    if site.views:
        return None
    shape = (1 if model.reader.binary else outputs, site.layout.channels)
    candidates = [weight for weight in model.weights() if tuple(weight.shape) in (shape, (*shape, 1, 1))]
    if not candidates:
        return None
    pictures = fit_batch(pictures, model.batch)
    with disable_tf32():
        own = model.quantized_output(site, pictures)
        nothing = torch.zeros(site.layout.shape(len(pictures)) if own is None else own.shape, device=pictures.device)
        empty = model.run_with(site, pictures, nothing).double()
        for scale in SCALES:
            pooled, scores = _trial(model, site, pictures, scale, own)
            candidates = [each for each in candidates if _holds(model, each, pooled, (scores - empty).cpu(), own)]
            if not candidates:
                return None
    return _read_weight(model, candidates[-1]).float()


def _read_weight(model: Classifier, candidate: Tensor) -> Tensor:
    weight = candidate.detach().dequantize().flatten(1) if candidate.is_quantized else candidate.detach().flatten(1)
    return torch.cat([-weight, weight]) if model.reader.binary else weight


def _holds(model: Classifier, candidate: Tensor, pooled: Tensor, scores: Tensor, own: Tensor | None) -> bool:
    weight = _read_weight(model, candidate)
    tolerance = RELATIVE_ERROR.get(weight.dtype, FULL_PRECISION_ERROR)
    if candidate.is_quantized:
        tolerance = QUANTIZED_ERROR if own is None else QUANTIZED_SCORES_ERROR
    return _agrees(weight, pooled, scores, tolerance)


def _trial(model: Classifier, site: Site, pictures: Tensor, scale: float, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the means `[N, C]` of random activations, and the scores `[N, K]` with these; both float64.

    A quantized layer can give nothing beyond its range, and neither can the scores: there, parts of its own activations are
    taken at random, more of them the smaller `scale` is.
    """
    generator = torch.Generator().manual_seed(1)
    if own is None:
        values = scale * torch.randn(site.layout.shape(len(pictures)), generator=generator)
    else:
        channels = [*own.shape[:2], *([1] * (own.ndim - 2))]
        values = own.cpu() * (torch.rand(channels, generator=generator) < (0.9 if scale == 1 else 0.5))
    values = values.to(pictures.device)
    scores = model.run_with(site, pictures, values)
    return site.layout.to_grid(values).double().mean((2, 3)).cpu(), scores.double()


def _agrees(weight: Tensor, pooled: Tensor, scores: Tensor, tolerance: float) -> bool:
    expected = pooled @ weight.double().cpu().T
    scale = expected.abs().max()
    return bool(scale > 0) and bool((scores - expected).abs().max() <= tolerance * scale)


def spread_targets(logits: Tensor) -> Tensor:
    """Return a few classes, from the most to the least probable by `logits` `[K]`."""
    ranked = logits.argsort(descending=True)
    return ranked[torch.linspace(0, len(ranked) - 1, min(CLASSES, len(ranked))).long()]


def measure_gradient_error(model: Classifier, site: Site, pictures: Tensor, captured: Captured) -> float:
    """Return how far gradients are from how the scores follow a layer, as a share of the latter; 0 where that is not known.

    They are, where a part of what is behind the layer is detached, runs in `torch.no_grad()`, or has a backward of its own. The
    layer's cells are moved at random, and what the scores of a few classes change by is compared with what the gradients say.

    Args:
        pictures: `[N, 3, H, W]`.
        captured: a pass over them, with this layer.
    """
    output = captured.output(site.layer)
    if not isinstance(output, Tensor) or site.views:
        return 0.0
    followed = list[Tensor]()
    try:
        for step in STEPS:
            moved, change = _follow(model, site, pictures, captured, step * float(output.float().std()))
            if not change.norm() > LEAST * captured.logits.double().norm():
                return 0.0
            followed.append(change / step)
            expected = _expect(site, captured, moved - output)
            share = float((expected - change).norm() / change.norm())
            if share <= MAX_GRADIENT_ERROR:
                return share
    except MODEL_ERRORS:
        return 0.0
    steady = float((followed[0] - followed[1]).norm() / followed[1].norm()) <= MAX_GRADIENT_ERROR
    return share if steady else 0.0


def _follow(model: Classifier, site: Site, pictures: Tensor, captured: Captured, size: float) -> tuple[Tensor, Tensor]:
    """Return a layer's output with its cells moved at random, and what scores of a few classes `[N, k]` then change by."""
    output = torch.as_tensor(captured.output(site.layer))
    noise = _draw(output, 1 if site.layout.order == "nchw" else -1)
    moved = site.layout.mix(output + noise * size, output)
    with disable_tf32():
        change = model.run_with(site, pictures, moved).double() - captured.logits.double()
    return moved, change[:, spread_targets(captured.logits[0])]


def _expect(site: Site, captured: Captured, moves: Tensor) -> Tensor:
    """Return what gradients say that the scores of these classes `[N, k]` change by."""
    rows, moves = torch.arange(len(captured.logits), device=moves.device), site.layout.to_grid(moves).double()
    targets = spread_targets(captured.logits[0])
    slopes = [captured.gradients(site.layer, rows, target.expand(len(rows))).double() for target in targets]
    return torch.stack([(slope * moves).sum((1, 2, 3)) for slope in slopes], 1)


def _draw(output: Tensor, channels: int) -> Tensor:
    """Return random values of an output's shape. A part is the same in all cells: pooling does not average that out."""
    chance, shape = torch.Generator().manual_seed(8), [1] * output.ndim
    shape[channels] = output.shape[channels]
    return (torch.randn(shape, generator=chance) + torch.randn(output.shape, generator=chance)).to(output)
