"""Reads uncompressed DICOM files of one frame, by their tags: PS3.3, C.7.6.3 (pixels), C.11.1 (rescaling), C.11.2 (window).

`pydicom`, of the extra `dicom`, parses the tags; the pixels are read here, once the tags say how many there are.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camserve.core.errors import RequestError
from camserve.pictures.bounds.reading import BoundedFile

UNCOMPRESSED = {"1.2.840.10008.1.2": "<", "1.2.840.10008.1.2.1": "<", "1.2.840.10008.1.2.2": ">"}
"""The transfer syntaxes that are read, and their byte order: implicit and explicit little-endian, explicit big-endian."""

_SYNTAX = re.compile(rb"\x02\x00\x10\x00UI(..)", re.DOTALL)
_META = 4096
"""Bytes behind the preamble in which the transfer syntax is looked for."""

_PREAMBLE = 132
_PIXELS = 0x7FE00010


@dataclass(frozen=True)
class Header:
    """What a file's tags say of its picture.

    Attributes:
        tags: pydicom's data set, without the pixels.
        size: (width, height).
        start: where the pixels begin in the file.
        order: of bytes, NumPy's `<` or `>`.
    """

    tags: Any
    size: tuple[int, int]
    start: int
    order: str


def read_header(data: bytes | bytearray) -> Header:
    """Read the tags in front of the pixels, and none behind.

    Raises:
        RequestError: 400 `InvalidImage`, it is compressed, has several frames or an encoding that is not read, or is damaged.
    """
    syntax = _read_syntax(data)
    if syntax not in UNCOMPRESSED:
        raise _refuse("uncompressed (decompress it first: gdcmconv --raw, dcmdjpeg)", f"transfer syntax {syntax or 'none'}")
    file = BoundedFile(data)
    pydicom: Any = importlib.import_module("pydicom")  # an extra: only archives whose formats name dicom need it
    try:
        tags = pydicom.dcmread(file, stop_before_pixels=True)
    except pydicom.errors.InvalidDicomError:
        raise _refuse("with readable tags", "a damaged one") from None
    frames = int(tags.get("NumberOfFrames") or 1)
    if frames != 1:
        raise _refuse("of one frame", f"{frames} frames; send the one that is meant")
    width, height = int(tags.Columns), int(tags.Rows)
    photometric, samples, bits = str(tags.PhotometricInterpretation), int(tags.SamplesPerPixel), int(tags.BitsAllocated)
    if (photometric, samples) not in {("MONOCHROME1", 1), ("MONOCHROME2", 1), ("RGB", 3)}:
        raise _refuse("in MONOCHROME1, MONOCHROME2 or RGB", f"{photometric[:16]!r} with {samples} samples")
    if bits not in (8, 16) or (samples == 3 and bits != 8):
        raise _refuse("of 8 or 16 bits (RGB of 8)", f"{bits} bits a sample")
    return Header(tags, (width, height), _find_pixels(data, file.tell(), UNCOMPRESSED[syntax]), UNCOMPRESSED[syntax])


def open_dicom(data: bytes | bytearray, header: Header) -> Image.Image:
    """Return the picture: grey as I;16 (white is 65535), rescaled and windowed, MONOCHROME1 inverted; or RGB.

    The first window counts. Without one, the whole range of the stored bits does, from black to white.

    Raises:
        RequestError: 400 `InvalidImage`, as `read_header`; the file ends too early, or has lookup tables that are not read.
    """
    tags, (width, height) = header.tags, header.size
    samples, bits = int(tags.SamplesPerPixel), int(tags.BitsAllocated)
    size = width * height * samples * bits // 8
    if width < 1 or height < 1 or len(data) - header.start < size:
        raise _refuse("whole", f"{len(data) - header.start} bytes of pixels, not {size}")
    kind = np.dtype(f"{header.order}u{bits // 8}")
    stored = np.frombuffer(data, kind, size // kind.itemsize, header.start)
    if samples == 3:
        planes = int(tags.get("PlanarConfiguration") or 0) == 1
        pixels = stored.reshape((3, height, width)).transpose(1, 2, 0) if planes else stored.reshape((height, width, 3))
        return Image.fromarray(np.ascontiguousarray(pixels, np.uint8))
    if "ModalityLUTSequence" in tags:
        raise _refuse("with a rescale slope and intercept", "a modality lookup table")
    low, high = _stored_range(tags)
    values = _sign(stored.reshape(height, width), tags).astype(np.float64)
    slope, intercept = (float(tags.get(name, default)) for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0)))
    ends = sorted((slope * low + intercept, slope * high + intercept))
    grey = _apply_window(slope * values + intercept, tags, (ends[0], ends[1]))
    if str(tags.PhotometricInterpretation) == "MONOCHROME1":
        grey = 1 - grey
    return Image.fromarray(np.rint(65535 * grey).astype(np.uint16))


def _read_syntax(data: bytes | bytearray) -> str:
    match = _SYNTAX.search(data, _PREAMBLE, _PREAMBLE + _META)
    if match is None:
        return ""
    value = bytes(data[match.end() : match.end() + min(64, int.from_bytes(match[1], "little"))])
    return value.decode("ascii", "replace").strip(" \0")


def _find_pixels(data: bytes | bytearray, at: int, order: str) -> int:
    """Return where the pixels begin: behind their tag, on which pydicom stopped, and its length."""
    tag = b"\xe0\x7f\x10\x00" if order == "<" else b"\x7f\xe0\x00\x10"
    if data[at : at + 4] != tag:
        raise _refuse("with pixels", "none behind its tags")
    return at + (12 if data[at + 4 : at + 6] in (b"OW", b"OB") else 8)


def _stored_range(tags: Any) -> tuple[int, int]:
    bits = int(tags.get("BitsStored") or tags.BitsAllocated)
    if not 1 <= bits <= int(tags.BitsAllocated):
        raise _refuse("whose stored bits are among those allocated", f"{bits} stored")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if int(tags.get("PixelRepresentation") or 0) else (0, 2**bits - 1)


def _sign(stored: NDArray[Any], tags: Any) -> NDArray[np.int64]:
    """Return the stored bits as numbers, without what may lie above them (old overlays); signed where the tags say so."""
    low, high = _stored_range(tags)
    span = high - low + 1
    shift = int(tags.get("HighBit", span.bit_length() - 2)) - (span.bit_length() - 2)
    if shift < 0:
        raise _refuse("whose highest bit is above the stored ones", f"high bit {tags.get('HighBit')}")
    values = (stored.astype(np.int64) >> shift) & (span - 1)
    return np.where(values > high, values - span, values)


def _apply_window(values: NDArray[np.float64], tags: Any, ends: tuple[float, float]) -> NDArray[np.float64]:
    """Bring values to 0 to 1 by the first window (equations of C.11.2.1.2 and C.11.2.1.3), or from end to end."""
    centre, width = _first(tags.get("WindowCenter")), _first(tags.get("WindowWidth"))
    if centre is None or width is None:
        if "VOILUTSequence" in tags:
            raise _refuse("with a window", "a lookup table of values of interest")
        return np.clip((values - ends[0]) / max(ends[1] - ends[0], 1e-12), 0, 1)
    function = str(tags.get("VOILUTFunction") or "LINEAR")
    least = 1.0 if function == "LINEAR" else 1e-9
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or not width >= least or not np.isfinite([centre, width]).all():
        raise _refuse("with a window of LINEAR, LINEAR_EXACT or SIGMOID, wider than 0", f"{function[:16]!r}, {width:g} wide")
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return (values > centre).astype(np.float64)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return float(several[0]) if several else None


def _refuse(expected: str, came: str) -> RequestError:
    return RequestError(400, "InvalidImage", f"data: expected a DICOM picture {expected}, got {came}")
