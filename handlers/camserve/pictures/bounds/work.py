"""How much work a picture's file is, by its header alone: what it holds, and its price.

Prices are units of a millisecond of one core, by what was measured, rounded up; `benchmarks/README.md` ("Work") says on which
processor. What they leave out ends at the deadline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from camserve.core.errors import RequestError

PART = 0.04
"""Units of a part that Pillow reads in Python, twice what it takes: the interpreter lock is held, so no other thread runs."""

SCAN, UNPACKED, PREPARED = 0.5, 2.0, 8.0
"""Units of a megapixel in each further scan; of a megabyte of text that is unpacked; of a megapixel that is resized."""

AGAIN = 3
"""How many times as dear a byte is that refines what earlier scans have drawn."""

DRAWN: Mapping[str, float] = MappingProxyType({"json": 60.0, "png": 60.0, "jpeg": 60.0, "webp": 150.0})
"""Units of a megapixel that is drawn on and encoded, by the answer's medium; overlays in JSON are PNGs."""


@dataclass(frozen=True)
class Price:
    """Units of decoding a megapixel, and of a megabyte of the file."""

    pixels: float
    size: float


_OTHER = Price(70, 150)
"""Of formats that only some archives list; guessed high, and not measured."""

PRICES: Mapping[str, Price] = MappingProxyType(
    {
        "JPEG": Price(12, 20),
        "PNG": Price(16, 22),
        "WebP": Price(16, 90),
        "GIF": Price(12, 12),
        "TIFF": Price(14, 20),
        "BMP": Price(8, 4),
        "AVIF": _OTHER,
        "HEIC": _OTHER,
        "DICOM": _OTHER,
    }
)
"""By the format's name."""


class RefusedError(ValueError):
    """A file as no camera and no tool makes it, and dear to decode: the message says what is accepted, and what came."""


@dataclass(frozen=True)
class Effort:
    """What decoding a file takes.

    Attributes:
        parts: that Pillow reads one by one in Python (chunks, segments, tags, strips, runs).
        passes: how often each pixel is decoded (a progressive JPEG's scans); 1 for most.
        unpacked: bytes of compressed text and profiles, at most.
    """

    parts: int = 0
    passes: int = 1
    unpacked: int = 0


@dataclass(frozen=True)
class Weight:
    """What a file is before Pillow has seen it.

    Attributes:
        name: of its format, as in messages.
        effort: what its header says.
        header: units of reading it, without its pixels.
    """

    name: str
    effort: Effort
    header: float


@dataclass(frozen=True)
class Measure:
    """How large a picture is, and how much work.

    Attributes:
        size: (width, height), by its header; (0, 0) where there is no picture, or none that will be decoded.
        pixels: that are decoded: the picture's, or those of one TIFF tile where it has more.
        work: units of decoding and resizing it once, and of reading its header.
        fault: why it is refused without a look at its pixels, where that is known.
    """

    size: tuple[int, int] = (0, 0)
    pixels: int = 0
    work: float = 0.0
    fault: RequestError | None = None


def refuse_above(limit: int, count: int, what: str) -> None:
    """Raise `RefusedError` for more than `limit` of something; `what` names it, with its format (`a PNG picture`, `chunks`)."""
    if count > limit:
        raise RefusedError(f"expected {what.format(f'{limit:,}')}, got {'more' if count == limit + 1 else f'{count:,}'}")


def price_header(name: str, effort: Effort, size: int) -> float:
    """Return the units of reading a file of `size` bytes twice, to measure it and to decode it, without its pixels."""
    again = AGAIN if effort.passes > 1 else 1
    return effort.parts * PART + effort.unpacked / 1e6 * UNPACKED + size / 1e6 * PRICES[name].size * again


def price_pixels(name: str, effort: Effort, pixels: int, resized: int) -> float:
    """Return the units of decoding a picture's pixels once, and of resizing it to so many for the model."""
    return (pixels * (PRICES[name].pixels + (effort.passes - 1) * SCAN) + max(pixels, resized) * PREPARED) / 1e6


def share_out(total: float, demands: Sequence[float]) -> list[bool]:
    """Say which demands are met: the smallest first, until the total is used up. No large one costs a small one its own."""
    met = [False] * len(demands)
    left = total
    for position in sorted(range(len(demands)), key=lambda each: demands[each]):
        if demands[position] <= left:
            met[position] = True
            left -= demands[position]
    return met
