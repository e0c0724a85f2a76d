"""How far a heatmap is borne out: the model is asked again about the picture with parts hidden, and with only these shown.

A part is hidden by a blur of the picture, and by its mean colour: what a network makes of either alone may be an artefact of the
fill. Deletion and insertion are those of Petsiuk et al. 2018 (RISE, arXiv 1806.07421), at a few shares of the cells instead of
every pixel. What the brightest cells do is compared with what others do, for on many pictures hiding any part lowers a score:
with the blur, random cells; with the mean colour, those of the map moved elsewhere, which hang together as the brightest do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from camserve.core.errors import RequestError
from camserve.core.messages import Item
from camserve.core.messages.checks import FILLS, SHARES, VERDICTS, Check, Hidden
from camserve.explain.explainer import Explainer, Prediction
from camserve.pictures.bounds.limits import Deadline

PASSES = len(FILLS) * (1 + 4 * len(SHARES))
"""Pictures that the model sees for one check, by fill: everything hidden; the brightest cells, and others, hidden and shown."""

BLUR = 20
"""The blur's standard deviation is the picture's longer side over this."""

SUPPORTED, WEAK = 0.2, 0.1
"""From which `Check.support` on a map is supported, and weakly so; calibrated in `benchmarks/README.md`."""

LEAST = 0.05
"""What hiding everything must take from the score, as a share of it, or nothing in the picture can be told to speak for it."""

_Mask = NDArray[np.bool_]


def pick_cells(heatmap: NDArray[np.float32], share: float) -> _Mask:
    """Pick the brightest cells `[h, w]` of a heatmap, one at least; of equal ones those that come first."""
    count = max(1, round(share * heatmap.size))
    picked = np.zeros(heatmap.size, bool)
    picked[np.argsort(-heatmap.ravel(), kind="stable")[:count]] = True
    return picked.reshape(heatmap.shape)


def move(heatmap: NDArray[np.float32], way: int) -> NDArray[np.float32]:
    """Move a heatmap by half its size, by `way` aslant, down or across; what leaves at one side comes in at the other."""
    height, width = (side // 2 for side in heatmap.shape)
    return np.roll(heatmap, ((height, width), (height, 0), (0, width))[way], (0, 1))


def scatter(heatmap: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Put a heatmap's cells in a random order, the same for all heatmaps of a size, so that an answer can be repeated."""
    return np.random.default_rng(seed).permutation(heatmap.ravel()).reshape(heatmap.shape)


def perturb(picture: Tensor, heatmap: NDArray[np.float32]) -> Iterator[Tensor]:
    """Make the pictures that the model is asked about, `PASSES` of them, in the order in which `judge` takes their scores.

    Args:
        picture: the model's input `[C, H, W]`, of any floating type.
        heatmap: `[h, w]`; its cells divide the input evenly.
    """
    brightest = [pick_cells(heatmap, share) for share in SHARES]
    others = {
        "blur": [pick_cells(scatter(heatmap, seed), share) for seed, share in enumerate(SHARES)],
        "mean": [pick_cells(move(heatmap, way), share) for way, share in enumerate(SHARES)],
    }
    for fill in FILLS:
        hidden = _fill(picture, fill)
        yield hidden
        for mask in (*brightest, *others[fill]):
            cells = torch.from_numpy(mask).to(picture)[None, None]
            shown = functional.interpolate(cells, picture.shape[1:], mode="nearest-exact")[0] > 0
            yield torch.where(shown, hidden, picture)
            yield torch.where(shown, picture, hidden)


def judge(whole: float, scores: Sequence[float], *, lowers: bool = False) -> Check:
    """Say how far a map is borne out.

    The effect of cells is the mean of two shares of what hiding everything takes from the score: what hiding them takes, and
    what showing only them leaves. `support` is the effect of the brightest cells less that of as many others, the mean over
    shares and fills.

    Args:
        whole: the target's score for the picture itself.
        scores: those for the pictures of `perturb`.
        lowers: the map shows what lowers the score.
    """
    sign = -1.0 if lowers else 1.0
    table = np.array(scores, np.float64).reshape(len(FILLS), -1)
    empty, pairs = table[:, 0], table[:, 1:].reshape(len(FILLS), 2, len(SHARES), 2)
    brightest, others = pairs[:, 0], pairs[:, 1]
    span = sign * (whole - empty)
    told = span > LEAST * abs(whole)
    support = 0.0
    if told.any():
        effects = (whole - pairs[..., 0] + pairs[..., 1] - empty[:, None, None])[told] * sign / (2 * span[told, None, None])
        support = float((effects[:, 0] - effects[:, 1]).mean())
    return Check(
        verdict=VERDICTS[0 if support >= SUPPORTED else 1 if support >= WEAK else 2],
        support=support,
        shares=SHARES,
        brightest=_hidden(FILLS, brightest),
        random=_hidden(("blur",), others),
        moved=_hidden(("mean",), others[FILLS.index("mean") :]),
        empty=dict(zip(FILLS, map(float, empty), strict=True)),
        deletion=_area(np.full_like(empty, whole), brightest[..., 0], empty),
        insertion=_area(empty, brightest[..., 1], np.full_like(empty, whole)),
    )


