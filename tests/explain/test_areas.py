"""What of a map lies inside a box or a mask, against a literal sum over the original picture's pixels, however it was prepared."""

from __future__ import annotations

import base64
import functools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.support.build import encoded, noise
from torch import nn

from camserve.core.geometry import Rect
from camserve.core.messages import Call, Explanation
from camserve.explain.areas import measure_inside, weigh_cells
from camserve.pipeline.model import Model
from camserve.tools.client.result import read_result

FINE = 8
"""Into how many parts the oracle divides each side of a pixel."""

Floats = NDArray[np.float64]
BRIGHT: dict[str, Any] = {"layers": ["1"], "monitor": False, "mean": [0.0] * 3, "std": [1.0] * 3, "method": "gradcam"}
PREPARED: dict[str, dict[str, Any]] = {
    "crop": {"resize": 64, "crop": 48},
    "squash": {"resize": [48, 80], "crop": None},
    "letterbox": {"resize": 64, "crop": 64, "fit": "pad", "fill": 0.5},
    "crop that pads": {"resize": 40, "crop": 64},
    "as it is": {"resize": None, "crop": None},
}


def drawn(values: NDArray[Any], view: Rect, x: NDArray[Any], y: NDArray[Any]) -> Floats:
    """The map at points of the picture, as it is drawn: bilinear between the centres of cells, constant beyond the outer ones."""
    rows, columns = values.shape
    u = np.clip((x - view.left) / (view.right - view.left) * columns - 0.5, 0, columns - 1)
    v = np.clip((y - view.top) / (view.bottom - view.top) * rows - 0.5, 0, rows - 1)
    left, top = u.astype(int), v.astype(int)
    right, below = np.minimum(left + 1, columns - 1), np.minimum(top + 1, rows - 1)
    across, down = u - left, v - top
    upper = (1 - across) * values[top, left] + across * values[top, right]
    lower = (1 - across) * values[below, left] + across * values[below, right]
    found: Floats = (1 - down) * upper + down * lower
    return found


def of_cells(values: NDArray[Any], view: Rect, x: NDArray[Any], y: NDArray[Any]) -> Floats:
    """The map at points of the picture: the value of the cell that each lies in."""
    rows, columns = values.shape
    u = ((x - view.left) / (view.right - view.left) * columns).astype(int)
    v = ((y - view.top) / (view.bottom - view.top) * rows).astype(int)
    found: Floats = values[v, u].astype(np.float64)
    return found


def summed(values: NDArray[Any], view: Rect, inside: Any) -> float:
    """The share of a map where `inside(x, y)` says so, point by point over all that the model saw."""
    step = 1 / FINE
    xs = np.arange(np.floor(view.left), np.ceil(view.right), step) + step / 2
    ys = np.arange(np.floor(view.top), np.ceil(view.bottom), step) + step / 2
    x, y = np.meshgrid(xs[(xs > view.left) & (xs < view.right)], ys[(ys > view.top) & (ys < view.bottom)])
    found = of_cells(values, view, x, y)
    return float((found * inside(x, y)).sum() / found.sum())


def within(box: Rect, size: tuple[int, int]) -> Any:
    """Whether a point lies in a box and on the picture."""
    across, down = (max(0, box.left), min(size[0], box.right)), (max(0, box.top), min(size[1], box.bottom))
    return lambda x, y: (across[0] <= x) & (x < across[1]) & (down[0] <= y) & (y < down[1])


@pytest.mark.parametrize(
    ("grid", "view", "size"),
    [
        ((7, 7), Rect(4.25, 0, 26.5, 20), (32, 20)),
        ((2, 5), Rect(0, 0, 24, 30), (24, 30)),
        ((4, 3), Rect(-6, 0, 26, 16), (20, 16)),
        ((1, 1), Rect(0, -4, 12, 16), (12, 12)),
    ],
)
@pytest.mark.parametrize("box", [Rect(3, 2, 11, 9), Rect(0, 0, 12, 12), Rect(5.25, 3.5, 11.75, 11), Rect(-1, 4, 2.5, 13)])
def test_a_share_is_the_sum_over_points(grid: tuple[int, int], view: Rect, size: tuple[int, int], box: Rect) -> None:
    """Boxes that cut cells, leave the picture, and lie in what the model did not see."""
    heatmap = np.random.default_rng(3).random(grid, np.float32)
    explanation = Explanation(0, "a", 0.5, heatmap, (0.25, 1.25), None)

    (found,) = measure_inside([explanation], box, view, size)

    assert found.inside is not None
    assert found.inside.share == pytest.approx(summed(heatmap + 0.25, view, within(box, size)), abs=0.004)
    assert found.inside.area == pytest.approx(summed(np.ones(grid), view, within(box, size)), abs=0.004)


