"""Pillow as it is used here: silent, without limits of its own, and reading from files that bound what it reads."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys
import threading
import warnings
from io import BytesIO

from PIL import Image, _imaging

from camserve.core.errors import RequestError

_MAX_READS, _MAX_EXIF_BLOCKS = 200_000, 100


def silence_decoders() -> None:
    """Keep what decoders say about damaged pictures out of the log and off stderr, in the whole process.

    For a worker, whose log a client must not fill. Pillow logs some faults of TIFF tags as errors; libtiff, which Pillow is
    linked with, prints what Pillow raises anyway. Where libtiff's functions cannot be found it goes on printing.
    """
    for name in ("PIL", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.suppress(AttributeError, OSError):
        libtiff = ctypes.CDLL(_imaging.__file__)
        libtiff.TIFFSetErrorHandler(None)
        libtiff.TIFFSetWarningHandler(None)


class Lenient:
    """Context manager: Pillow neither warns about a picture's size nor limits it, because `max_pixels` does that.

    Both are state of the process. It is restored when the last of the threads that are inside leaves. A limit stays a
    number, and none stays None: Pillow reads it twice to check one picture, and a thread that is not inside would calculate with
    None between.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\b")
                self._limit = Image.MAX_IMAGE_PIXELS
                if self._limit is not None:
                    Image.MAX_IMAGE_PIXELS = sys.maxsize
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                Image.MAX_IMAGE_PIXELS = self._limit
                self._filters.__exit__(None, None, None)


LENIENT = Lenient()


class BoundedFile(BytesIO):
    """`BytesIO` that bounds how much of a header Pillow parses, where the checks of `bounds` have overlooked something.

    Pillow parses headers in Python loops, and its JPEG plugin copies all EXIF data again for each further block, so a small
    crafted file could hold the interpreter lock for seconds.
    """

    reads = exif_blocks = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as `BytesIO` does; raises 400 `InvalidImage` after too many reads or EXIF blocks."""
        part = super().read(size)
        self.reads += 1
        self.exif_blocks += part.startswith(b"Exif\0\0")
        if self.reads > _MAX_READS or self.exif_blocks > _MAX_EXIF_BLOCKS:
            most = f"{_MAX_READS} parts and {_MAX_EXIF_BLOCKS} EXIF blocks"
            raise RequestError(400, "InvalidImage", f"data: expected a picture of at most {most}, got more")
        return part
