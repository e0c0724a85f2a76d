"""A picture to the model's input, against torchvision's transforms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from camserve.core.config import INTERPOLATIONS, Config, Size
from camserve.core.errors import RequestError
from camserve.core.geometry import Rect, input_size
from camserve.pictures.preprocess import Preprocess

SIZES = st.one_of(st.none(), st.integers(1, 48), st.tuples(st.integers(1, 48), st.integers(1, 48)))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """The hardest picture to resample: every pixel is random."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def torchvisions(config: Config) -> Callable[[Image.Image], torch.Tensor]:
    """The transforms that the configuration stands for."""
    steps: list[object] = [transforms.ToTensor(), transforms.Normalize(config.mean, config.std)]
    if config.crop is not None:
        steps.insert(0, transforms.CenterCrop(config.crop))
    if config.resize is not None:
        mode = transforms.InterpolationMode(config.interpolation)
        steps.insert(0, transforms.Resize(config.resize, mode))
    composed: Callable[[Image.Image], torch.Tensor] = transforms.Compose(steps)
    return composed


def assert_same(picture: Image.Image, config: Config) -> None:
    """Bit for bit torchvision's tensor, and of the size that the geometry says."""
    tensor = Preprocess(config)(picture)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert tuple(tensor.shape[1:]) == input_size(*picture.size, config.resize, config.crop)
    assert torch.equal(tensor, torchvisions(config)(picture))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(451, 300), (97, 140), (256, 256), (1, 1), (3, 100)])
def test_the_default_preprocessing_is_torchvisions(interpolation: str, size: tuple[int, int]) -> None:
    """Every interpolation, down and up, square, tiny and narrow: the same floats as torchvision's transforms give."""
    assert_same(noise(*size), Config(interpolation=interpolation))


@settings(max_examples=150, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 60), SIZES, SIZES, st.sampled_from(INTERPOLATIONS))
def test_any_resize_and_crop_is_torchvisions(width: int, height: int, resize: Size, crop: Size, interpolation: str) -> None:
    """Resize and crop as an int, a pair or none, with padding on any side: the same floats."""
    assert_same(noise(width, height), Config(resize=resize, crop=crop, interpolation=interpolation))


@pytest.mark.parametrize("std", [(1.0, 1.0, 1.0), (1e-3, 0.5, 200.0)])
def test_any_mean_and_std_is_torchvisions(std: tuple[float, float, float]) -> None:
    """All 256 values of each channel, also where the result is large."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    config = Config(resize=None, crop=None, mean=(-0.3, 0.123456789, 7.0), std=std)
    assert_same(Image.fromarray(levels), config)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("size", "crop"), [((451, 300), 224), ((300, 451), (100, 230)), ((20, 150), (40, 301)), ((7, 90), 60)])
def test_a_picture_that_would_be_resized_beyond_the_limit_is_cut_first(
    interpolation: str, size: tuple[int, int], crop: Size
) -> None:
    """Only the kept part is resampled; at most one pixel in a hundred differs from torchvision's, by one level."""
    config = Config(crop=crop, interpolation=interpolation, max_pixels=50_000, mean=(0, 0, 0), std=(1, 1, 1))
    found = (Preprocess(config)(noise(*size)) * 255).round()
    expected = (torchvisions(config)(noise(*size)) * 255).round()
    assert found.shape == expected.shape
    different = (found - expected).abs()
    jumps = interpolation in {"nearest", "box"}  # there the last bit decides whether a source pixel counts
    assert (different > 0).float().mean() < (0.02 if jumps else 0.01)
    assert jumps or different.max() <= 1


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 200_000)])
def test_an_extreme_picture_is_not_resized_whole(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """1 × 20000 would become 256 × 5120000 pixels; nothing larger than the kept part is ever made."""
    made: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(self: Image.Image, new: tuple[int, int], *args: object, **options: object) -> Image.Image:
        made.append(new)
        return resize(self, new, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", watched)
    tensor = Preprocess(Config())(Image.new("RGB", size, (255, 0, 0)))
    assert made == [(224, 224)]
    mean, std = torch.tensor(Config().mean), torch.tensor(Config().std)
    assert torch.allclose(tensor.mean(dim=(1, 2)), (torch.tensor([1.0, 0, 0]) - mean) / std, atol=1e-5)


def test_without_a_crop_a_picture_resized_beyond_the_limit_is_refused() -> None:
    """413, naming the size after resizing; a size that the configuration itself fixes is never refused."""
    with pytest.raises(RequestError) as caught:
        Preprocess(Config(crop=None))(Image.new("RGB", (1, 20_000)))
    error = caught.value
    assert (error.status, error.kind) == (413, "ImageTooLarge")
    assert error.message == "data: expected at most 50000000 pixels, got 256 x 5120000 after resizing"
    fixed = Config(resize=(40, 50), crop=None, max_pixels=1_000)
    assert Preprocess(fixed)(Image.new("RGB", (10, 10))).shape == (3, 40, 50)


def test_the_picture_is_left_as_it_was() -> None:
    """It is drawn on later; the tensor shares no memory with it."""
    picture = noise(20, 20)
    before = picture.tobytes()
    Preprocess(Config(resize=None, crop=None))(picture).fill_(7)
    assert picture.tobytes() == before


def test_the_view_is_that_of_the_configuration() -> None:
    """The contract's example."""
    rect = Preprocess(Config()).view(451, 300)
    assert rect is not None
    assert rect.rounded() == [93.96, 18.75, 357.04, 281.25]
    assert Preprocess(Config(resize=None, crop=None)).view(4, 3) == Rect(0, 0, 4, 3)


def test_a_handlers_own_transform_is_used_as_it_is() -> None:
    """Its tensor is the input, and where it looked is not known."""
    own = transforms.Compose([transforms.RandomRotation((90, 90), expand=True), transforms.ToTensor()])
    preprocess = Preprocess.from_callable(own)
    assert torch.equal(preprocess(noise(8, 5)), own(noise(8, 5)))
    assert preprocess(noise(8, 5)).shape == (3, 8, 5)
    assert preprocess.view(8, 5) is None


@pytest.mark.parametrize(("result", "came"), [(torch.zeros(1, 3, 4, 4), r"got shape \(1, 3, 4, 4\)"), (noise(2, 2), "got Image")])
def test_a_handlers_own_transform_must_give_one_picture(result: object, came: str) -> None:
    """A transform that adds a batch, or forgets ToTensor, is named as the fault."""
    with pytest.raises(TypeError, match=came):
        Preprocess.from_callable(lambda _: result)(noise(4, 4))  # type: ignore[arg-type, return-value]