def test_shares_of_parts_add_up_and_a_mask_of_a_box_is_the_box() -> None:
    """Exactly. What lies in the padding is inside of nothing."""
    view, size, grid = Rect(-5, 0, 45, 30), (40, 30), (6, 10)
    mask = np.zeros((30, 40), bool)
    mask[4:19, 7:31] = True
    box = weigh_cells(Rect(7, 4, 31, 19), view, size, grid)

    assert weigh_cells(mask, view, size, grid) == pytest.approx(box, abs=1e-12)
    assert weigh_cells(~mask, view, size, grid) + box == pytest.approx(
        weigh_cells(Rect(-9, -9, 99, 99), view, size, grid), abs=1e-12
    )
    assert weigh_cells(Rect(-9, -9, 99, 99), view, size, grid).sum() == pytest.approx(6 * 10 * 40 / 50)


def test_a_map_that_says_nothing_has_nothing_inside() -> None:
    """Zeros that stand for a constant or infinite map are no map."""
    zeros = np.zeros((3, 3), np.float32)
    silent = Explanation(0, "a", 0.5, zeros, None, None, ("not_finite",))

    assert measure_inside(
        [silent, replace(silent, range=(1.0, 1.0), warnings=("constant",))], Rect(0, 0, 5, 5), Rect(0, 0, 9, 9), (9, 9)
    ) == (
        silent,
        replace(silent, range=(1.0, 1.0), warnings=("constant",)),
    )


def bright(**settings: Any) -> Model:
    """A classifier of brightness, in cells of eight pixels: its map of class 0 is each cell's mean. One model for all tests."""
    return _open_bright(json.dumps(settings, sort_keys=True))


