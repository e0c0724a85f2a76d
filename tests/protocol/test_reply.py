"""Replies: JSON key for key, arrays, pictures, errors, and the limit."""

import base64
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.geometry import Rect
from camserve.core.labels import Labels
from camserve.core.messages import Answer, Encoded, Explanation, ImageInfo, Item, Media, ModelInfo, Options, Reply, Request, Score
from camserve.core.served import Served
from camserve.protocol.reply import Responder, write_error

MODEL = ModelInfo("cats", "1.0", "sha256:9f86d081884c")


def served(max_response_bytes: int) -> Served:
    """What a model of that limit offers."""
    return Served(Config(max_response_bytes=max_response_bytes), Labels(2), ("features",), MODEL)


RESPONDER = Responder(served(6_000_000))
OPTIONS = Options((), "gradcam++", "features", "viridis", 0.5)
F32 = [float(np.float32(value)) for value in (0.312, 0.289)]

CAT = Explanation(
    target=285,
    label="Egyptian cat",
    probability=F32[0],
    heatmap=np.array([[0, 0.12], [0.4, 1]], dtype=np.float32),
    range=(0.0, float(np.float32(0.00031))),
    region=Rect(93.958, 18.75, 225.501, 281.25),
    warnings=(),
)
ANSWER = Answer(
    classes=(Score(285, "Egyptian cat", F32[0]), Score(281, "tabby", F32[1])),
    explanations=(CAT,),
    image=ImageInfo(451, 300, Rect(93.958333, 18.75, 357.041667, 281.25)),
    method="gradcam++",
    layer="features",
)
FAILED = replace(CAT, target=281, label="tabby", range=None, region=None, warnings=("not_finite",))


def request(media: Media = "json", explain: bool = True) -> Request:
    """A plain request for one picture."""
    return Request("plain", explain, (Item(Encoded(b"x"), replace(OPTIONS, media=media)),))


def reply(answer: Answer, media: Media = "json", explain: bool = True) -> Reply:
    """The reply to a plain request."""
    return RESPONDER.reply(request(media, explain), [answer])


def test_predictions_are_the_stock_handlers() -> None:
    """The body is what the stock handler's dict is as JSON, compact: float32 widened, order kept, repeated labels merged."""
    scores = [("crane", 0.5), ("tench, Tinca tinca", 0.25), ("crane", 0.125), ("tête", 0.1)]
    answer = replace(ANSWER, classes=tuple(Score(i, name, float(np.float32(p))) for i, (name, p) in enumerate(scores)))
    written = reply(answer, explain=False)
    assert (written.status, written.content_type, dict(written.headers)) == (200, "application/json", {})
    assert written.body == b'{"crane":0.125,"tench, Tinca tinca":0.25,"t\\u00eate":0.10000000149011612}'


def test_a_handlers_own_predictions() -> None:
    """What a handler's own `postprocess` made is answered in place of the classes, and in explanations too."""
    answer = replace(ANSWER, predictions=["cat"])
    assert reply(answer, explain=False).body == b'["cat"]'
    assert json.loads(reply(answer).body)["predictions"] == ["cat"]


def test_explanation_key_for_key() -> None:
    """The JSON is the contract's example, byte for byte: order, two decimals for rectangles, short heatmaps."""
    expected = (
        '{"predictions":{"Egyptian cat":0.31200000643730164,"tabby":0.289000004529953},'
        '"classes":[{"index":285,"label":"Egyptian cat","probability":0.31200000643730164},'
        '{"index":281,"label":"tabby","probability":0.289000004529953}],'
        '"explanations":[{"target":285,"label":"Egyptian cat","probability":0.31200000643730164,'
        '"heatmap":[[0.0,0.12],[0.4,1.0]],"range":[0.0,0.00031],'
        '"region":[93.96,18.75,225.5,281.25],"warnings":[]}],'
        '"image":{"width":451,"height":300,"view":[93.96,18.75,357.04,281.25]},'
        '"method":"gradcam++","layer":"features","model":"cats","version":"1.0","weights":"sha256:9f86d081884c"}'
    )
    written = reply(ANSWER)
    assert written.body.decode() == expected
    assert (written.status, written.content_type, dict(written.headers)) == (200, "application/json", {})


def test_overlay_tensor_and_failed_map() -> None:
    """An overlay is a data: URL; a tensor's image and region, and the range of a map that is not finite, are null."""
    answer = replace(ANSWER, image=None, explanations=(replace(CAT, overlay=b"\x89PNG"), FAILED))
    body = json.loads(reply(answer).body)
    assert body["image"] is None
    first, second = body["explanations"]
    assert first["overlay"] == "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
    assert (second["range"], second["region"], second["warnings"]) == (None, None, ["not_finite"])
    assert "overlay" not in second
    unknown = replace(ANSWER, image=ImageInfo(3, 2, None))
    assert json.loads(reply(unknown).body)["image"] == {"width": 3, "height": 2, "view": None}


