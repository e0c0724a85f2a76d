"""Prices of pictures, and how requests share a limit."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from camserve.core.config import Config
from camserve.pictures.bounds.work import PRICES, Effort, price_header, price_pixels, share_out
from camserve.pictures.decode import measure
from camserve.pictures.files.formats import ALL_NAMES

CONFIG = Config()


def encoded(kind: str, size: tuple[int, int], **options: object) -> bytes:
    """A plain picture as a file of Pillow's format `kind`."""
    file = io.BytesIO()
    Image.new("RGB", size, "gray").save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("demands", "met"),
    [
        ([3, 3, 3], [True, True, True]),
        ([4, 4, 4], [True, True, False]),
        ([8, 1, 5, 2], [False, True, True, True]),
        ([20, 1], [False, True]),
        ([0, 10, 0], [True, True, True]),
        ([], []),
    ],
)
def test_the_smallest_demands_are_met_first(demands: list[float], met: list[bool]) -> None:
    """Of ten; what is larger than all of it costs nobody anything."""
    assert share_out(10, demands) == met


def test_every_format_has_a_price() -> None:
    """By the name that messages use."""
    assert set(PRICES) == set(ALL_NAMES.values())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_work_grows_with_pixels_and_bytes(kind: str) -> None:
    """Four times the pixels are about four times the work; the file's bytes count as well."""
    small, large = (measure(encoded(kind, size), CONFIG).work for size in ((1000, 1000), (2000, 2000)))

    assert 3 < large / small < 5
    assert measure(encoded(kind, (1000, 1000)) + bytes(10**6), CONFIG).work > small + 3


def test_each_scan_counts() -> None:
    """A progressive JPEG of ten scans draws each pixel ten times."""
    once, often = (measure(encoded("JPEG", (1000, 1000), progressive=each), CONFIG).work for each in (False, True))

    assert often > once + 4


def test_what_a_narrow_picture_grows_to_counts() -> None:
    """A column of 100,000 pixels is resized to 6.5 million and more before it is cropped."""
    assert measure(encoded("PNG", (1, 60_000)), Config(resize=20)).work > 100
    assert measure(encoded("PNG", (1, 60_000)), Config(resize=None)).work < 10


def test_parts_and_text_count_before_a_pixel_is_seen() -> None:
    """What Pillow reads in Python, and what it unpacks."""
    assert price_header("PNG", Effort(parts=20_000), 0) > 300
    assert price_header("PNG", Effort(unpacked=10**8), 0) > 100
    assert price_pixels("JPEG", Effort(passes=100), 49_000_000, 0) > 2_000
