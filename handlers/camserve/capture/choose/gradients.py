"""What gradients behind a layer are, in closed form, and whether those of autograd say how the scores follow.

The CAM condition: behind global average pooling and one linear layer, gradients are rows of that layer's weight.
Zhou et al. 2016 (arXiv 1512.04150) introduced class activation maps for models of this form. A gradient is known there in
closed form, without a backward pass.
"""

from __future__ import annotations

from typing import NamedTuple

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

SMALL, MIDDLE, LARGE = 0.003, 0.01, 0.3
"""How far values of a layer's output are moved to see how the scores follow, as a share of each. The smaller a step, the less is
seen of curves and kinks behind the layer, and the more of half precision's rounding and of the levels of quantized values."""

MAX_GRADIENT_ERROR = 0.2
"""Largest difference between gradients and how the scores follow that is no doubt: kinks make up to 0.15 at the small step."""

MAX_STAIR_ERROR = 0.5
"""The same where the scores follow by jumps alone, and differ from step to step."""

STAYED = 0.03
"""Scores that change by less, as a share of what gradients say, stay where they are."""

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
    """Return how far gradients are from how the scores follow a layer, as a share of the larger; 0 where that is not known.

    They are, where a part of what is behind the layer is detached, runs in `torch.no_grad()`, or has a backward of its own. Each
    value of the layer is moved by a share of itself, so that those which a ReLU left at 0 stay there, at its kink. What the
    scores of a few classes change by is compared with what the gradients say.

    Args:
        pictures: `[N, 3, H, W]`.
        captured: a pass over them, with this layer.
    """
    output = captured.output(site.layer)
    if not isinstance(output, Tensor) or site.views:
        return 0.0
    try:
        return _Trial(model, site, pictures, captured, output).measure()
    except MODEL_ERRORS:
        return 0.0


class _Slopes(NamedTuple):
    """How the scores of a few classes follow a move `[N, k]`, over its size.

    Attributes:
        measured: as they do.
        expected: as gradients say.
        least: what rounding may make up of it.
    """

    measured: Tensor
    expected: Tensor
    least: float

    @property
    def told(self) -> bool:
        """Whether this is more than rounding."""
        return bool(torch.maximum(self.measured.norm(), self.expected.norm()) > self.least)

    @property
    def error(self) -> float:
        """How far both are apart, as a share of the larger."""
        size = torch.maximum(self.measured.norm(), self.expected.norm())
        return float((self.measured - self.expected).norm() / size)

    def agree(self) -> bool:
        """Return whether gradients say how the scores follow. Rounding alone hardly makes them so."""
        return self.error <= MAX_GRADIENT_ERROR

    def stay(self) -> bool:
        """Return whether some picture's scores stay where they are though gradients say that they change."""
        sizes = self.expected.norm(dim=1)
        return bool(((self.measured.norm(dim=1) < STAYED * sizes) & (sizes > self.least)).any())


def _between(one: _Slopes, other: _Slopes) -> _Slopes:
    return _Slopes((one.measured + other.measured) / 2, (one.expected + other.expected) / 2, one.least)


class _Trial:
    """Moves a layer's output, and compares how the scores follow with what the gradients say.

    Args:
        output: what `captured` gave of the layer.
    """

    def __init__(self, model: Classifier, site: Site, pictures: Tensor, captured: Captured, output: Tensor) -> None:
        self._model, self._site, self._pictures = model, site, pictures
        self._output, self._logits = output, captured.logits.double()
        self._targets = spread_targets(captured.logits[0])
        rows = torch.arange(len(self._logits), device=self._logits.device)
        each = [captured.gradients(site.layer, rows, target.expand(len(rows))) for target in self._targets]
        self._gradients = torch.stack(each, 1).double()

    def measure(self) -> float:
        """Return how far they are apart at the best of several steps, or 0 where that may have another cause.

        One step at which they agree is enough: at a smaller one scores may be rounded, at a larger one curved, and a kink has the
        slope of one side. Where they agree at none, gradients are wrong if the scores follow alike at two steps and without a
        bend, or stay where they are, be it where one cell alone is moved. Scores that jump otherwise say nothing: where values
        below a threshold become 0, gradients are right everywhere but at the jumps, and hardly any step is without one.
        """
        shares = self._draw()
        to = self._follow(shares, SMALL)
        if to.agree() or not (to.measured.any() or to.expected.any()):
            return 0.0
        fro = self._follow(shares, -SMALL)
        near = _between(to, fro)
        if fro.agree() or near.agree():
            return 0.0
        far = self._follow(shares, MIDDLE)
        if far.agree():
            return 0.0
        wide = _between(self._follow(shares, LARGE), self._follow(shares, -LARGE))
        error = min((each.error for each in (near, far, wide) if each.told), default=0.0)
        if _is_steady(near, far):
            return error
        if error <= MAX_STAIR_ERROR:
            return 0.0
        stay = to.stay() or fro.stay() or self._follow(shares * self._choose_largest(), MIDDLE).stay()
        return error if stay else 0.0

    def _follow(self, shares: Tensor, size: float) -> _Slopes:
        """Return how the scores follow where each value is moved by `size` times a share of itself."""
        moved = self._site.layout.mix(self._output + self._output * shares * size, self._output)
        with disable_tf32():
            scores = self._model.run_with(self._site, self._pictures, moved).double()
        moves = self._site.layout.to_grid(moved).double() - self._site.layout.to_grid(self._output).double()
        expected = (self._gradients * moves[:, None]).sum((2, 3, 4))
        return _Slopes(
            (scores - self._logits)[:, self._targets] / size, expected / size, LEAST * float(self._logits.norm()) / abs(size)
        )

    @property
    def _channels(self) -> int:
        return 1 if self._site.layout.order == "nchw" else self._output.ndim - 1

    def _draw(self) -> Tensor:
        """Return random shares. A part is alike in all cells, a part in all channels.

        Pooling does not average out the one, and the other changes where attention over cells looks.
        """
        chance, shape = torch.Generator().manual_seed(8), list(self._output.shape)
        columns = [size if axis == self._channels else 1 for axis, size in enumerate(shape)]
        cells = [1 if axis == self._channels else size for axis, size in enumerate(shape)]
        one, other, own = (torch.randint(2, each, generator=chance) * 2 - 1 for each in (columns, cells, shape))
        return ((one + other + own) / 3**0.5).to(self._output)

    def _choose_largest(self) -> Tensor:
        """Return 1 in the largest cell of each picture, 0 in others: the less is moved, the fewer thresholds are crossed."""
        empty = torch.zeros_like(self._output)
        sizes = torch.linalg.vector_norm(self._site.layout.mix(self._output, empty).float(), dim=self._channels, keepdim=True)
        pictures = 1 if self._site.layout.order == "sequence" else 0
        largest = sizes.amax([axis for axis in range(sizes.ndim) if axis != pictures], keepdim=True)
        return torch.as_tensor(sizes == largest).to(self._output)


def _is_steady(one: _Slopes, other: _Slopes) -> bool:
    """Return whether the scores follow two moves alike: to and fro by one step, and to by another, which differ at a kink."""
    apart, size = (one.measured - other.measured).norm(), torch.minimum(one.measured.norm(), other.measured.norm())
    return one.told and other.told and bool(apart <= MAX_GRADIENT_ERROR * size)
