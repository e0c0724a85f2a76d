"""The methods against literal equations, by hand, by their properties, and against pytorch-grad-cam."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
import torch
from tests.support.comparison import oracle
from torch import Tensor, nn

from camserve.core import config
from camserve.explain import methods
from camserve.explain.methods import CONTRAST_CLASSES, METHODS, scale_maps

pytestmark = pytest.mark.numeric

NAMES = pytest.mark.parametrize("name", list(METHODS))
NONE: Mapping[str, bool] = MappingProxyType({})
SEEDS = pytest.mark.parametrize("seed", range(5))


def scene(seed: int = 0, rows: int = 2, *, signed: bool = False, pooled: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Activations `[rows, 6, 4, 5]`, gradients and three contrast classes' gradients; `pooled`: gradients equal at all positions."""
    random = torch.Generator().manual_seed(seed)
    activations = torch.randn(rows, 6, 4, 5, generator=random)
    positions = (1, 1) if pooled else (4, 5)
    gradients = torch.randn(rows, 6, *positions, generator=random) / 20
    contrasts = torch.randn(rows, 3, 6, *positions, generator=random) / 20
    return (activations if signed else activations.relu()), gradients, contrasts


def mapped(name: str, activations: Tensor, gradients: Tensor, contrasts: Tensor) -> Tensor:
    """The method's map, with contrast classes where it takes them."""
    method = METHODS[name]
    return method.function(activations, gradients, contrasts) if method.contrasts else method.function(activations, gradients)


def expected(name: str, activations: Tensor, gradients: Tensor, contrasts: Tensor, options: Mapping[str, bool] = NONE) -> Tensor:
    """The oracle's maps."""
    rows = zip(activations.double().numpy(), gradients.double().numpy(), contrasts.double().numpy(), strict=True)
    function = oracle.MAPS[name]
    return torch.tensor(
        np.stack([function(a, g, r) if METHODS[name].contrasts else function(a, g, **options) for a, g, r in rows])
    )


def assert_close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Each map to within `tolerance` of the wanted map's maximum."""
    assert found.dtype == torch.float32
    assert found.shape == wanted.shape
    error = (found.double() - wanted.double()).abs().amax((1, 2))
    assert bool((error <= tolerance * wanted.double().amax((1, 2))).all()), error


@NAMES
@SEEDS
def test_equals_its_equation(name: str, seed: int) -> None:
    """Every method gives its paper's map for rectified activations."""
    given = scene(seed)
    assert_close(mapped(name, *given), expected(name, *given))


@NAMES
@SEEDS
def test_equals_its_equation_for_signed_activations(name: str, seed: int) -> None:
    """Signed activations: the paper's map too, Grad-CAM++ with the rectified sum."""
    given = scene(seed, signed=True)
    options = {"rectify_sum": True} if name == "gradcam++" else {}
    assert_close(mapped(name, *given), expected(name, *given, options=options), 1e-4 if name == "xgradcam" else 1e-5)


def test_gradcam_plus_plus_has_no_pole() -> None:
    """Where equation 19's denominator is 0, by a signed sum or by a negative gradient, the map stays finite and small."""
    activations = torch.tensor([[[[3.0, -7.0]]]])
    gradients = torch.full((1, 1, 1, 2), 0.5)
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        oracle.gradcam_plus_plus(activations[0], gradients[0])
    # S = 3: two positions of 0.5 / (2 + 1.5), times 3
    torch.testing.assert_close(methods.gradcam_plus_plus(activations, gradients), torch.tensor([[[6 / 7, 0.0]]]))
    # S = 4: -0.5 adds nothing, although 2 - 0.5 * 4 = 0; 1 / (2 + 4) for the other position
    found = methods.gradcam_plus_plus(torch.tensor([[[[3.0, 1.0]]]]), torch.tensor([[[[-0.5, 1.0]]]]))
    torch.testing.assert_close(found, torch.tensor([[[3 / 6, 1 / 6]]]))


