"""JPEGs decoded at a half, a quarter or an eighth: nearly the same input, of the same part, and the same answer around it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import ROOT
from tests.support import build
from tests.support.models import nets

import camserve
from camserve.core.config import Config
from camserve.core.messages import Call, Encoded, Item, Options
from camserve.pictures.bounds.limits import Quota
from camserve.pictures.decode import open_enough
from camserve.pictures.preprocess import Preprocess
from camserve.pipeline.prepare import Job, Pictures
from camserve.tools.reports.inspection.inputs import read_inputs

LARGE = (2400, 1600)
SETTINGS: dict[str, Any] = {**build.PLAIN, "resize": 64, "crop": 64, "layers": ["features"]}


def photograph(size: tuple[int, int] = LARGE) -> Image.Image:
    """A photograph of that size."""
    with Image.open(ROOT / "examples" / "coffee.jpg") as picture:
        return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    """Its file."""
    return bytes(build.encoded(picture, "JPEG", quality=92, **options))


@pytest.mark.parametrize(
    ("size", "decoded"),
    [((4032, 3024), (1008, 756)), ((2400, 1600), (1200, 800)), ((1025, 1024), (513, 512)), ((1023, 1022), (1023, 1022))],
)
def test_at_least_twice_of_what_the_model_gets_is_decoded(size: tuple[int, int], decoded: tuple[int, int]) -> None:
    """The smallest of the sizes that libjpeg has, and the whole picture's size beside it."""
    small, whole, _ = open_enough(jpeg(Image.new("RGB", size, "red")), Config(), enough=Preprocess(Config()).enough)

    assert (small.size, whole) == (decoded, size)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_whole_size_is_that_of_the_upright_picture(orientation: int) -> None:
    """Where the archive turns pictures; else of the picture as it is stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(Image.new("RGB", LARGE), exif=exif)
    upright = LARGE if orientation < 5 else LARGE[::-1]

    for config, size in ((Config(exif=True), upright), (Config(), LARGE)):
        small, whole, _ = open_enough(data, config, enough=Preprocess(config).enough)
        assert whole == size
        assert small.size == (size[0] // 2, size[1] // 2)


def test_what_is_enough_is_told_of_the_upright_picture() -> None:
    """A low and wide input keeps little of the height of a picture that is stored on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    config = Config.from_mapping({"resize": [96, 320], "crop": None, "exif": True})
    data = jpeg(Image.new("RGB", (768, 2560)), exif=exif)  # 2560 x 768, upright

    small, whole, _ = open_enough(data, config, enough=Preprocess(config).enough)

    assert (small.size, whole) == ((640, 192), (2560, 768))


@pytest.mark.parametrize("kind", ["PNG", "WebP", "TIFF", "BMP"])
@pytest.mark.parametrize("turned", [False, True])
def test_other_formats_are_decoded_whole(kind: str, turned: bool) -> None:
    """There it saves nothing, or is not to be had. Pillow itself turns TIFFs, and a BMP does not say how it is stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = build.encoded(Image.new("RGB", (1200, 900), "red"), kind, **({"exif": exif} if turned else {}))
    wanted = (900, 1200) if turned and kind != "BMP" else (1200, 900)

    picture, whole, part = open_enough(data, Config(exif=True), enough=lambda *_: (10, 10))

    assert (picture.size, whole, part) == (wanted, wanted, None)


@pytest.mark.parametrize("size", [(2400, 1600), (2411, 1613), (1613, 2411)])
@pytest.mark.parametrize("settings", [{}, {"fit": "pad", "crop": None}, {"resize": [96, 320], "crop": None}])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}], ids=["usual", "4:4:4", "progressive"])
def test_the_input_is_nearly_that_of_the_whole_picture(
    size: tuple[int, int], settings: dict[str, object], options: dict[str, object]
) -> None:
    """Of the same shape, and off by less than half a level in 255 on average, whatever the sides leave over."""
    config = Config.from_mapping({"mean": [0, 0, 0], "std": [1, 1, 1], **settings})
    steps = Preprocess(config)
    data = jpeg(photograph(size), **options)
    small, whole, part = open_enough(data, config, enough=steps.enough)

    given, expected = steps(small, whole, part), steps(open_enough(data, config).picture)

    assert small.size != whole
    assert_alike(given, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_lies_where_the_whole_one_does(orientation: int) -> None:
    """What libjpeg's rounding leaves over lies on other sides then."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    config = Config.from_mapping({"mean": [0, 0, 0], "std": [1, 1, 1], "exif": True})
    steps = Preprocess(config)
    data = jpeg(photograph((3601, 3593)), exif=exif)  # an eighth of either is one pixel more, nearly all of it left over

    given = steps(*open_enough(data, config, enough=lambda *_: (448, 448)))

    assert_alike(given, steps(open_enough(data, config).picture))


def assert_alike(given: torch.Tensor, expected: torch.Tensor) -> None:
    """They are of the same shape, and off by less than half a level in 255 on average."""
    assert given.shape == expected.shape
    assert (given - expected).abs().mean() < 0.5 / 255
    assert torch.quantile((given - expected).abs(), 0.99) < 4 / 255