def _fill(picture: Tensor, fill: str) -> Tensor:
    if fill == "mean":
        return picture.mean((1, 2), keepdim=True).expand_as(picture)
    return _blur(picture, max(picture.shape[1:]) / BLUR)


def _blur(picture: Tensor, sigma: float) -> Tensor:
    """Blur by a Gaussian, rows and then columns: torchvision's runs both at once, which takes twenty times as long."""
    blurred = picture[:, None].float()
    for axis, side in enumerate(picture.shape[1:]):
        reach = min(round(2 * sigma), side - 1)  # reflection needs less than the side
        steps = torch.arange(-reach, reach + 1, device=picture.device)
        weights = torch.softmax(-(steps**2) / (2 * sigma**2), 0)
        edge, shape = ((0, 0, reach, reach), (1, 1, -1, 1)) if axis == 0 else ((reach, reach, 0, 0), (1, 1, 1, -1))
        blurred = functional.conv2d(functional.pad(blurred, edge, mode="reflect"), weights.view(shape))
    return blurred[:, 0].to(picture.dtype)


def _hidden(fills: Sequence[str], pairs: NDArray[np.float64]) -> Hidden:
    rows = [{fill: tuple(map(float, row)) for fill, row in zip(fills, pairs[..., way], strict=False)} for way in (0, 1)]
    return Hidden(*rows)


def _area(first: NDArray[np.float64], between: NDArray[np.float64], last: NDArray[np.float64]) -> float:
    """Integrate over the share of the cells, from none to all, between the shares linearly; the mean over fills."""
    curve = np.concatenate([first[:, None], between, last[:, None]], 1)
    steps = np.diff((0.0, *SHARES, 1.0))
    return float(((curve[:, 1:] + curve[:, :-1]) / 2 @ steps).mean())


def count_passes(item: Item) -> int:
    """Count the pictures that the model sees for the checks of one item, where it is explained."""
    return PASSES * item.options.maps if item.options.check else 0


def check_maps(
    explainer: Explainer, asked: Sequence[tuple[Tensor, Prediction]], most: int, deadline: Deadline
) -> list[Prediction | RequestError]:
    """Check every explanation of each prediction that has a map; the others' `check` stays None.

    Args:
        asked: the model's input of each picture, and what was predicted of it.
        most: pictures in one forward pass; those of several checks share it.
        deadline: looked at between passes.

    Returns:
        For each picture its prediction with checks, or a 503 where time ran out.
    """
    scores: dict[tuple[int, int], list[float]] = {}
    late: set[int] = set()
    for part in _group(_list_pictures(asked), most):
        if deadline.over:
            late |= {row for row, *_ in part}
            continue
        targets = [asked[row][1].explanations[turn].target for row, turn, _ in part]
        for (row, turn, _), score in zip(part, explainer.score([picture for *_, picture in part], targets), strict=True):
            scores.setdefault((row, turn), []).append(score)
    return [
        deadline.error("this picture's heatmaps were checked") if row in late else _with_checks(row, prediction, scores)
        for row, (_, prediction) in enumerate(asked)
    ]


def _list_pictures(asked: Sequence[tuple[Tensor, Prediction]]) -> Iterator[tuple[int, int, Tensor]]:
    """Make the pictures one by one, for those of a large input take much memory: row, turn of the target, picture."""
    for row, (picture, prediction) in enumerate(asked):
        for turn, explanation in enumerate(prediction.explanations):
            if not explanation.warnings:
                yield from ((row, turn, each) for each in perturb(picture, explanation.heatmap))


def _group(pictures: Iterator[tuple[int, int, Tensor]], most: int) -> Iterator[list[tuple[int, int, Tensor]]]:
    """Group pictures of one size that follow each other, up to `most` of them."""
    part: list[tuple[int, int, Tensor]] = []
    for each in pictures:
        if part and (len(part) == most or part[0][2].shape != each[2].shape):
            yield part
            part = []
        part.append(each)
    if part:
        yield part


def _with_checks(row: int, prediction: Prediction, scores: Mapping[tuple[int, int], Sequence[float]]) -> Prediction:
    checked = [
        replace(each, check=judge(each.probability, scores[row, turn], lowers=each.lowers)) if (row, turn) in scores else each
        for turn, each in enumerate(prediction.explanations)
    ]
    return replace(prediction, explanations=tuple(checked))