ACTIVATIONS = torch.tensor([[[[1.0, 2.0], [3.0, 0.0]], [[0.0, 0.0], [1.0, 4.0]], [[1.0, 1.0], [0.0, 0.0]]]])
GRADIENTS = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]], [[-1.0, -1.0], [-1.0, -1.0]], [[1.0, 0.0], [-2.0, 0.5]]]])
RIVAL_GRADIENTS = torch.tensor([[[0.1, -1.0, 0.0], [0.3, -1.0, -0.25]]])[..., None, None]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        # w = 4 * 0.5 / (2 + 0.5 * 6) = 0.4;  0;  1 / (2 + 1 * 2) + 0.5 / (2 + 0.5 * 2) = 5 / 12
        ("gradcam++", [[0.4 + 5 / 12, 0.8 + 5 / 12], [1.2, 0.0]]),
        # w = 0.5;  -1;  (1 + 0 - 2 + 0.5) / 4 = -0.125
        ("gradcam", [[0.375, 0.875], [0.5, 0.0]]),
        # 0.5 + 1 * 1;  1 + 0 * 1;  1.5 - 1;  -4
        ("hirescam", [[1.5, 1.0], [0.5, 0.0]]),
        # as above, but the second channel's negative gradients count as 0
        ("layercam", [[1.5, 1.0], [1.5, 0.0]]),
        # w = 0.5;  -1;  (1 * 1 + 0 * 1) / 2 = 0.5
        ("xgradcam", [[1.0, 1.5], [0.5, 0.0]]),
        # the contrasts' mean is 0.2, -1, -0.125, so w = 0.5 - 0.2;  0;  0
        ("contrast", [[0.3, 0.6], [0.9, 0.0]]),
    ],
)
def test_by_hand(name: str, wanted: list[list[float]]) -> None:
    """Two by two positions, three channels: numbers that can be redone on paper."""
    found = mapped(name, ACTIVATIONS, GRADIENTS, RIVAL_GRADIENTS)
    torch.testing.assert_close(found, torch.tensor([wanted]), rtol=1e-6, atol=1e-7)


def test_by_hand_with_a_gradient_for_all_positions() -> None:
    """Four by four ones and one gradient for all: 16 terms of 1 / (2 + 16) in Grad-CAM++, weight 1 in the others."""
    activations, gradients = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1)
    found = {name: mapped(name, activations, gradients, torch.zeros(1, 1, 1, 1, 1)) for name in METHODS}
    assert {name: values.unique().tolist() for name, values in found.items()} == {
        name: [pytest.approx(16 / 18 if name == "gradcam++" else 1)] for name in METHODS
    }


@NAMES
@SEEDS
@pytest.mark.parametrize("signed", [False, True])
def test_pooled_gradients_stand_for_expanded_ones(name: str, seed: int, signed: bool) -> None:
    """Gradients `[M, C, 1, 1]` give the map of the same gradients expanded."""
    activations, gradients, contrasts = scene(seed, signed=signed, pooled=True)
    expanded = mapped(name, activations, gradients.expand_as(activations), contrasts.expand(-1, -1, -1, 4, 5))
    assert_close(mapped(name, activations, gradients, contrasts), expanded)


@NAMES
@SEEDS
def test_rescaling_channels_changes_nothing(name: str, seed: int) -> None:
    """Activations times c and gradients over c, with c of each channel's own, give the same map."""
    activations, gradients, contrasts = scene(seed)
    scale = torch.logspace(-3, 3, 6)[:, None, None]
    assert_close(
        mapped(name, activations * scale, gradients / scale, contrasts / scale), mapped(name, activations, gradients, contrasts)
    )


@NAMES
def test_order_of_channels_changes_nothing(name: str) -> None:
    """Permuted channels give the same map."""
    activations, gradients, contrasts = scene()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    found = mapped(name, activations[:, order], gradients[:, order], contrasts[:, :, order])
    assert_close(found, mapped(name, activations, gradients, contrasts))


@NAMES
def test_flips_with_its_input(name: str) -> None:
    """Mirrored activations and gradients give the mirrored map."""
    found = mapped(name, *(tensor.flip(-1) for tensor in scene()))
    assert_close(found, mapped(name, *scene()).flip(-1))


@NAMES
def test_a_batch_changes_nothing(name: str) -> None:
    """A row's map is the same alone and among seven others."""
    activations, gradients, contrasts = scene(rows=8)
    together = mapped(name, activations, gradients, contrasts)
    alone = torch.cat(
        [mapped(name, *(tensor[row : row + 1] for tensor in (activations, gradients, contrasts))) for row in range(8)]
    )
    assert_close(alone, together)