@pytest.mark.parametrize("settings", [{}, {"channels": 1}], ids=["colour", "grey"])
def test_a_request_gets_the_input_of_the_whole_picture(settings: dict[str, object]) -> None:
    """Also of a long one, whose sides leave over so much that what is decoded would become another shape."""
    config = Config.from_mapping({"resize": 64, "crop": None, "fast_jpeg": True, **settings})
    steps = Preprocess(config)
    data = jpeg(photograph((4107, 1041)).convert("L" if settings else "RGB"))
    expected = steps(open_enough(data, config)[0])
    job = Job(0, Item(Encoded(data), Options((), "gradcam", "top", "jet", 0.4)), explain=False)

    Pictures(config, steps).prepare(job, Quota(0))

    assert job.size == (4107, 1041)
    assert job.input.shape == expected.shape != steps(open_enough(data, config, enough=steps.enough)[0]).shape
    assert 0 < (job.input - expected).abs().mean() < 0.02


def test_steps_of_others_get_the_whole_picture() -> None:
    """And it alone: what they keep of it is not known."""
    sizes = []

    def prepare(picture: Image.Image) -> torch.Tensor:
        sizes.append(picture.size)
        return torch.from_numpy(np.asarray(picture.resize((64, 64)), np.float32).transpose(2, 0, 1) / 255)

    class Alone(Preprocess):
        def __call__(self, picture: Image.Image) -> torch.Tensor:  # type: ignore[override]
            return prepare(picture)

    for steps, fast in ((prepare, True), (Alone(Config.from_mapping(SETTINGS)), False)):
        model = camserve.Model(nets.net("pooled"), preprocess=steps, **{**SETTINGS, "fast_jpeg": fast})
        sizes.clear()
        answer(model, jpeg(photograph()))
        assert sizes == [LARGE]


def test_what_is_measured_is_what_is_served(tmp_path: Path) -> None:
    """A report of layers and methods rests on the same inputs."""
    config = Config.from_mapping({**SETTINGS, "fast_jpeg": True})
    steps = Preprocess(config)
    paths = [tmp_path / f"{side}.jpg" for side in (900, 901, 902, 903)]
    for path in paths:
        path.write_bytes(jpeg(photograph((1200, int(path.stem)))))

    found = read_inputs(paths, config, steps, say=pytest.fail).tensors

    for tensor, data in zip(found, map(Path.read_bytes, paths), strict=True):
        assert torch.equal(tensor, steps(*open_enough(data, config, enough=steps.enough)))
        assert not torch.equal(tensor, steps(open_enough(data, config)[0]))


@pytest.fixture(scope="module")
def models() -> tuple[camserve.Model, camserve.Model]:
    """The same network, as ever and with fast JPEGs."""
    module = nets.net("pooled")
    slow, fast = (camserve.Model(module, **{**SETTINGS, "fast_jpeg": each}) for each in (False, True))
    return slow, fast


def answer(model: camserve.Model, data: bytes, **headers: str) -> tuple[str, bytes]:
    """Its medium and its body."""
    (reply,) = model.run(
        [Call(True, {f"x-explain-{name.replace('_', '-')}": each for name, each in headers.items()}, {"body": data})]
    )
    assert reply.status == 200, reply.body
    return reply.content_type, bytes(reply.body)


def probabilities(told: dict[str, Any]) -> list[float]:
    """Of the classes, in order."""
    return [each["probability"] for each in told["classes"]]


def test_an_answer_speaks_of_the_whole_picture(models: tuple[camserve.Model, camserve.Model]) -> None:
    """Its size, its view and a box in it; the scores and the heatmap are nearly the same, and those of PNGs exactly."""
    data = jpeg(photograph())
    slow, fast = (json.loads(answer(each, data, inside="[600, 200, 1800, 1400]")[1]) for each in models)

    assert fast["image"] == slow["image"] == {"width": 2400, "height": 1600, "view": [400.0, 0.0, 2000.0, 1600.0]}
    assert probabilities(fast) == pytest.approx(probabilities(slow), abs=0.01)
    maps = [np.array(each["explanations"][0]["heatmap"]) for each in (slow, fast)]
    assert 1e-3 < np.abs(maps[0] - maps[1]).max() < 0.1, "the model got another input, and nearly the same"
    shares = [each["explanations"][0]["inside"]["share"] for each in (slow, fast)]
    assert shares[0] == pytest.approx(shares[1], abs=0.01)
    png = bytes(build.encoded(photograph((700, 500))))
    slow, fast = (json.loads(answer(each, png)[1]) for each in models)
    assert probabilities(fast) == pytest.approx(probabilities(slow), abs=1e-6)


def test_a_picture_is_drawn_on_in_full(models: tuple[camserve.Model, camserve.Model]) -> None:
    """And its scores are those of the answer without a picture."""
    data = jpeg(photograph((1500, 1000)))
    media, body = answer(models[1], data, format="png")
    explained, drawn = (json.loads(answer(models[1], data, **asked)[1]) for asked in ({}, {"overlay": "true"}))

    assert media == "image/png"
    with Image.open(io.BytesIO(body)) as overlay, Image.open(io.BytesIO(answer(models[0], data, format="png")[1])) as slow:
        assert overlay.size == (1500, 1000)
        assert np.abs(np.asarray(overlay, np.int16) - np.asarray(slow, np.int16)).mean() < 3
    assert drawn["classes"] == explained["classes"]
