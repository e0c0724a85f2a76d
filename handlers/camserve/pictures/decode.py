"""Opens pictures: encoded bytes become an RGB picture. Pillow decodes, as in the stock handler."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from PIL import Image, JpegImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401 - else Pillow imports every decoder

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.geometry import resized
from camserve.core.text import join_names, show
from camserve.pictures.bounds import bmp, gif, jpeg, png, tiff
from camserve.pictures.bounds.reading import LENIENT, BoundedFile
from camserve.pictures.bounds.work import Effort, Measure, RefusedError, Weight, price_header, price_pixels
from camserve.pictures.files import dicom
from camserve.pictures.files.formats import ALL_NAMES, read_heif_size, read_webp_size, sniff
from camserve.pictures.files.modes import FAULTS, QUARTER_TURNS, Box, convert_picture, find_turn, turn_box

_CHECKS = {"JPEG": jpeg.check, "PNG": png.check, "GIF": gif.check, "TIFF": tiff.check, "BMP": bmp.check}
_SIZES: Mapping[str, Callable[[bytes | bytearray], tuple[int, int]]] = {
    "WebP": read_webp_size,
    "AVIF": read_heif_size,
    "HEIC": read_heif_size,
    "DICOM": lambda data: dicom.read_header(data).size,
}
"""How the size is read of those that Pillow allocates as soon as it opens them, or does not know."""

_PILLOWS = {"HEIC": "HEIF"}
_TILE_WIDTH, _TILE_LENGTH = 322, 323

Enough = Callable[[int, int], tuple[int, int]]
"""Of a picture's width and height, how much is enough: (width, height)."""


class Opened(NamedTuple):
    """A picture as it was decoded, perhaps smaller.

    Attributes:
        picture: upright where `config.exif`.
        size: (width, height) of the whole one, turned alike.
        part: what the whole one covers of `picture`, in its pixels; None: all of it.
    """

    picture: Image.Image
    size: tuple[int, int]
    part: Box | None = None


def open_picture(data: bytes | bytearray, config: Config, origin: str = "", least: int = 0) -> Image.Image:
    """Decode the first frame of a picture file, in mode RGB; for a model of one channel, grey stays grey, see `modes.keep_grey`.

    Red, green and blue of 8 bits come through as Pillow decodes them. 16-bit grey is scaled by 1/257 and rounded, 12-bit
    grey of TIFF by 255/4095. Everything else is converted by Pillow, which drops alpha: also TIFFs in LAB or YCbCr, of which
    the stock handler takes lightness or luma for red. Pictures of 32-bit integers and of floats are refused: they do not say
    what is black and what is white. EXIF orientation is applied if `config.exif` (Pillow itself always applies TIFF's); an
    EXIF block that cannot be read is ignored.

    Args:
        data: the file's bytes.
        config: `formats`, `max_pixels`, `exif`.
        origin: how the bytes were received, which an error about them says (`after base64 decoding of 812 characters`).
        least: pixels of the longer side that are enough, so that a JPEG may be decoded at a half, a quarter or an eighth; 0: all.

    Raises:
        RequestError: 400 `NoImage` for no bytes; 400 `UnsupportedFormat` for a format that is not one of
            `config.formats`; 413 `ImageTooLarge` for more than `config.max_pixels`, before a pixel is decoded;
            400 `InvalidImage` for a picture that cannot be decoded.
    """

    def enough(width: int, height: int) -> tuple[int, int]:
        part = least / max(width, height, least)
        return math.ceil(width * part), math.ceil(height * part)

    return open_enough(data, config, origin, enough if least else None)[0]


def open_enough(data: bytes | bytearray, config: Config, origin: str = "", enough: Enough | None = None) -> Opened:
    """Decode as `open_picture`, a JPEG to a half, a quarter or an eighth where neither side gets below what is enough.

    libjpeg decodes at these sizes by the low frequencies alone, and rounds sides up; what is left over lies on the right and
    below, before the picture is turned.

    Args:
        data: the file's bytes.
        config: as in `open_picture`.
        origin: as in `open_picture`.
        enough: of the picture as it will be returned; None: decode all.

    Raises:
        RequestError: as `open_picture`.
    """
    if not data:
        raise RequestError(400, "NoImage", "data: expected a picture, got 0 bytes")
    name = _check_format(data, config, origin)
    try:
        with LENIENT:
            if name == "DICOM":
                opened = convert_picture(_open_dicom(data, config), config)
                return Opened(opened, opened.size)
            picture = _check_header(data, name, config)
            if enough is None or name != "JPEG":
                picture.load()
                opened = convert_picture(picture, config)
                return Opened(opened, opened.size)
            turn = find_turn(picture) if config.exif else None
            whole = _exchange(picture.size) if turn in QUARTER_TURNS else picture.size
            least = enough(*whole)
            drafted = picture.draft(None, _exchange(least) if turn in QUARTER_TURNS else least)
            part = turn_box(drafted[1], picture.size, turn) if drafted else None
            picture.load()
            opened = convert_picture(picture, config)
            return Opened(opened, whole, None if opened.size == whole else part)
    except FAULTS:
        message = f"data: expected a complete {name} picture, got {len(data)} bytes that cannot be decoded as one"
        raise RequestError(400, "InvalidImage", message) from None


def _exchange(size: tuple[int, int]) -> tuple[int, int]:
    return size[1], size[0]