@NAMES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_upcast(name: str, dtype: torch.dtype) -> None:
    """Half precision tensors give the map of the same numbers in float32, exactly, also where their squares underflow."""
    activations, gradients, contrasts = (tensor.to(dtype) for tensor in scene())
    tiny = [(activations, gradients, contrasts), (activations, gradients * 1e-4, contrasts * 1e-4)]
    for given in tiny:
        found = mapped(name, *given)
        assert torch.equal(found, mapped(name, *(tensor.float() for tensor in given)))
        assert bool((found.amax((1, 2)) > 0).all())


@NAMES
def test_autocast_changes_nothing(name: str) -> None:
    """Inside a caller's autocast the map is the same, bit for bit, and float32."""
    wanted = mapped(name, *scene())
    with torch.autocast("cpu", torch.bfloat16):
        found = mapped(name, *scene())
    assert torch.equal(found, wanted)


@NAMES
@pytest.mark.gpu
def test_a_gpu_changes_nothing(name: str) -> None:
    """On a GPU with TF32 allowed, as TorchServe allows it, the map is the CPU's."""
    random = torch.Generator().manual_seed(0)
    activations = torch.randn(4, 512, 7, 7, generator=random).relu()
    gradients, contrasts = torch.randn(4, 512, 1, 1, generator=random), torch.randn(4, 5, 512, 1, 1, generator=random)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = mapped(name, activations.cuda(), gradients.cuda(), contrasts.cuda()).cpu()
    finally:
        torch.set_float32_matmul_precision(before)
    assert_close(found, mapped(name, activations, gradients, contrasts))


@NAMES
def test_inputs_are_left_alone(name: str) -> None:
    """No method writes to its arguments."""
    given = scene(signed=True)
    mapped(name, *given)
    assert all(torch.equal(tensor, again) for tensor, again in zip(given, scene(signed=True), strict=True))


@NAMES
@pytest.mark.parametrize("case", ["dead layer", "dead gradient", "all gradients negative"])
def test_no_evidence_is_a_zero_map(name: str, case: str) -> None:
    """No activation, no gradient, or only evidence against: a map of zeros, never NaN."""
    activations, gradients, contrasts = scene()
    if case == "dead layer":
        activations = torch.zeros_like(activations)
    elif case == "dead gradient":
        gradients, contrasts = torch.zeros_like(gradients), torch.zeros_like(contrasts)
    else:
        gradients, contrasts = -gradients.abs() - 0.1, contrasts.abs()
    assert torch.equal(mapped(name, activations, gradients, contrasts), torch.zeros(2, 4, 5))


def test_xgradcam_weighs_a_channel_that_sums_to_zero_with_zero() -> None:
    """A channel that cancels to 0 is left out, one that sums to 1e-30 is not."""
    activations = torch.tensor([[[[1.0, -1.0]], [[1e-30, 0.0]]]])
    found = methods.xgradcam(activations, torch.tensor([[[[5.0, 3.0]], [[2.0, 7.0]]]]))
    torch.testing.assert_close(found, torch.tensor([[[2e-30, 0.0]]]), rtol=1e-6, atol=0)


@SEEDS
def test_contrast_ignores_what_all_classes_share(seed: int) -> None:
    """A gradient that is added to the target's and to all its contrast classes' changes nothing."""
    activations, gradients, contrasts = scene(seed)
    shared = scene(seed + 100)[1]
    assert_close(
        methods.finer_cam(activations, gradients + shared, contrasts + shared[:, None]),
        methods.finer_cam(activations, gradients, contrasts),
    )


def test_contrast_without_contrast_classes_is_gradcam() -> None:
    """A model of one class: no contrast class, and Grad-CAM's map."""
    activations, gradients, contrasts = scene()
    assert_close(methods.finer_cam(activations, gradients, contrasts[:, :0]), methods.gradcam(activations, gradients))


def test_methods_are_those_of_the_configuration() -> None:
    """Every configurable method exists, in that order; each names its paper and its use; only `contrast` takes contrast classes."""
    assert tuple(METHODS) == config.METHODS
    assert all(name == method.name and method.paper and "\n" not in method.use for name, method in METHODS.items())
    assert [name for name, method in METHODS.items() if method.contrasts] == ["contrast"]
    assert CONTRAST_CLASSES == 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        METHODS["gradcam"].name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        METHODS["gradcam"] = METHODS["contrast"]  # type: ignore[index]


