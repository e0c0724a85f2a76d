"""Pictures are prepared as timm's transforms and transformers' image processors prepare them, or it is said how far apart they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from timm.data import create_transform  # type: ignore[attr-defined]
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from camserve.core.config import Config
from camserve.pictures.preprocess import Preprocess
from camserve.tools.packaging.models.libraries.preparation import Preparation, match_preparation
from camserve.tools.packaging.models.libraries.timm_models import match_timm_data
from camserve.tools.packaging.models.libraries.transformers_models import prepare_as_transformers

transformers = pytest.importorskip("transformers")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Wide, high, and with odd sides."""
    folder = Path(__file__).resolve().parents[5] / "examples"
    wide = Image.open(folder / "cat.jpg").convert("RGB")
    return [wide, wide.transpose(Image.Transpose.ROTATE_90), Image.open(folder / "coffee.jpg").convert("RGB").resize((335, 251))]


def measure(prepared: Preparation, theirs: Callable[[Image.Image], Tensor], pictures: list[Image.Image]) -> tuple[float, float]:
    """Mean and largest difference on photographs, in levels of 255."""
    ours = Preprocess(Config.from_mapping(prepared.keys))
    std = torch.tensor(prepared.keys["std"])[:, None, None] * 255
    apart = [((ours(each) - theirs(each)) * std).abs() for each in pictures]
    return max(float(each.mean()) for each in apart), max(float(each.max()) for each in apart)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("mode", "size", "share"),
    [("center", 224, 0.875), ("center", 96, 0.95), ("squash", 224, 0.9), ("border", 224, 0.9), ("border", 64, 1.0)],
)
def test_timms_transforms_are_matched_bit_for_bit(
    photographs: list[Image.Image], mode: str, size: int, share: float, interpolation: str
) -> None:
    """Both resample with Pillow."""
    data: dict[str, Any] = {"input_size": (3, size, size), "interpolation": interpolation, "mean": MEAN, "std": STD}
    data |= {"crop_pct": share, "crop_mode": mode}
    transform = create_transform(**data, is_training=False)
    prepared = match_timm_data(data, transform, "timm")
    assert (prepared.note, prepared.fault, prepared.flipped) == ("", "", False)
    assert measure(prepared, transform, photographs)[1] <= 1e-4
    assert (tuple(prepared.keys["mean"]), tuple(prepared.keys["std"])) == (MEAN, STD)


PROCESSORS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "both sides": ("ViTImageProcessor", {}, {"resize": (224, 224), "crop": None, "interpolation": "bilinear", "mean": [0.5] * 3}),
    "shorter side": ("CLIPImageProcessor", {}, {"resize": 224, "crop": 224, "interpolation": "bicubic"}),
    "wider than the crop": ("BitImageProcessor", {"size": {"shortest_edge": 256}}, {"resize": 256, "crop": (224, 224)}),
    "a share, small": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}, {"resize": 256, "crop": 224}),
    "a share, large": ("ConvNextImageProcessor", {}, {"resize": (384, 384), "crop": None}),
    "a ratio of its own": ("LevitImageProcessor", {}, {"resize": 256, "crop": 224}),
    "divided twice": ("EfficientNetImageProcessor", {"size": {"height": 96, "width": 96}}, {"std": [0.25] * 3}),
    "not normalised": ("ViTImageProcessor", {"do_normalize": False}, {"mean": [0.0] * 3, "std": [1.0] * 3}),
    "blue first": ("MobileViTImageProcessor", {}, {"resize": 224, "crop": (256, 256), "mean": [0.0] * 3}),
}


class Described:
    """A model's configuration."""

    num_channels = 3


@pytest.mark.parametrize("name", PROCESSORS)
def test_image_processors_are_matched_by_trial(photographs: list[Image.Image], name: str) -> None:
    """Whatever their configuration calls things; where they resample otherwise than Pillow, it is said."""
    kind, options, expected = PROCESSORS[name]
    processor = getattr(transformers, kind)(**options)
    prepared = prepare_as_transformers(processor, Described)
    assert prepared.fault == ""
    assert {key: prepared.keys[key] for key in expected} == expected
    assert prepared.flipped == (name == "blue first")

    def theirs(picture: Image.Image) -> Tensor:
        made: Tensor = processor(images=picture, return_tensors="pt")["pixel_values"][0]
        return made[[2, 1, 0]] if prepared.flipped else made

    mean, largest = measure(prepared, theirs, photographs)
    assert mean < 1.5
    assert largest <= 1.01 or "resamples otherwise than Pillow" in prepared.note or "one pixel beside" in prepared.note


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: to_tensor(p.resize((p.width // 2, p.height // 2))),
            "resizes and crops in a way that no keys express",
        ),
        (lambda p: torch.ones(1, 64, 64) * p.getpixel((0, 0))[0], "makes 1 channels of an RGB picture"),
        (lambda p: torch.ones(3, 64, 64), "does not make more of a brighter picture"),
        (lambda p: torch.ones(3, 64, 64) * sum(p.getpixel((0, 0))), "mixes the colours"),
        (lambda p: p.nonsense, "fails on a plain picture: AttributeError"),
    ],
)
def test_what_no_keys_express_is_said(make: Callable[[Any], Tensor], message: str) -> None:
    """So that the user says how, or knows that nothing does."""
    geometries: list[dict[str, Any]] = [{"resize": 64, "crop": 64}, {"resize": [64, 64], "crop": None}]
    prepared = match_preparation(make, geometries, "It", interpolation="bilinear", declared=((), ()))
    assert f"It {message}" in prepared.fault


def test_a_crop_one_pixel_beside_is_said() -> None:
    """Where as many pixels cannot be cut off on either side, libraries round in two ways."""
    ours = Preprocess(Config.from_mapping({"resize": 66, "crop": None, "mean": [0] * 3, "std": [1] * 3}))

    def theirs(picture: Image.Image) -> Tensor:
        whole = ours(picture)
        top, left = (whole.shape[1] - 64) // 2, (whole.shape[2] - 64) // 2
        return whole[:, top : top + 64, left : left + 64]

    prepared = match_preparation(theirs, [{"resize": 66, "crop": 64}], "It", interpolation="bilinear", declared=((), ()))
    assert prepared.fault == ""
    assert prepared.note == "It crops one pixel beside, where as many cannot be cut off on either side"
