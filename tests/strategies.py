"""Requests as clients send them, good and bad, as TorchServe hands them to a worker."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from tests.build import noise

from camserve.tools.archive import Row

LABELS = {
    "0": "bright",
    "1": "one, two; three",
    "2": '"quoted" \\ {{facts}}',
    "3": "line\r\nx-explain-target: 0\r\n\r\nbreak",
    "4": "</script><script>alert(1)</script>",
    "5": "Weiß 猫 \u202e\u0000 \ud800",
    "6": "bright",
}
"""Labels that attack whoever writes, shows or sends them; two are the same."""

TYPES = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")


def _file(width: int, height: int, mode: str, form: str, seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(width, height, seed)).convert(mode).save(file, form)
    return file.getvalue()


PICTURES = (
    *(_file(80, 64, "RGB", form, seed) for seed, form in enumerate(TYPES)),
    _file(64, 200, "L", "PNG", 6),
    _file(31, 17, "P", "GIF", 7),
    _file(70, 90, "CMYK", "JPEG", 8),
    _file(1, 1, "RGBA", "PNG", 9),
    _file(300, 5, "RGB", "WEBP", 10),
)
BROKEN = (
    *(picture[: len(picture) // 2] for picture in PICTURES[:6]),
    *(picture[:20] for picture in PICTURES[:6]),
    *(b"no picture", b"\x00", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WEBP", b"@cat.jpg", b"data:,"),
)
TENSORS = tuple(
    np.random.default_rng(seed).uniform(size=shape).round(2).tolist() for seed, shape in enumerate([(3, 64, 64), (3, 40, 96)])
)
BAD_TENSORS: tuple[Any, ...] = ([], [[[]]], [[[1.0]]], TENSORS[0][:2], [[["1"]]] * 3, [[[float("nan")]]] * 3, [[[True]]] * 3)

ACCEPTS = ("*/*", "application/json", "image/png", "image/*;q=0.5, application/json;q=0.1", "application/x-npy", "image/webp")
BAD_ACCEPTS = ("text/csv", ";;;", "image/png;q=2", "text/html", "*/*;q=0", '"', "a" * 5000)


def encoded(picture: bytes) -> str:
    """Base64."""
    return base64.b64encode(picture).decode()


def pictures() -> st.SearchStrategy[bytes]:
    """A whole picture's file."""
    return st.sampled_from(PICTURES)


def images() -> st.SearchStrategy[Any]:
    """What a JSON key `data` may hold: base64, a data: URL, a tensor."""
    text = pictures().map(encoded)
    return st.one_of(text, text.map("data:image/png;base64,".__add__), st.sampled_from(TENSORS))


def anything() -> st.SearchStrategy[Any]:
    """Any JSON value."""
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
        max_leaves=6,
    )


def targets() -> st.SearchStrategy[Any]:
    """Indices and labels of seven classes, some of them wrong."""
    one = st.one_of(st.integers(-1, 7), st.sampled_from([*LABELS.values(), "BRIGHT", "brihgt", "0", ""]))
    return st.one_of(one, st.lists(one, max_size=4))


def options() -> st.SearchStrategy[dict[str, Any]]:
    """Options as JSON spells them, most of them good."""
    good: dict[str, st.SearchStrategy[Any]] = {
        "method": st.sampled_from(["gradcam++", "gradcam", "hirescam", "layercam", "xgradcam", "contrast"]),
        "layer": st.just("features"),
        "format": st.sampled_from(["json", "png", "jpeg", "webp", "npy"]),
        "overlay": st.booleans(),
        "colormap": st.sampled_from(["viridis", "jet", "gray"]),
        "opacity": st.floats(0, 1),
    }
    which = st.one_of(
        st.fixed_dictionaries({}, optional={"target": targets()}), st.fixed_dictionaries({"top_k": st.integers(0, 9)})
    )
    fine = st.builds(lambda one, other: one | other, which, st.fixed_dictionaries({}, optional=good))
    name = st.sampled_from([*good, "target", "top_k", "traget", "X", "data2", ""])
    return st.one_of(fine, fine, fine, st.dictionaries(name, anything(), min_size=1, max_size=2))