class Small(nn.Module):
    """A ReLU network with a pooled linear head; `scale` multiplies its logits."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU())
        self.classes = nn.Linear(12, 4)
        self.scale = scale

    def head(self, features: Tensor) -> Tensor:
        """Logits `[N, 4]`."""
        return self.scale * self.classes(features.mean((2, 3)))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits `[N, 4]`."""
        return self.head(self.trunk(pictures))


def captured(model: Small, pictures: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Activations and gradients of the trunk's output."""
    features = model.trunk(pictures).detach().requires_grad_()
    (gradients,) = torch.autograd.grad(model.head(features)[:, target].sum(), features)
    return features.detach(), gradients


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_differs_from_pytorch_grad_cam_by_its_epsilon_only(scale: float) -> None:
    """pytorch-grad-cam's own picture is equation 19's with 1e-6 in the denominator; ours differs by what that makes."""
    import pytorch_grad_cam  # seconds, which each worker would spend to collect these tests
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, pictures = Small(scale), torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    with pytorch_grad_cam.GradCAMPlusPlus(model, [model.trunk[3]]) as theirs:
        theirs_drawn = theirs(pictures, [ClassifierOutputTarget(2)] * 3)
    activations, gradients = captured(model, pictures, 2)
    ours = methods.gradcam_plus_plus(activations, gradients).numpy()
    pairs = list(zip(activations.numpy(), gradients.numpy(), strict=True))
    with_epsilon = np.stack([oracle.gradcam_plus_plus(a, g, epsilon=1e-6) for a, g in pairs])

    def drawn(maps: np.ndarray) -> np.ndarray:
        scaled = scale_cam_image(np.float32(maps), (20, 20))
        return np.asarray(scale_cam_image(np.maximum(scaled, 0)))

    assert np.abs(theirs_drawn - drawn(with_epsilon)).max() <= 1e-5
    by_epsilon = np.abs(drawn(with_epsilon) - drawn(ours)).max()
    assert np.abs(theirs_drawn - drawn(ours)).max() <= by_epsilon + 1e-5
    assert by_epsilon > 0.1 if scale == 1.0 else by_epsilon < 1e-4


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("gradcam", "GradCAM"), ("hirescam", "HiResCAM"), ("layercam", "LayerCAM"), ("xgradcam", "XGradCAM")],
)
def test_equals_pytorch_grad_cam(name: str, theirs: str) -> None:
    """The other methods' maps are pytorch-grad-cam's."""
    import pytorch_grad_cam

    model, pictures = Small(1.0), torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    activations, gradients = captured(model, pictures, 2)
    with getattr(pytorch_grad_cam, theirs)(model, [model.trunk[3]]) as extractor:
        image = extractor.get_cam_image(pictures, model.trunk[3], [], activations.numpy(), gradients.numpy(), False)
    assert_close(METHODS[name].function(activations, gradients), torch.tensor(np.maximum(image, 0)))


def one(values: object) -> tuple[np.ndarray, tuple[float, float] | None, tuple[str, ...]]:
    """The heatmap, range and warnings of one map."""
    scaled, ranges, warnings = scale_maps(torch.tensor([values], dtype=torch.float32))
    assert scaled.dtype == np.float32
    return scaled[0], ranges[0], warnings[0]


def test_heatmap_by_hand() -> None:
    """(map - min) / (max - min), with the map's own range beside it."""
    scaled, limits, warnings = one([[1, 2], [5, 3]])
    assert scaled.tolist() == [[0, 0.25], [1, 0.5]]
    assert (limits, warnings) == ((1.0, 5.0), ())


@pytest.mark.parametrize("high", [1e-45, 1e-40, 1e-30, 1.0, 1e30, 3.4e38])
def test_heatmap_is_relative(high: float) -> None:
    """The smallest subnormal and the largest numbers scale as 1 does; the range is kept exactly."""
    values = torch.tensor([0.0, 1.0, 0.0, 1.0]).mul(torch.tensor(high)).reshape(2, 2).tolist()
    scaled, limits, warnings = one(values)
    assert scaled.tolist() == [[0, 1], [0, 1]]
    assert (limits, warnings) == ((0.0, float(np.float32(high))), ())


def test_heatmap_of_subnormal_steps() -> None:
    """Steps between subnormal numbers keep their proportions."""
    step = 2.0**-149
    assert one([[step, 2 * step], [5 * step, 3 * step]])[0].tolist() == [[0, 0.25], [1, 0.5]]


