"""DICOM pictures: windows, rescaling and inverted grey as pydicom itself computes them; what is not read is refused by name."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.pictures.decode import measure, open_picture

GREY = Config.from_mapping({"channels": 1, "formats": ["png", "dicom"]})
COLOUR = Config.from_mapping({"formats": ["dicom"]})
VALUES = np.random.default_rng(0).integers(0, 4096, (40, 50))


def written(pixels: Any, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> bytes:
    """A file of grey of 12 of 16 bits, unless tags say otherwise."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    meta.FileMetaInformationGroupLength = 0
    meta.MediaStorageSOPClassUID = pydicom.uid.UID("1.2.840.10008.5.1.4.1.1.7")
    meta.MediaStorageSOPInstanceUID = pydicom.uid.UID("1.2.3")
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    array = np.asarray(pixels)
    given = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Rows": array.shape[0],
        "Columns": array.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        **tags,
    }
    for name, value in given.items():
        setattr(data, name, value)
    data.PixelData = array.astype(f"{order}u{given['BitsAllocated'] // 8}").tobytes()
    data["PixelData"].VR = "OW" if given["BitsAllocated"] == 16 else "OB"
    file = io.BytesIO()
    form = {"implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": order == "<"}
    pydicom.dcmwrite(file, data, force_encoding=True, **form)
    return file.getvalue()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 2000, "WindowWidth": 1000},
        {"WindowCenter": [1500, 9], "WindowWidth": [700, 3]},
        {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": 0.5, "RescaleIntercept": -1024},
        {"WindowCenter": 2000, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 2000, "WindowWidth": 900, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 2000, "WindowWidth": 1},
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_windows_are_pydicoms(syntax: str, tags: dict[str, Any], photometric: str) -> None:
    """Rescaled, then windowed, then inverted where 0 is white: within the rounding to 16 bits, in full depth."""
    file = written(VALUES, syntax, PhotometricInterpretation=photometric, **tags)
    data = pydicom.dcmread(io.BytesIO(file))
    windowed = np.asarray(apply_voi_lut(apply_modality_lut(VALUES, data), data), np.float64)
    low, high = (float(each) for each in _ends(data))
    grey = (windowed - low) / (high - low)
    wanted = 1 - grey if photometric == "MONOCHROME1" else grey
    found = np.asarray(open_picture(file, GREY)) / 65535
    assert np.abs(found - wanted).max() < 1e-4
    colour = np.asarray(open_picture(file, COLOUR))
    assert np.abs(colour - 255 * wanted[..., None]).max() <= 0.51


def _ends(data: Any) -> tuple[float, float]:
    """What pydicom maps the window's ends to: the range of the stored bits, rescaled."""
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    return intercept, slope * 4095 + intercept


def test_without_a_window_the_stored_bits_reach_from_black_to_white() -> None:
    """Also of signed numbers, and where other bits lie above."""
    found = np.asarray(open_picture(written(VALUES), GREY)) / 65535
    assert np.abs(found - VALUES / 4095).max() < 1e-4
    signed = open_picture(written((VALUES - 2048) & 0xFFFF, PixelRepresentation=1), GREY)
    assert np.abs(np.asarray(signed) / 65535 - VALUES / 4095).max() < 1e-4
    dirty = open_picture(written(VALUES | 0xF000), GREY)
    assert np.array_equal(np.asarray(dirty), np.asarray(open_picture(written(VALUES), GREY)))


@pytest.mark.parametrize("planes", [0, 1])
def test_colour_comes_through(planes: int) -> None:
    """RGB of 8 bits, by pixels or by planes."""
    pixels = np.random.default_rng(1).integers(0, 256, (6, 7, 3))
    laid = pixels.transpose(2, 0, 1) if planes else pixels
    tags: Any = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": planes}
    file = written(laid, BitsAllocated=8, BitsStored=8, HighBit=7, Rows=6, Columns=7, **tags)
    assert np.array_equal(np.asarray(open_picture(file, COLOUR)), pixels)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (written(VALUES, NumberOfFrames=2), "of one frame, got 2 frames"),
        (written(VALUES)[:-1], "whole, got 3999 bytes"),
        (written(VALUES, PhotometricInterpretation="PALETTE COLOR"), "MONOCHROME1, MONOCHROME2 or RGB, got 'PALETTE COLOR'"),
        (written(VALUES, BitsStored=17), "stored bits"),
        (written(VALUES, WindowCenter=5, WindowWidth=0), "wider than 0"),
        (
            written(VALUES).replace(b"1.2.840.10008.1.2.1\0", RLELossless.encode() + b"\0"),
            r"uncompressed .*transfer syntax 1.2.840",
        ),
        (
            written(VALUES).replace(b"\x14\x001.2.840.10008.1.2.1\0", b"\x16\x00" + JPEG2000Lossless.encode()),
            r"uncompressed .*transfer syntax 1\.2\.840\.10008\.1\.2\.4\.90",
        ),
        (written(VALUES)[:200], "DICOM picture"),
    ],
)
def test_what_is_not_read_is_refused_by_name(file: bytes, message: str) -> None:
    """A 400, never another picture."""
    with pytest.raises(RequestError, match=message) as caught:
        open_picture(file, GREY)
    assert (caught.value.status, caught.value.kind) == (400, "InvalidImage")


def test_it_is_off_by_default_and_keeps_to_the_limits_by_its_header() -> None:
    """The tags alone refuse a large one: the pixels need not be there."""
    with pytest.raises(RequestError, match=r"expected a picture in JPEG, .* got DICOM"):
        open_picture(written(VALUES), Config())
    large = written(VALUES, Rows=60_000, Columns=60_000)
    assert measure(large, GREY).size == (60_000, 60_000)
    with pytest.raises(RequestError, match="60000 x 60000") as caught:
        open_picture(large, GREY)
    assert caught.value.status == 413