def test_array() -> None:
    """`x-npy` is NumPy's format 1.0, float32 `[targets, h, w]` in row-major order; headers say the rest."""
    transposed = replace(CAT, heatmap=np.arange(6, dtype=np.float32).reshape(3, 2).T)
    written = reply(replace(ANSWER, explanations=(transposed, replace(transposed, target=281))), "npy")
    assert written.content_type == "application/x-npy"
    assert written.body[:8] == b"\x93NUMPY\x01\x00"
    array = np.load(io.BytesIO(written.body), allow_pickle=False)
    assert (array.dtype, array.shape, array.flags.c_contiguous) == (np.dtype("<f4"), (2, 2, 3), True)
    np.testing.assert_array_equal(array[1], transposed.heatmap)
    assert dict(written.headers) == {
        "x-explain-target": "[285,281]",
        "x-explain-range": "[[0.0,0.00031],[0.0,0.00031]]",
        "x-explain-view": "[93.96,18.75,357.04,281.25]",
    }


@pytest.mark.parametrize("media", ["png", "jpeg", "webp"])
def test_picture(media: Media) -> None:
    """A picture is sent as it was rendered; the headers say target, range, view and scale."""
    written = reply(replace(ANSWER, picture=b"picture", scale=0.25), media)
    assert (written.status, written.content_type, written.body) == (200, f"image/{media}", b"picture")
    assert dict(written.headers) == {
        "x-explain-target": "285",
        "x-explain-range": "[0.0,0.00031]",
        "x-explain-view": "[93.96,18.75,357.04,281.25]",
        "x-explain-scale": "0.25",
    }


def test_headers_of_a_failed_map_and_a_tensor() -> None:
    """What there is not is null."""
    written = reply(replace(ANSWER, image=None, explanations=(FAILED,)), "npy")
    assert (written.headers["x-explain-range"], written.headers["x-explain-view"]) == ("null", "null")
    written = reply(replace(ANSWER, explanations=(CAT, FAILED)), "npy")
    assert written.headers["x-explain-range"] == "[[0.0,0.00031],null]"


def test_a_picture_that_nobody_rendered_is_our_fault() -> None:
    """It is no `RequestError`: the pipeline makes it a 500."""
    with pytest.raises(ValueError, match="no picture"):
        reply(ANSWER, "png")


LIMITED: list[tuple[Request, str]] = [
    (request(), "format npy"),
    (request(explain=False), "format npy"),
    (request("npy"), "fewer targets"),
    (request("png"), "jpeg or webp"),
    (replace(request(), protocol="v1"), "fewer instances"),
    (replace(request(), protocol="v2"), "binary outputs"),
]


@pytest.mark.parametrize(("asked", "way_out"), LIMITED)
def test_response_too_large(asked: Request, way_out: str) -> None:
    """A body one byte beyond the limit is a 413 that names both sizes and a way out; at the limit it is sent."""
    answer = replace(ANSWER, picture=b"picture" * 20)
    size = len(RESPONDER.reply(asked, [answer]).body)
    assert Responder(served(size)).reply(asked, [answer]).status == 200
    with pytest.raises(RequestError) as caught:
        Responder(served(size - 1)).reply(asked, [answer])
    assert (caught.value.status, caught.value.kind) == (413, "ResponseTooLarge")
    assert f"takes {size} bytes and the limit is {size - 1}" in caught.value.message
    assert way_out in caught.value.message


def test_failure() -> None:
    """An error has TorchServe's own shape, in ASCII on one line, whatever its message holds."""
    written = write_error(RequestError(406, "NotAcceptable", 'é "x"\r\n<script>\ud800'))
    assert (written.status, written.content_type, dict(written.headers)) == (406, "application/json", {})
    assert written.body == b'{"code":406,"type":"NotAcceptable","message":"\\u00e9 \\"x\\"\\r\\n<script>\\ud800"}'


@given(st.text() | st.sampled_from(["\ud800", "a\r\nb: c", "<script>", 'x","y"']), st.sampled_from(["json", "npy", "png"]))
def test_any_label(label: str, media: Media) -> None:
    """No label breaks a body or a header: JSON parses back to it, headers stay ASCII on one line."""
    answer = replace(ANSWER, classes=(Score(0, label, 1.0),), explanations=(replace(CAT, label=label),), picture=b"x")
    written = reply(answer, media)
    assert all(value.isascii() and value.isprintable() for value in written.headers.values())
    assert written.content_type.isascii()
    if media == "json":
        body: dict[str, Any] = json.loads(written.body)
        assert written.body.isascii()
        assert body["predictions"] == {label: 1.0}
        assert body["explanations"][0]["label"] == body["classes"][0]["label"] == label


def test_nothing_that_is_not_a_number_is_sent() -> None:
    """NaN and Infinity are our fault, not JSON: they raise instead of being written."""
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            reply(replace(ANSWER, classes=(Score(0, "x", value),)), explain=False)
