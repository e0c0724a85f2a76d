"""The formulas of class activation maps: activations and gradients of a layer in, maps out. No model and no hooks here.

Shapes, the same for every method:
    activations: `[M, C, h, w]`, a row for each pair of picture and target, of any floating type.
    gradients: d logit / d activations, `[M, C, h, w]`; or `[M, C, 1, 1]` where they are equal at all positions, as under
        global average pooling. That form stands for the expanded one and gives the same map.
    map: `[M, h, w]`, float32, no value below 0.

Everything is upcast to float32 first. Sums over channels are a product and a sum, not a matrix product: those follow the
host's settings (TF32 on a GPU, autocast), which cost up to three decimal digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from camserve.core.config import REFINECAM, Config
from camserve.core.errors import ConfigError
from camserve.core.text import join_names
from camserve.explain.degenerate import find_degenerate

ROUNDING = 1e-5
"""Sums below so many times the sum of their terms' sizes are what float32 rounds, in the terms and in their gradients."""

CONTRAST_CLASSES = 5
"""How many contrast classes the contrast method compares a target with, where the model has as many other classes."""


def gradcam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++ of Chattopadhay et al. 2018 (arXiv 1710.11063) for a target that is a logit.

    Equation 19 there reads `alpha_ij = g_ij^2 / (2 g_ij^2 + S g_ij^3)` with `S = sum_ab A_ab` of the channel, and the map is
    `relu(sum_k w_k A_k)` with `w_k = sum_ij alpha_ij relu(g_ij)`. Dividing by `g_ij^2` leaves

        w_k = sum_ij r_ij / (2 + r_ij S),   r = relu(g)

    because positions with `g_ij <= 0` add nothing to `w_k`. It needs no epsilon, and neither under- nor overflows with the
    powers of g. After a ReLU this is equation 19. Signed activations (GELU, SiLU, normalisation) can make `S` negative, and
    equation 19 then has a pole at `g S = -2`; so `S = sum_ab relu(A_ab)` here, which is the same where there are no
    negative activations, and has no pole.
    """
    activations, gradients = activations.float(), gradients.float()
    mass = activations.relu().sum((2, 3), keepdim=True)
    rising = gradients.relu()
    return _weighted(_over_positions(rising / (2 + rising * mass), activations), activations)


def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM of Selvaraju et al. 2017 (arXiv 1610.02391), equations 1 and 2: `w_k` is the mean gradient of the channel."""
    activations, gradients = activations.float(), gradients.float()
    return _weighted(gradients.mean((2, 3)), activations)


def hirescam(activations: Tensor, gradients: Tensor) -> Tensor:
    """HiResCAM of Draelos and Carin 2020 (arXiv 2011.08891): `relu(sum_k g_k A_k)`, the product taken at each position.

    Where all products cancel, as before a norm over the channels, the sum is rounding, and the map is 0.
    """
    products = gradients.float() * activations.float()
    maps, most = products.sum(1), products.abs().sum(1).amax((1, 2), keepdim=True)
    return torch.where(maps.abs().amax((1, 2), keepdim=True) > ROUNDING * most, maps, 0 * maps).relu()