@pytest.mark.parametrize(
    ("values", "limits", "warning"),
    [
        ([[0, 0], [0, 0]], (0.0, 0.0), "zero"),
        ([[2, 2], [2, 2]], (2.0, 2.0), "constant"),
        ([[1e-30, 1e-30]], (pytest.approx(1e-30),) * 2, "constant"),
        ([[3e38, 3e38]], (pytest.approx(3e38),) * 2, "constant"),
        ([[2.0**21 - 1, 2.0**21]], (2.0**21 - 1, 2.0**21), "constant"),  # differs by 4.8e-7 of its maximum
        ([[0, float("nan")]], None, "not_finite"),
        ([[0, float("inf")]], None, "not_finite"),
        ([[float("nan"), float("inf")]], None, "not_finite"),
    ],
)
def test_degenerate_maps_are_zeros_with_a_warning(values: object, limits: object, warning: str) -> None:
    """Zero, constant and not finite maps: zeros, the range where there is one, and which it was."""
    scaled, found, warnings = one(values)
    assert not scaled.any()
    assert found == limits
    assert warnings == (warning,)


def test_a_map_that_barely_varies_is_scaled() -> None:
    """A spread of 1.9e-6 of the maximum is not constant."""
    scaled, _, warnings = one([[2.0**19 - 1, 2.0**19]])
    assert (scaled.tolist(), warnings) == ([[0, 1]], ())


def test_a_degenerate_map_leaves_its_neighbours_alone() -> None:
    """Each map of a batch is scaled by itself, whatever the others are."""
    maps = torch.tensor(
        [[[1.0, 2.0, 5.0]], [[0.0, 0.0, 0.0]], [[7.0, 7.0, 7.0]], [[0.0, float("nan"), 1.0]], [[0.0, 1e-20, 4e-20]]]
    )
    scaled, ranges, warnings = scale_maps(maps)
    assert warnings == [(), ("zero",), ("constant",), ("not_finite",), ()]
    assert ranges == [(1, 5), (0, 0), (7, 7), None, (0, pytest.approx(4e-20))]
    np.testing.assert_allclose(scaled[:, 0], np.array([[0, 0.25, 1], [0] * 3, [0] * 3, [0] * 3, [0, 0.25, 1]]), rtol=1e-6)


@SEEDS
def test_heatmap_equals_the_oracle(seed: int) -> None:
    """Random maps, and maps with a graph behind them."""
    maps = methods.gradcam(*scene(seed)[:2]).requires_grad_()
    wanted = np.stack([oracle.heatmap(found) for found in maps.detach().numpy()])
    np.testing.assert_allclose(scale_maps(maps)[0], wanted, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_heatmaps_of_other_types(dtype: torch.dtype) -> None:
    """Maps of another floating type scale alike, to float32."""
    scaled = scale_maps(torch.tensor([[[1.0, 2.0, 5.0]]], dtype=dtype))[0]
    assert scaled.dtype == np.float32
    assert scaled.tolist() == [[[0, 0.25, 1]]]


def test_heatmaps_of_none() -> None:
    """No maps, no heatmaps."""
    scaled, ranges, warnings = scale_maps(torch.zeros(0, 7, 7))
    assert (scaled.shape, ranges, warnings) == ((0, 7, 7), [], [])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_sums_that_cancel_before_a_norm_are_no_map(scale: float) -> None:
    """A function of a cell's norm over the channels does not change with the cell's scale: HiResCAM's sums are rounding there,
    and a map of rounding would be scaled up to look like any other."""
    torch.manual_seed(0)
    activations = (scale * torch.randn(2, 64, 4, 4)).requires_grad_()
    normed = nn.functional.layer_norm(activations.movedim(1, -1), (64,), eps=0.0)
    (gradients,) = torch.autograd.grad((normed @ torch.randn(64)).sigmoid().sum(), [activations])
    maps = methods.hirescam(activations.detach(), gradients)
    assert maps.max() == 0
    assert methods.scale_maps(maps)[2] == [("zero",)] * 2
    broken = methods.hirescam(torch.full((1, 2, 1, 1), math.nan), torch.ones(1, 2, 1, 1))
    assert methods.scale_maps(broken)[2] == [("not_finite",)]
    assert methods.gradcam(activations.detach(), gradients).max() > 0
