"""A thumbnail shows what the model saw, in its place, and nothing of what else a file holds."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.support.monitoring.keeping import SIZE, picture

from camserve.core.config import Config
from camserve.core.messages import Encoded
from camserve.monitoring.evidence.pictures import SIDE, keep_picture
from camserve.monitoring.evidence.records import Picture


def shown(kept: Picture) -> np.ndarray[Any, Any]:
    """The thumbnail's pixels."""
    opened = Image.open(io.BytesIO(kept.jpeg))
    assert opened.format == "JPEG"
    assert opened.size == kept.size
    return np.asarray(opened.convert("RGB"), dtype=int)


def encode(image: Image.Image, kind: str = "JPEG", **given: Any) -> Encoded:
    """A file."""
    file = io.BytesIO()
    image.save(file, kind, **given)
    return Encoded(file.getvalue())


def test_a_large_picture_is_made_small_and_a_small_one_is_left() -> None:
    """The longer side; red stays on the left."""
    kept, size = keep_picture(Encoded(picture(3000, 2000)), (3000, 2000), Config(), "thumbnail")
    pixels = shown(kept)
    assert (kept.kind, kept.size, size) == ("thumbnail", (SIDE, 341), (3000, 2000))
    assert pixels[:, 10, 0].min() > 150
    assert pixels[:, 10, 2].max() < 50
    assert pixels[:, -10, 2].min() > 150
    kept, size = keep_picture(Encoded(picture()), None, Config(), "thumbnail")
    assert (kept.size, size) == (SIZE, SIZE)


@pytest.mark.parametrize("exif", [True, False])
def test_a_picture_is_turned_as_the_model_saw_it(exif: bool) -> None:
    """And its EXIF, with the place where it was taken, is gone, so no browser turns it again."""
    tags = Image.Exif()
    tags[0x0112] = 6  # turned to the right
    tags[0x010F] = "camera of somebody"
    file = encode(Image.open(io.BytesIO(picture())), exif=tags)
    known = SIZE[::-1] if exif else SIZE
    kept, size = keep_picture(file, known, Config(exif=exif), "thumbnail")
    pixels = shown(kept)

    assert kept.size == size == known
    assert b"camera" in file.data
    assert b"camera" not in kept.jpeg
    assert not Image.open(io.BytesIO(kept.jpeg)).getexif()
    red = pixels[5, :, 0] if exif else pixels[:, 5, 0]
    assert red.min() > 150


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_mode_can_be_shown(mode: str) -> None:
    """Whatever the model takes."""
    kind = "TIFF" if mode == "CMYK" else "PNG"
    file = encode(Image.open(io.BytesIO(picture())).convert(mode), kind)
    for channels in (1, 3):
        kept, _ = keep_picture(file, None, Config(channels=channels, mean=(0.0,), std=(1.0,)), "thumbnail")
        assert kept.size == SIZE


def test_grey_of_16_bits_keeps_its_range() -> None:
    """White stays white, and the middle the middle."""
    grey = np.repeat(np.array([0, 32768, 65535], dtype=np.uint16), 30)[None].repeat(20, 0)
    file = encode(Image.fromarray(grey), "PNG")
    for channels in (1, 3):
        kept, _ = keep_picture(file, None, Config(channels=channels, mean=(0.0,), std=(1.0,)), "thumbnail")
        assert shown(kept)[10, (5, 45, 85), 0] == pytest.approx([0, 128, 255], abs=3)


def test_the_whole_is_the_clients_file() -> None:
    """Byte for byte, to be asked again; beside it what is to be shown."""
    kept, _ = keep_picture(Encoded(picture(kind="PNG")), SIZE, Config(), "whole")
    assert (kept.kind, kept.file, kept.media_type, kept.size) == ("whole", picture(kind="PNG"), "image/png", SIZE)


def test_where_there_is_no_picture_it_is_said_why() -> None:
    """A setting, a tensor, or what only a handler's own step can read."""
    tensor = np.zeros((3, 8, 8), dtype=np.float32)
    assert keep_picture(tensor, None, Config(), "whole") == (Picture("none", "tensor"), None)
    assert keep_picture(Encoded(picture()), SIZE, Config(), "none") == (Picture("none", "setting"), SIZE)
    assert keep_picture(Encoded(b"own format"), None, Config(), "thumbnail") == (Picture("none", "unreadable"), None)
