"""The inspector page shows the picture that the model got: turned, transparent or in whatever format it comes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import requests
from PIL import Image
from playwright.sync_api import Route
from tests.support.browser import Visit, Visitor, data_file, decoded, downloaded, set_range
from tests.support.build import encoded, noise
from tests.support.processes.waiting import HANG

from camserve.tools.commands.serve import Server

pytestmark = pytest.mark.live

ORIENTATION = 0x0112


def _halves() -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (96, 64), "blue")
    picture.paste("red", (0, 0, 48, 64))
    return picture


def _turned(form: str, orientation: int) -> bytes:
    """The halves, with an order to turn them."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = "a camera"
    return bytes(encoded(_halves(), form, quality=95, exif=exif))


def _transparent() -> bytes:
    pixels = np.dstack([noise(72, 64), np.tile(np.linspace(0, 255, 72, dtype=np.uint8), (64, 1))])
    return bytes(encoded(Image.fromarray(pixels, "RGBA")))


FORMS = {
    "jpeg that says it is upside down": lambda: _turned("JPEG", 3),
    "jpeg that says it lies on its side": lambda: _turned("JPEG", 6),
    "png that says it is upside down": lambda: _turned("PNG", 3),
    "webp that says it is upside down": lambda: _turned("WEBP", 3),
    "png with transparency": _transparent,
    "png of 16-bit grey": lambda: bytes(
        encoded(Image.fromarray(np.linspace(0, 65535, 64 * 72).reshape(64, 72).astype(np.uint16)))
    ),
    "tiff": lambda: bytes(encoded(noise(72, 64), "TIFF")),
    "gif": lambda: bytes(encoded(Image.fromarray(noise(72, 64)).quantize(16), "GIF")),
    "webp": lambda: bytes(encoded(noise(72, 64), "WEBP", lossless=True)),
    "bmp": lambda: bytes(encoded(noise(72, 64), "BMP")),
}


def difference(visit: Visitor, live: Server, content: bytes, wanted: bytes | None = None) -> float:
    """How far what the page draws at opacity 0 is from what the server draws, in levels."""
    page = visit().explain(data_file(content, "picture"), "hostile")
    headers = {"Accept": "image/png", "X-Explain-Opacity": "0"}
    answer = requests.post(f"{live.url}/explanations/hostile", data=wanted or content, headers=headers, timeout=HANG).content
    set_range(page, "#opacity", 0)
    return float(np.abs(decoded(downloaded(page, "#png")) - decoded(answer)).max())


@pytest.mark.parametrize("form", FORMS)
def test_the_page_shows_the_picture_that_the_model_got(visit: Visitor, live: Server, form: str) -> None:
    """At opacity 0 the page draws the picture as the server does: unturned, without transparency, whatever the format."""
    assert difference(visit, live, FORMS[form]()) <= 4


def test_a_picture_is_turned_where_the_archive_says_so(visit: Visitor, live: Server) -> None:
    """With `exif` the page shows it turned, as such an archive's model gets it."""

    def such(home: str = live.url) -> Visit:
        tour = visit(home)

        def turning(route: Route) -> None:
            answer = route.fetch()
            route.fulfill(response=answer, body=answer.text().replace('"exif":false', '"exif":true'))

        tour.page.route("**/explanations/*", lambda route: turning(route) if route.request.method == "GET" else route.continue_())
        return tour

    content = _turned("JPEG", 3)
    turned = Image.open(io.BytesIO(content)).rotate(180)
    assert difference(such, live, content, bytes(encoded(turned))) <= 4


def test_a_rendering_that_is_too_large_is_asked_for_with_some_loss(visit: Visitor, live: Server) -> None:
    """What the browser cannot open is drawn by the server; where its PNG is larger than an answer may be, as JPEG."""
    tour = visit()
    tour.expected = "status of 413"
    refused: list[str] = []

    def refuse(route: Route) -> None:
        if route.request.headers["accept"] != "image/png":
            route.continue_()
            return
        refused.append(route.request.url)
        route.fulfill(status=413, json={"code": 413, "type": "ResponseTooLarge", "message": "too large"})

    tour.page.route("**/explanations/*", refuse)
    smooth = Image.fromarray(np.tile(np.linspace(0, 255, 72, dtype=np.uint8), (64, 1))).convert("RGB")
    page = tour.explain(data_file(encoded(smooth, "TIFF"), "picture.tiff"), "hostile")
    set_range(page, "#opacity", 0)
    drawn = decoded(downloaded(page, "#png"))
    assert len(refused) == 1
    assert np.abs(drawn[:, 8:64] - np.asarray(smooth, dtype=np.int16)[:, 8:64]).max() <= 12