def layercam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM of Jiang et al. 2021 (IEEE TIP 30): `relu(sum_k relu(g_k) A_k)`, the product taken at each position."""
    activations, gradients = activations.float(), gradients.float()
    return (gradients.relu() * activations).sum(1).relu()


def xgradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """XGrad-CAM of Fu et al. 2020 (arXiv 2008.02312): `w_k = sum_ij g_ij A_ij / sum_ij A_ij`.

    A channel whose activations sum to exactly 0 gets weight 0, at any scale of the others. Where activations may be negative,
    one whose sum is nearly 0 can outweigh all others: that is the formula's, whose authors take it behind a ReLU.
    """
    activations, gradients = activations.float(), gradients.float()
    mass = activations.sum((2, 3))
    product = (gradients * activations).sum((2, 3))
    empty = mass == 0
    return _weighted((product / mass.masked_fill(empty, 1)).masked_fill(empty, 0), activations)


def finer_cam(activations: Tensor, gradients: Tensor, contrasts: Tensor) -> Tensor:
    """Finer-CAM of Zhang et al. 2025 (arXiv 2501.11309) over Grad-CAM: what speaks for the target and not for classes like it.

    Grad-CAM of the difference `y_target - gamma y_contrast` of two logits, averaged over the contrast classes before it is
    rectified, with `gamma = 1`: evidence that all of them share cancels. Without any (`R = 0`) this is Grad-CAM.

    Args:
        contrasts: gradients of the contrast classes' logits, `[M, R, C, h, w]` or `[M, R, C, 1, 1]`.
    """
    activations, gradients = activations.float(), gradients.float()
    shared = contrasts.mean((3, 4), dtype=torch.float32).sum(1) / max(1, contrasts.shape[1])
    return _weighted(gradients.mean((2, 3)) - shared, activations)


def refine(maps: Sequence[Tensor]) -> Tensor:
    """RefineCAM of Domeniconi et al. 2026 (arXiv 2605.14641): the product of several layers' maps, each over its maximum.

    A cell is bright where it is in all of them: late maps say what speaks for the class, early ones where its edges are. Each is
    drawn bilinearly (half-pixel centres) on the finest grid before. One that is 0 everywhere makes the product 0, and one that is
    the same everywhere changes nothing. (The authors' code subtracts each map's least value first, which is mostly 0.)

    Args:
        maps: one `[M, h, w]` for each layer, each over the same rectangle of the picture.

    Returns:
        `[M, h, w]`, of as many rows and columns as any has at most, 0 to 1.
    """
    size = max(each.shape[1] for each in maps), max(each.shape[2] for each in maps)
    product = torch.ones_like(maps[0][:, :1, :1], dtype=torch.float32)
    for each in maps:
        high = each.float().amax((1, 2), keepdim=True)
        shares = torch.where(high > 0, each.float() / high, each.float())
        drawn = shares if shares.shape[1:] == size else functional.interpolate(shares[None], size, mode="bilinear")[0]
        product = product * drawn
    return product


def _over_positions(values: Tensor, activations: Tensor) -> Tensor:
    """Return the sum `[M, C]` of `values` (`[M, C, h|1, w|1]`) over all positions of `activations`."""
    return values.sum((2, 3)) * (activations[0, 0].numel() / values[0, 0].numel())


def _weighted(weights: Tensor, activations: Tensor) -> Tensor:
    """Return `relu(sum_k w_k A_k)`, `[M, h, w]`, of weights `[M, C]`."""
    return (weights[:, :, None, None] * activations).sum(1).relu()


@dataclass(frozen=True)
class Method:
    """A class activation mapping method.

    Attributes:
        name: as clients and the configuration write it.
        function: `(activations, gradients) -> map`; where `contrasts`, `(activations, gradients, contrasts) -> map`.
        paper: who published it, and where.
        use: when to choose it, in one line.
        contrasts: whether it compares the target with other classes.
    """

    name: str
    function: Callable[..., Tensor]
    paper: str
    use: str
    contrasts: bool = False


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(
                "gradcam++",
                gradcam_plus_plus,
                "Chattopadhay, Sarkar, Howlader and Balasubramanian, WACV 2018, arXiv 1710.11063",
                "the default: covers whole objects, and several of one class; tells classes apart only weakly",
            ),
            Method(
                "gradcam",
                gradcam,
                "Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra, ICCV 2017, arXiv 1610.02391",
                "where the map must tell classes apart: evidence against the target counts too",
            ),
            Method(
                "hirescam",
                hirescam,
                "Draelos and Carin, 2020, arXiv 2011.08891",
                "for layers below the last, and where only positions that raised the score may light up",
            ),
            Method(
                "layercam",
                layercam,
                "Jiang, Zhang, Hou, Cheng and Wei, IEEE Transactions on Image Processing 30, 2021",
                "for early layers of high resolution: fine detail",
            ),
            Method(
                "xgradcam",
                xgradcam,
                "Fu, Hu, Dong, Guo, Gao and Li, BMVC 2020, arXiv 2008.02312",
                "the map's parts come closest to adding up to the score, behind a ReLU; Grad-CAM where the head pools evenly",
            ),
            Method(
                "contrast",
                finer_cam,
                "Zhang, Gu, Chowdhury, Mai, Carlyn, Berger-Wolf, Su and Chao, CVPR 2025, arXiv 2501.11309",
                f"why this class and not its {CONTRAST_CLASSES} nearest rivals: shared evidence cancels",
                contrasts=True,
            ),
        )
    }
)
"""The methods that take one layer, by name, in the order of `config.METHODS`."""

REFINE = Method(
    REFINECAM,
    refine,
    "Domeniconi, Stramiglio, Lombardi and Salti, 2026, arXiv 2605.14641",
    "fine maps that tell classes apart: the product of several layers' maps, LayerCAM's and at the last layer those of contrast",
    contrasts=True,
)
"""The method that takes several layers: its function takes their maps, those of `list_methods`."""

EARLIER, LAST = "layercam", "contrast"
"""The methods whose maps RefineCAM multiplies: at the earlier layers, and at the last one that runs. Of those that
`benchmarks/fidelity/sharper.py` measured these point best."""


def find_method(name: str) -> Method:
    """Return a method by its name."""
    return REFINE if name == REFINECAM else METHODS[name]


def list_methods(name: str, layers: int) -> tuple[Method, ...]:
    """Return the methods whose maps a method takes at each of so many layers, in the order in which they run."""
    if name != REFINECAM:
        return (METHODS[name],) * layers
    return (*(METHODS[EARLIER],) * (layers - 1), METHODS[LAST])


METHOD_BY_CELL, METHOD_WITHOUT = "hirescam", "gradcam"
"""The defaults where neither layer nor method is given, and a channel's gradient differs from cell to cell at the default layer:
the first, and the second where the first's products cancel there. Grad-CAM++ gives each channel one weight for all cells, of
positive gradients alone; by `benchmarks/layers` its maps tell two objects apart hardly there, and those of these do."""


def choose_method(config: Config, uneven: str, cancels: bool) -> str:
    """Choose the method where neither layer nor method is given.

    Args:
        config: what was asked for.
        uneven: why a channel's gradient differs from cell to cell at the default layer, "" where it does not (`Backend.uneven`).
        cancels: whether activation times gradient adds up to nothing there (`Backend.cancels`).
    """
    if not uneven or config.layers or "method" in config.given:
        return config.method
    return METHOD_WITHOUT if cancels else METHOD_BY_CELL


def check_method(config: Config, layers: Sequence[str]) -> None:
    """Check that there are as many layers as the method takes.

    Args:
        config: has the method.
        layers: those that are served, and of which a trial tells where their cells lie.

    Raises:
        ConfigError: it takes several, and there are fewer than two.
    """
    if config.method == REFINECAM and len(layers) < 2:
        way = "give layers of two or three stages, such as the last of each size of map (inspect_model lists them)"
        got = join_names(layers) or "none whose cells a trial places"
        raise ConfigError(f"explain: method: {REFINECAM} takes two layers or more together, got {got}; {way}")


def draw_with(method: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what makes maps by a method, or by the one that is measured in its place."""
    return METHODS[choose_measured(method)].function