def texts(chosen: dict[str, Any]) -> dict[str, str]:
    """Options as headers and form fields spell them."""
    spelt = {name: value if isinstance(value, str) else json.dumps(value) for name, value in chosen.items()}
    return {name: value.encode("utf-8", "replace").decode() for name, value in spelt.items()}


def headers() -> st.SearchStrategy[dict[str, str]]:
    """Headers, options among them."""
    asked = options().map(lambda chosen: {f"X-Explain-{name.replace('_', '-')}": text for name, text in texts(chosen).items()})
    accept = st.fixed_dictionaries({}, optional={"Accept": st.one_of(st.sampled_from(ACCEPTS), st.sampled_from(BAD_ACCEPTS))})
    others = st.dictionaries(
        st.sampled_from(["describe", "DESCRIBE", "Content-Type", "url_path", "x-request-id", "inference-header-content-length"]),
        st.sampled_from(["True", "False", "", "application/json", "multipart/form-data", "12", "-1", "x" * 300]),
        max_size=2,
    )
    return st.builds(lambda *parts: {name: value for part in parts for name, value in part.items()}, asked, accept, others)


def _v1() -> st.SearchStrategy[dict[str, Any]]:
    instance = st.one_of(images(), st.builds(lambda image, chosen: {"data": image, **chosen}, images(), options()), anything())
    return st.fixed_dictionaries({"instances": st.lists(instance, max_size=3)}, optional={"signature_name": st.text(max_size=3)})


def _v2() -> st.SearchStrategy[dict[str, Any]]:
    several = st.lists(pictures().map(encoded), min_size=1, max_size=3)
    text = several.map(lambda data: {"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": data})
    tensor = st.sampled_from(TENSORS).map(
        lambda one: {"name": "x", "shape": [1, *np.shape(one)], "datatype": "FP32", "data": [one]}
    )
    wrong = st.dictionaries(st.sampled_from(["name", "shape", "datatype", "data"]), anything())
    outputs = st.lists(st.fixed_dictionaries({"name": st.sampled_from(["label", "heatmap", "view", "nothing"])}), max_size=2)
    return st.fixed_dictionaries(
        {"inputs": st.lists(st.one_of(text, tensor, wrong), min_size=1, max_size=1)},
        optional={
            "parameters": st.one_of(options(), st.just({"binary_data_output": True})),
            "id": st.text(max_size=5),
            "outputs": outputs,
        },
    )


def _json() -> st.SearchStrategy[Any]:
    plain = st.builds(lambda image, chosen: {"data": image, **chosen}, images(), options())
    return st.one_of(plain, plain, _v1(), _v2(), st.sampled_from(TENSORS), st.sampled_from(BAD_TENSORS), anything())


def _forms() -> st.SearchStrategy[dict[str, Any]]:
    field = st.one_of(
        pictures().map(bytearray), st.sampled_from(BROKEN).map(bytearray), images().filter(lambda one: isinstance(one, str))
    )
    data = st.fixed_dictionaries({}, optional={"data": field})
    chosen = options().map(lambda given: {name: bytearray(text.encode()) for name, text in texts(given).items()})
    return st.builds(lambda one, other: other | one, data, chosen)


def fields() -> st.SearchStrategy[dict[str, Any]]:
    """The fields of a row: a body in one of its forms, or a form's."""
    raw = st.one_of(
        *(pictures(), pictures(), st.sampled_from(BROKEN), st.binary(max_size=30), st.just(b"")),
        _json().map(lambda value: json.dumps(value).encode()),
    )
    text = st.one_of(pictures().map(encoded), st.text(max_size=20))
    whole = st.one_of(raw.map(bytearray), raw.map(bytearray), _json(), text).map(lambda body: {"body": body})
    return st.one_of(whole, whole, whole, _forms())


def rows() -> st.SearchStrategy[Row]:
    """One request, of either mode, about a picture for a model of seven classes with the layer `features`."""
    return st.builds(Row, fields(), headers(), st.booleans())