@functools.cache
def _open_bright(settings: str) -> Model:
    cells, head = nn.Conv2d(3, 1, 8, stride=8, bias=False), nn.Linear(1, 2)
    with torch.no_grad():
        cells.weight.fill_(1 / 192)
        head.weight.copy_(torch.tensor([[4.0], [-1.0]]))
        head.bias.zero_()
    net = nn.Sequential(cells, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return Model(net.eval(), labels=["bright", "dark"], **{**BRIGHT, **json.loads(settings)})


def spotted(width: int, height: int, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """A dark picture with some texture, bright in one box."""
    pixels = noise(width, height) // 64
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = 255
    return pixels


def asked(model: Model, file: bytes, area: Any, **further: Any) -> Any:
    """The answer about one area."""
    body = {"data": base64.b64encode(file).decode(), "inside": area, "target": "bright", **further}
    (reply,) = model.run([Call(True, {}, {"body": body})])
    assert reply.status == 200, reply.body
    return json.loads(reply.body)


@pytest.mark.parametrize("prepared", PREPARED.values(), ids=PREPARED)
@pytest.mark.parametrize(("width", "height"), [(96, 64), (40, 72)])
def test_the_share_in_an_answer_is_that_in_the_originals_pixels(prepared: dict[str, Any], width: int, height: int) -> None:
    """Cropped, squashed, in a letterbox, padded: by the answer's own view, and where the bright spot really is."""
    box = (width // 2, height // 4, width // 2 + 16, height // 4 + 24)
    other = (width // 2 - 20, height // 4, width // 2 - 4, height // 4 + 24)
    model, file = bright(**prepared), bytes(encoded(spotted(width, height, box)))

    answer, elsewhere = asked(model, file, box), asked(model, file, other)

    (explanation,) = answer["explanations"]
    low, high = explanation["range"]
    values = low + np.array(explanation["heatmap"]) * (high - low)
    expected = summed(values, Rect(*answer["image"]["view"]), within(Rect(*box), (width, height)))
    assert explanation["inside"]["share"] == pytest.approx(expected, abs=0.01)
    assert explanation["inside"]["peak"] is True
    assert explanation["inside"]["share"] > 2 * explanation["inside"]["area"]
    inside = elsewhere["explanations"][0]["inside"]
    assert inside["share"] < inside["area"]
    assert inside["peak"] is False


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_box_is_of_the_upright_picture_where_the_archive_turns_it_and_refused_where_it_does_not(orientation: int) -> None:
    """As it is seen: the answer's `image` says which size that is."""
    box = (8, 8, 32, 24)
    upright = Image.fromarray(spotted(80, 64, box))
    turned = upright.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = bytes(encoded(turned, exif=exif))

    answer = asked(bright(resize=None, crop=None, exif=True), file, box)

    assert (answer["image"]["width"], answer["image"]["height"]) == (80, 64)
    assert answer["explanations"][0]["inside"]["share"] > 0.85
    assert refused(bright(resize=None, crop=None), file, box).endswith("or package with exif: true")
    mask = np.zeros((turned.height, turned.width), np.uint8)
    mask[2:9, 3:20] = 1
    if orientation > 4:  # its size tells which way it lies
        asked(bright(resize=None, crop=None), file, base64.b64encode(bytes(encoded(Image.fromarray(mask)))).decode())
    else:
        assert "stored turned" in refused(
            bright(resize=None, crop=None), file, base64.b64encode(bytes(encoded(Image.fromarray(mask)))).decode()
        )


def test_a_tiff_is_turned_by_pillow_and_grey_of_16_bits_is_not() -> None:
    """So an area of the one is of the upright picture in any archive, and of the other it is refused."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(spotted(80, 64, (8, 8, 32, 24)))
    model = bright(resize=None, crop=None)

    answer = asked(model, bytes(encoded(upright.transpose(STORED[6]), form="TIFF", exif=exif)), (8, 8, 32, 24))

    assert (answer["image"]["width"], answer["explanations"][0]["inside"]["peak"]) == (80, True)
    deep = Image.fromarray(noise(80, 64)[..., 0].astype(np.uint16) * 257)
    assert "stored turned" in refused(model, bytes(encoded(deep, exif=exif)), [8, 8, 32, 24])


STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a picture of each EXIF orientation is stored, of the upright one."""


def refused(model: Model, file: bytes, area: Any, **further: Any) -> str:
    """The message of the 400."""
    (reply,) = model.run([Call(True, {}, {"body": {"data": base64.b64encode(file).decode(), "inside": area, **further}})])
    assert reply.status == 400, reply.body
    assert b"InvalidOption" in reply.body
    return str(json.loads(reply.body)["message"])


def text(mask: Image.Image | NDArray[np.uint8], **options: Any) -> str:
    """A mask in base64."""
    return base64.b64encode(bytes(encoded(mask, **options))).decode()


@pytest.mark.parametrize(
    ("area", "says"),
    [
        ([10, 10, 5, 20], "x + width"),
        ([0.1, 0.1, 0.6, 0.7], "shares of its sides"),
        ([0, 0, 160, 60], "at another size"),
        ([1, 2, 3], "expected a box"),
        ([1, 2, 3, True], "expected a box"),
        ([1, 2, 3, float("inf")], "expected a box"),
        (text(np.zeros((64, 80), np.uint8)), "black all over"),
        (text(np.full((80, 64), 255, np.uint8)), "80 x 64 pixels, got 64 x 80"),
        (text(np.arange(64 * 80, dtype=np.uint8).reshape(64, 80)), "more than two colours"),
        (text(np.full((64, 80, 4), 128, np.uint8)), "transparent"),
        (text(np.full((64, 80), 255, np.uint8), form="JPEG"), "a PNG in base64"),
        (text(np.full((64, 80), 255, np.uint8))[:80], "inside:"),
    ],
)
def test_an_area_that_can_be_read_in_two_ways_is_refused(area: Any, says: str) -> None:
    """Widths for edges, shares for pixels, another size, soft and transparent masks, damaged ones."""
    assert says in refused(bright(resize=None, crop=None), bytes(encoded(noise(80, 64))), area)


@pytest.mark.parametrize("way", ["1", "L", "RGB", "P", "labels"])
def test_masks_of_two_colours_are_read(way: str) -> None:
    """Black and white, labels 0 and 1, a palette, colours."""
    mask = np.zeros((64, 80), np.uint8)
    mask[8:24, 8:32] = 1 if way == "labels" else 255
    image = Image.fromarray(mask) if way == "labels" else Image.fromarray(mask).convert(way)
    model, file = bright(resize=None, crop=None), bytes(encoded(spotted(80, 64, (8, 8, 32, 24))))

    found = asked(model, file, text(image))["explanations"][0]["inside"]

    assert found == pytest.approx(asked(model, file, [8, 8, 32, 24])["explanations"][0]["inside"])


def test_each_call_of_a_batch_gets_its_own_area() -> None:
    """In a form, in headers, in JSON, with a mask, without any, of another size; as alone."""
    model = bright(resize=None, crop=None)
    small, large = bytes(encoded(spotted(80, 64, (8, 8, 32, 24)))), bytes(encoded(spotted(96, 40, (50, 8, 80, 32))))
    mask = np.zeros((64, 80), np.uint8)
    mask[:32] = 255
    calls = [
        Call(True, {"x-explain-inside": "[8, 8, 32, 24]"}, {"body": small}),
        Call(True, {}, {"data": small, "inside": b"[8,8,32,24]"}),
        Call(True, {}, {"data": small, "inside": bytes(encoded(mask))}),
        Call(True, {}, {"body": large}),
        Call(True, {"x-explain-inside": "[0, 0, 96, 40]", "x-explain-target": "[0, 1]"}, {"body": large}),
        Call(True, {"x-explain-inside": "[90, 0, 120, 40]"}, {"body": large}),
        Call(False, {"x-explain-inside": "nonsense"}, {"body": large}),
    ]

    replies = model.run(calls)

    assert [reply.status for reply in replies] == [200, 200, 200, 200, 200, 400, 200]
    answers = [json.loads(reply.body) for reply in replies]
    assert answers[0]["explanations"] == answers[1]["explanations"]
    assert answers[2]["explanations"][0]["inside"] != answers[1]["explanations"][0]["inside"]
    assert "inside" not in answers[3]["explanations"][0]
    whole, dark = answers[4]["explanations"]
    assert whole["inside"] == {"share": 1.0, "area": 1.0, "peak": True}
    assert (dark["inside"], dark["warnings"]) == (None, ["zero"])
    for call, reply in zip(calls, replies, strict=True):
        assert model.run([call])[0].body == reply.body


def test_pictures_arrays_and_v2_say_what_lies_inside() -> None:
    """Headers beside them; V2 as tensors, which need the parameter."""
    model, file = bright(resize=None, crop=None), bytes(encoded(spotted(80, 64, (8, 8, 32, 24))))
    told = asked(model, file, [8, 8, 32, 24], contours=[0.5])["explanations"][0]
    headers = {"x-explain-inside": "[8, 8, 32, 24]", "x-explain-target": "bright"}
    for accept in ("image/png", "application/x-npy"):
        (reply,) = model.run([Call(True, {**headers, "accept": accept}, {"body": file})])
        assert json.loads(reply.headers["x-explain-inside"]) == told["inside"]
    data = {"name": "x", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(file).decode()]}
    parameters = {"inside": "[8, 8, 32, 24]", "contours": 0.5, "target": "bright"}

    (reply,) = model.run([Call(True, {}, {"body": {"inputs": [data], "parameters": parameters}})])
    outputs = {each["name"]: each["data"] for each in json.loads(reply.body)["outputs"]}
    (plain,) = model.run([Call(True, {}, {"body": {"inputs": [data]}})])
    (missing,) = model.run([Call(True, {}, {"body": {"inputs": [data], "outputs": [{"name": "peak"}]}})])

    assert outputs["inside"] == [pytest.approx(told["inside"]["share"])]
    assert (outputs["area"], outputs["peak"]) == ([pytest.approx(told["inside"]["area"])], [1])
    assert json.loads(outputs["contours"][0]) == told["contours"]
    assert not {"inside", "area", "peak", "contours"} & {each["name"] for each in json.loads(plain.body)["outputs"]}
    assert b"the output peak needs the parameter inside" in missing.body


def test_a_tensor_and_an_unknown_view_have_no_places() -> None:
    """400: a tensor has no picture, and of a preparation of one's own it is not known which part the model sees."""
    model = bright(resize=None, crop=None)
    tensor = np.zeros((3, 64, 64)).tolist()
    for option in ({"inside": [1, 1, 9, 9]}, {"contours": 0.5}):
        (reply,) = model.run([Call(True, {}, {"body": {"data": tensor, **option}})])
        assert (reply.status, json.loads(reply.body)["type"]) == (400, "NoPicture")

    own = Model(network(), preprocess=to_tensor, **BRIGHT)
    assert "steps of its own" in refused(own, bytes(encoded(noise(80, 64))), [1, 1, 9, 9])


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """A preparation of one's own."""
    return torch.from_numpy(np.asarray(picture.resize((64, 64))).transpose(2, 0, 1) / np.float32(255))


def network() -> nn.Module:
    """A network like that of `bright`."""
    torch.manual_seed(0)  # of other weights the scores may add up to the same for every picture
    return nn.Sequential(nn.Conv2d(3, 1, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)).eval()


def test_the_library_and_the_client_read_the_same() -> None:
    """From an answer, and in Python, with a box and with an array as a mask."""
    model, box = bright(resize=None, crop=None), (8, 8, 32, 24)
    pixels = spotted(80, 64, box)
    mask = np.zeros((64, 80), bool)
    mask[8:24, 8:32] = True

    (explanation,), (masked,) = model.explain(pixels, inside=box, contours=(0.3, 0.6)), model.explain(pixels, inside=mask)
    result = read_result(asked(model, bytes(encoded(pixels)), box, contours=[0.3, 0.6]))

    assert explanation.inside is not None
    assert result.explanations[0].inside is not None
    assert result.explanations[0].inside.share == pytest.approx(explanation.inside.share)
    assert masked.inside is not None
    assert masked.inside.share == pytest.approx(explanation.inside.share)
    assert result.explanations[0].contours == explanation.contours