def check_limits(data: bytes | bytearray, config: Config) -> None:
    """Refuse a picture whose header says that `open_picture` would refuse it as too large, or as too much work.

    A file that is no picture of `config.formats` passes: somebody else reads it, or refuses it.

    Raises:
        RequestError: 413 `ImageTooLarge` or 400 `InvalidImage`, as `open_picture`.
    """
    try:
        name = _check_format(data, config)
    except RequestError:
        return
    with contextlib.suppress(*FAULTS), LENIENT:
        _check_header(data, name, config)


def weigh(data: bytes | bytearray, config: Config) -> Weight | None:
    """Say what a file is before Pillow sees it, in time that goes by its bytes; None: it is of no format that is opened.

    Raises:
        RequestError: 400 `InvalidImage`, no camera and no tool makes such a file, and it is dear to decode.
    """
    try:
        name = _check_format(data, config)
    except RequestError:
        return None
    effort = _check_effort(data, name)
    return Weight(name, effort, price_header(name, effort, len(data)))


def measure(data: bytes | bytearray, config: Config, weight: Weight | None = None) -> Measure:
    """Measure what `open_picture` will decode, by the header alone; zeros for a file that it will not begin to decode.

    Args:
        weight: of the file, where it is known.
    """
    try:
        weight = weight or weigh(data, config)
    except RequestError as error:
        return Measure(fault=error)
    if weight is None:
        return Measure()
    try:
        size, tile = _read_sizes(data, weight.name)
    except (RequestError, *FAULTS):
        return Measure(work=weight.header)
    pixels = max(math.prod(size), math.prod(tile))
    if pixels > config.max_pixels:  # it is refused by itself
        return Measure(size, pixels, weight.header)
    grown = math.prod(resized(*size, config.resize, config.fit)) if math.prod(size) else 0
    grown = grown if grown <= config.max_pixels else 0  # only the part that the crop keeps is resized
    return Measure(size, pixels, weight.header + price_pixels(weight.name, weight.effort, pixels, grown))


def _read_sizes(data: bytes | bytearray, name: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (width, height) of the picture, and of a TIFF's tiles."""
    if name in _SIZES:
        return _SIZES[name](data), (0, 0)
    with LENIENT:
        picture = _read_header(data, name)
        return picture.size, _tile_size(picture)


def check_pixels(size: tuple[int, int], config: Config, what: str = "") -> None:
    """Raise 413 `ImageTooLarge` for a (width, height) of more than `config.max_pixels`; `what` ends the message."""
    width, height = size
    if width * height > config.max_pixels:
        message = f"data: expected at most {config.max_pixels} pixels, got {width} x {height}{what}"
        raise RequestError(413, "ImageTooLarge", message)


def _check_format(data: bytes | bytearray, config: Config, origin: str = "") -> str:
    """Return the name of the file's format; raises 400 `UnsupportedFormat` if it is not one of `config.formats`."""
    name = sniff(data)
    accepted = [ALL_NAMES[each] for each in config.formats]
    if name is not None and name in accepted:
        return name
    came = name
    if came is None:
        start = bytes(data[:12])
        text = show(start) if start.isascii() and start.decode().isprintable() else start.hex(" ")
        came = f"{len(data)} {'byte' if len(data) == 1 else 'bytes'} of no known format, which start with {text}"
        if origin:
            came += f", {origin}"
    raise RequestError(400, "UnsupportedFormat", f"data: expected a picture in {join_names(accepted)}, got {came}")


def _check_effort(data: bytes | bytearray, name: str) -> Effort:
    """Count what decoding a file of a format takes beyond its pixels, before Pillow sees it.

    Raises:
        RequestError: 400 `InvalidImage`, no camera and no tool makes such a file, and it is dear to decode.
    """
    check = _CHECKS.get(name)
    try:
        return check(data) if check else Effort()
    except RefusedError as error:
        raise RequestError(400, "InvalidImage", f"data: {error}") from None


def _check_header(data: bytes | bytearray, name: str, config: Config) -> Image.Image:
    """Return the picture, not decoded yet; raises what `open_picture` does if it is too large, or too much work.

    Small files may be much work: TIFFs with huge tiles, and JPEGs that redraw each pixel often.
    """
    _check_effort(data, name)
    if name == "DICOM":
        check_pixels(dicom.read_header(data).size, config)
        return Image.new("L", (1, 1))  # nobody looks at it: `_open_dicom` opens the file
    if name in _SIZES:
        check_pixels(_SIZES[name](data), config)  # Pillow allocates the canvas as soon as it opens the file
    picture = _read_header(data, name)
    check_pixels(picture.size, config)
    check_pixels(_tile_size(picture), config, " in one TIFF tile")
    return picture


def _read_header(data: bytes | bytearray, name: str) -> Image.Image:
    """Return the picture, not decoded yet."""
    file = BoundedFile(data)
    if name == "JPEG":  # by itself: Pillow would look for further pictures in it, and older releases take long over that
        return JpegImagePlugin.JpegImageFile(file)
    if name == "AVIF":
        importlib.import_module("PIL.AvifImagePlugin")
    elif name == "HEIC":
        importlib.import_module("pillow_heif.HeifImagePlugin")
    picture = Image.open(file, formats=[_PILLOWS.get(name, name.upper())])
    if name == "BMP":
        bmp.use_decoder(picture)
    return picture


def _open_dicom(data: bytes | bytearray, config: Config) -> Image.Image:
    header = dicom.read_header(data)
    check_pixels(header.size, config)
    return dicom.open_dicom(data, header)


def _tile_size(picture: Image.Image) -> tuple[int, int]:
    """Return (width, height) of a TIFF's tiles; (0, 0) if it has none."""
    tags = getattr(picture, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH), tags.get(_TILE_LENGTH)
    return (width, height) if isinstance(width, int) and isinstance(height, int) else (0, 0)
