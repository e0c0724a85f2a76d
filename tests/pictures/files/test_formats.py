"""Formats by their first bytes, and what headers say; decoding, and every refusal by name, is tested in `test_decode`."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from camserve.core.config import FORMATS
from camserve.pictures.files.formats import NAMES, is_picture, read_webp_size, sniff


def encoded(kind: str, size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    """A grey picture as a file of Pillow's format `kind`."""
    file = io.BytesIO()
    Image.new("RGB", size, "gray").save(file, kind, **options)
    return file.getvalue()


def test_every_format_of_the_configuration_has_a_name() -> None:
    """In one order."""
    assert tuple(NAMES) == FORMATS


@pytest.mark.parametrize("name", NAMES.values())
def test_a_format_that_is_opened_is_a_picture(name: str) -> None:
    """By its first bytes, in any kind of bytes; what is cut off inside of them is none."""
    data = encoded(name)
    assert sniff(data) == sniff(bytearray(data)) == sniff(data[:16]) == name
    assert is_picture(data)
    assert not is_picture(data[:1])


@pytest.mark.parametrize(
    "data", [b"", b"RIFF\0\0\0\0WAVEfmt ", b"GIF88a", b"%PDF-1.7", b"PK\x03\x04", b"hello", b" " * 40 + b"<svg"]
)
def test_other_files_are_no_pictures(data: bytes) -> None:
    """Also those of formats that are known by name."""
    assert not is_picture(data)


def test_only_the_first_bytes_decide() -> None:
    """However much white space stands before `<svg`, it is not looked for beyond them."""
    assert sniff(b" " * 20 + b"<svg") == "XML or SVG"
    assert sniff(b" " * 40 + b"<svg") is None


def test_bigtiff_is_a_picture() -> None:
    """In either byte order: the same test for whoever reads a body and whoever decodes it."""
    assert is_picture(b"II+\0\x08\0\0\0")
    assert is_picture(b"MM\0+\0\x08\0\0")


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}])
def test_a_webp_tells_its_size(options: dict[str, object]) -> None:
    """Lossy, lossless and extended; (0, 0) where the first chunk is missing."""
    assert read_webp_size(encoded("WebP", (301, 17), **options)) == (301, 17)
    assert read_webp_size(b"RIFF\0\0\0\0WEBP") == (0, 0)
