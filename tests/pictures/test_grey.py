"""Grey pictures for models of one channel: 8 bits as torchvision's Grayscale, 16 bits in full depth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.build import encoded, noise
from torchvision import transforms

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.pictures.decode import open_picture
from camserve.pictures.overlays import prepare_canvas
from camserve.pictures.preprocess import Preprocess

GREY = Config.from_mapping({"channels": 1, "mean": 0.1307, "std": 0.3081})
DEEP = np.random.default_rng(1).integers(0, 65536, (60, 81), dtype=np.uint16)


def torchvisions(picture: Image.Image, config: Config) -> torch.Tensor:
    """What `Grayscale(1)` before the other transforms gives."""
    steps = [transforms.Grayscale(1), transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    tensor: torch.Tensor = transforms.Compose([*steps, transforms.Normalize(config.mean, config.std)])(picture)
    return tensor


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_a_picture_of_8_bits_is_torchvisions_grayscale(mode: str) -> None:
    """Bit for bit, whatever the file's mode: what stock converts to RGB, `Grayscale(1)` makes grey."""
    source = Image.fromarray(noise(451, 300)).convert(mode)
    data = encoded(source, "TIFF" if mode == "CMYK" else "PNG")
    tensor = Preprocess(GREY)(open_picture(data, GREY))

    assert tensor.shape == (1, 224, 224)
    assert torch.equal(tensor, torchvisions(source.convert("RGB"), GREY))


@pytest.mark.numeric
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_grey_of_16_bits_keeps_its_depth(form: str) -> None:
    """Two neighbouring levels of 65,536 stay apart, where grey of 8 bits has 256; resampled as exactly as float32 does."""
    config = Config.from_mapping({"channels": 1, "resize": None, "crop": None})
    found = Preprocess(config)(open_picture(encoded(Image.fromarray(DEEP), form), config))
    assert np.array_equal(found[0].numpy(), DEEP.astype(np.float32) / np.float32(65535))

    smaller = Config.from_mapping({"channels": 1, "resize": [30, 27], "crop": None})
    shrunk = Preprocess(smaller)(open_picture(encoded(Image.fromarray(DEEP), form), smaller))
    wanted = np.asarray(Image.fromarray(DEEP.astype(np.float32)).resize((27, 30), Image.Resampling.BILINEAR), np.float64)
    assert np.abs(shrunk[0].numpy() - wanted / 65535).max() < 1e-6


def test_white_stays_white_at_any_depth() -> None:
    """12 bits are brought to the same range, and a TIFF whose 0 is white is turned, which Pillow does up to 8 bits only."""
    config = Config.from_mapping({"channels": 1, "resize": None, "crop": None})
    pixels = np.array([[0, 2048, 4095]], dtype=np.uint16)
    packed = bytes([0x00, 0x08, 0x00, 0xFF, 0xF0])  # 000 800 FFF, packed
    twelve = _tiff12(packed)
    assert Preprocess(config)(open_picture(twelve, config)).flatten().tolist() == pytest.approx([0, 2048 / 4095, 1], abs=1e-5)

    inverted = encoded(Image.fromarray(pixels * 16), "TIFF", tiffinfo={262: 0})
    assert Preprocess(config)(open_picture(inverted, config)).flatten().tolist() == pytest.approx(
        [1, 1 - 32768 / 65535, 15 / 65535], abs=1e-6
    )
    assert np.asarray(open_picture(inverted, Config()))[0, :, 0].tolist() == [255, 127, 0]


def _tiff12(packed: bytes) -> bytes:
    """A TIFF of 3 x 1 pixels of 12 bits."""
    tags = [(256, 3, 3), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 1), (279, 4, 5)]
    entries = b"".join(tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little") for tag, kind, value in tags)  # fmt: skip
    return b"II*\0" + (14).to_bytes(4, "little") + packed + b"\0" + len(tags).to_bytes(2, "little") + entries + bytes(4)


def test_pictures_of_32_bit_numbers_are_refused() -> None:
    """Nothing says what is white."""
    with pytest.raises(RequestError, match="whose white is not defined"):
        open_picture(encoded(Image.fromarray(DEEP.astype(np.float32)), "TIFF"), GREY)


def test_overlays_are_drawn_on_the_picture_as_it_looks() -> None:
    """A grey one is grey, also of 16 bits; a colour picture that the model sees in grey keeps its colours."""
    for pixels, wanted in ((DEEP, (DEEP / 257).round()), (noise(9, 7)[..., 0], noise(9, 7)[..., 0])):
        canvas = prepare_canvas(open_picture(encoded(Image.fromarray(pixels)), GREY), None, 1600)
        assert np.array_equal(canvas.pixels, np.repeat(wanted[..., None].astype(np.uint8), 3, axis=2))
    colours = prepare_canvas(open_picture(encoded(noise(9, 7)), GREY), None, 1600)
    assert np.array_equal(colours.pixels, noise(9, 7))


@pytest.mark.numeric
def test_scale_gives_the_range_of_x_ray_models() -> None:
    """torchxrayvision's `normalize(picture, 255)` is `(2 * (picture / 255) - 1) * 1024`: -1024 to 1024."""
    config = Config.from_mapping({"channels": 1, "resize": None, "crop": None, "scale": 2048, "mean": 1024})
    levels = np.arange(256, dtype=np.uint8)[None]
    tensor = Preprocess(config)(open_picture(encoded(Image.fromarray(levels)), config))
    assert (float(tensor.min()), float(tensor.max())) == (-1024, 1024)
    wanted = (2 * (levels.astype(np.float32) / 255) - 1.0) * 1024
    assert np.abs(tensor[0].numpy() - wanted).max() <= 2e-4  # float32's rounding at 2048


def test_scale_is_for_means_of_the_range_that_it_makes() -> None:
    """Mean and std for 0 to 255 give, with `scale: 255`, what their 255th parts give without."""
    own = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "scale": 255}
    found = Preprocess(Config.from_mapping(own))(Image.fromarray(noise(300, 300)))
    assert torch.allclose(found, Preprocess(Config())(Image.fromarray(noise(300, 300))), rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_no_picture_becomes_a_tensor_of_other_channels(channels: int) -> None:
    """It is refused, and what is taken is named."""
    with pytest.raises(RequestError, match=rf"takes tensors \[{channels}\]\[H\]\[W\] alone") as caught:
        Preprocess(Config.from_mapping({"channels": channels}))(Image.new("RGB", (9, 9)))
    assert (caught.value.status, caught.value.kind) == (400, "UnsupportedFormat")
