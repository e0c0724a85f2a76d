"""AVIF and HEIC: off by default, opened where the configuration lists them and the installation can, within the limits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from tests.support.build import encoded

import camserve
from camserve.core.config import Config
from camserve.core.errors import ConfigError, RequestError
from camserve.pictures.decode import measure, open_picture
from camserve.pictures.files import formats
from camserve.pictures.files.formats import find_missing, read_heif_size

CONFIG = Config.from_mapping({"formats": ["jpeg", "avif", "heic"]})


def scene() -> Image.Image:
    """Smooth colours, which lossy codecs keep."""
    across, down = np.meshgrid(np.linspace(0, 255, 72), np.linspace(0, 255, 56))
    return Image.fromarray(np.stack([across, down, 255 - across], 2).astype(np.uint8))


def heic() -> bytes:
    """The scene, as phones write it."""
    file = io.BytesIO()
    pillow_heif.from_pillow(scene()).save(file, quality=95)
    return file.getvalue()


FILES = {"AVIF": lambda: bytes(encoded(scene(), "AVIF", quality=95)), "HEIC": heic}


@pytest.mark.parametrize("name", FILES)
def test_it_is_opened_where_it_is_listed(name: str) -> None:
    """Off by default, by its name; listed, the picture is what was encoded."""
    file = FILES[name]()
    with pytest.raises(RequestError, match=rf"expected a picture in JPEG, .* got {name}"):
        open_picture(file, Config())
    found = np.asarray(open_picture(file, CONFIG), np.int16)
    assert np.abs(found - np.asarray(scene(), np.int16)).max() <= 12


@pytest.mark.parametrize("name", FILES)
def test_the_size_is_known_by_the_header(name: str) -> None:
    """Before Pillow sees the file: what the boxes say counts, whatever they hold."""
    file = FILES[name]()
    assert read_heif_size(file)[0] >= 72
    assert measure(file, CONFIG).pixels >= 72 * 56
    place = file.index(b"ispe\0\0\0\0") + 8
    huge = file[:place] + (60_000).to_bytes(4, "big") * 2 + file[place + 8 :]
    with pytest.raises(RequestError, match="60000 x 60000") as caught:
        open_picture(huge, CONFIG)
    assert caught.value.status == 413
    with pytest.raises(RequestError, match=f"expected a complete {name} picture"):
        open_picture(file[: len(file) // 2], CONFIG)


@pytest.mark.parametrize(("name", "package"), [("heic", "pillow-heif"), ("dicom", "pydicom")])
def test_what_is_missing_stops_the_load_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    """With the command that installs it, when the model loads, and not for the first picture."""
    monkeypatch.setattr(formats, "find_spec", lambda _: None)
    listed: Any = ["png", name]
    with pytest.raises(ConfigError, match=rf"formats: {name} needs {package}.*pip install 'camserve\[{name}\]'"):
        camserve.Model(object(), formats=listed)
    monkeypatch.setattr("PIL.features.check", lambda _: False)
    assert "avif needs Pillow 11.3" in find_missing(["avif"])
    assert not find_missing(["jpeg", "png"])