def choose_measured(method: str) -> str:
    """Choose by which method maps are measured and compared: the default in place of one that takes a pass for each rival."""
    return "gradcam++" if find_method(method).contrasts else method


Heatmaps = tuple[NDArray[np.float32], list[tuple[float, float] | None], list[tuple[str, ...]]]


def scale_maps(maps: Tensor) -> Heatmaps:
    """Scale each map to [0, 1] by its own range, `(map - min) / (max - min)`, in one transfer to the CPU.

    The arithmetic is float64: the smallest subnormal and the largest finite float32 scale as 1 does.

    Args:
        maps: `[M, h, w]`, rectified.

    Returns:
        The heatmaps `[M, h, w]`, float32; each map's (min, max), None where that is not finite; and each map's warnings. A
        heatmap with a warning is zeros: `zero` (the map is 0 everywhere), `constant` (its values differ by at most `CONSTANT` of
        its maximum), or `not_finite`.
    """
    values = maps.detach().cpu().double().numpy()
    reasons = find_degenerate(values)
    finite = np.array([reason != "not_finite" for reason in reasons], bool)
    values = np.where(finite[:, None, None], values, 0.0)
    low, high = values.min((1, 2)), values.max((1, 2))
    flat = np.array([bool(reason) for reason in reasons], bool)
    scaled = (values - low[:, None, None]) / np.where(flat, 1.0, high - low)[:, None, None]
    scaled[flat] = 0.0
    ranges = [(float(a), float(b)) if good else None for a, b, good in zip(low, high, finite, strict=True)]
    return scaled.astype(np.float32), ranges, [(reason,) if reason else () for reason in reasons]
