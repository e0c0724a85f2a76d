"""Requests as clients send them, good and bad, as TorchServe hands them to a worker."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from tests.support.build import noise

from camserve.tools.archive.archive import Row

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


def targets(good: bool) -> st.SearchStrategy[Any]:
    """Indices and labels of seven classes."""
    one: st.SearchStrategy[Any] = st.one_of(st.integers(0, 6), st.sampled_from([LABELS["1"], LABELS["3"].upper(), LABELS["5"]]))
    if not good:
        one = st.one_of(one, st.sampled_from([-1, 7, 1.5, True, None, "bright", "brihgt", "0", ""]))
    return st.one_of(one, st.lists(one, min_size=1 if good else 0, max_size=4))


def options(good: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Options as JSON spells them; of the bad ones some are good."""
    known: dict[str, st.SearchStrategy[Any]] = {
        "method": st.sampled_from(["gradcam++", "gradcam", "hirescam", "layercam", "xgradcam", "contrast"]),
        "layer": st.just("features"),
        "format": st.sampled_from(["json", "png", "jpeg", "webp", "npy"]),
        "overlay": st.booleans(),
        "colormap": st.sampled_from(["viridis", "jet", "gray"]),
        "opacity": st.floats(0, 1),
    }
    target = st.fixed_dictionaries({}, optional={"target": targets(good)})
    which = st.one_of(target, st.fixed_dictionaries({"top_k": st.integers(1 if good else 0, 9)}))
    fine = st.builds(lambda one, other: one | other, which, st.fixed_dictionaries({}, optional=known))
    name = st.sampled_from([*known, "target", "top_k", "traget", "X", "data2", ""])
    return fine if good else st.one_of(fine, st.dictionaries(name, anything(), min_size=1, max_size=2))


def texts(chosen: dict[str, Any]) -> dict[str, str]:
    """Options as headers and form fields spell them."""
    spelt = {name: value if isinstance(value, str) else json.dumps(value) for name, value in chosen.items()}
    return {name: value.encode("utf-8", "replace").decode() for name, value in spelt.items()}


def headers(good: bool) -> st.SearchStrategy[dict[str, str]]:
    """Headers, options among them."""
    named = options(good).filter(lambda chosen: not good or not re.search("[^ -~]", repr(chosen.get("target"))))
    asked = named.map(lambda chosen: {f"X-Explain-{name.replace('_', '-')}": text for name, text in texts(chosen).items()})
    accept = st.fixed_dictionaries({}, optional={"Accept": st.sampled_from(ACCEPTS if good else BAD_ACCEPTS)})
    others = st.dictionaries(
        st.sampled_from(["describe", "DESCRIBE", "url_path", "x-request-id", "Content-Type", "inference-header-content-length"]),
        st.sampled_from(["True", "False", "", "application/json", "multipart/form-data", "12", "-1", "x" * 300]),
        max_size=2,
    )
    harmless = st.sampled_from([{}, {"describe": "True"}, {"x-request-id": "1"}])
    return st.builds(
        lambda *parts: {name: value for part in parts for name, value in part.items()},
        asked,
        accept,
        harmless if good else others,
    )


def _kserve_options(good: bool) -> st.SearchStrategy[dict[str, Any]]:
    return options(good).map(
        lambda chosen: {name: value for name, value in chosen.items() if name not in ("format", "overlay")} if good else chosen
    )


def _v1(good: bool) -> st.SearchStrategy[dict[str, Any]]:
    fine = st.one_of(images(), st.builds(lambda image, chosen: {"data": image, **chosen}, images(), _kserve_options(good)))
    instances = st.lists(fine if good else st.one_of(fine, anything()), min_size=1 if good else 0, max_size=3)
    return st.fixed_dictionaries({"instances": instances}, optional={"signature_name": st.text(max_size=3)})


def _v2(good: bool) -> st.SearchStrategy[dict[str, Any]]:
    several = st.lists(pictures().map(encoded), min_size=1, max_size=3)
    text = several.map(lambda data: {"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": data})
    tensor = st.sampled_from(TENSORS).map(
        lambda one: {"name": "x", "shape": [1, *np.shape(one)], "datatype": "FP32", "data": [one]}
    )
    wrong = st.dictionaries(st.sampled_from(["name", "shape", "datatype", "data"]), anything())
    names = ["label", "probability"] if good else ["label", "heatmap", "view", "nothing"]
    parameters = _kserve_options(good).map(
        lambda chosen: {name: json.dumps(value) if isinstance(value, list) else value for name, value in chosen.items()}
    )
    return st.fixed_dictionaries(
        {"inputs": st.lists(st.one_of(text, tensor) if good else st.one_of(text, tensor, wrong), min_size=1, max_size=1)},
        optional={
            "parameters": st.one_of(parameters, st.just({"binary_data_output": True})),
            "id": st.text(max_size=5),
            "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(names)}), max_size=2),
        },
    )


def _json(good: bool) -> st.SearchStrategy[Any]:
    plain = st.builds(lambda image, chosen: {"data": image, **chosen}, images(), options(good))
    fine = st.one_of(plain, plain, _v1(good), _v2(good), st.sampled_from(TENSORS))
    return fine if good else st.one_of(fine, st.sampled_from(BAD_TENSORS), anything())


def _forms(good: bool) -> st.SearchStrategy[dict[str, Any]]:
    file = pictures().map(bytearray)
    text = images().filter(lambda one: isinstance(one, str))
    data = st.fixed_dictionaries({"data": st.one_of(file, text)})
    if not good:
        data = st.one_of(data, st.fixed_dictionaries({}, optional={"data": st.sampled_from(BROKEN).map(bytearray)}))
    chosen = options(good).map(lambda given: {name: bytearray(text.encode()) for name, text in texts(given).items()})
    return st.builds(lambda one, other: other | one, data, chosen)


def fields(good: bool) -> st.SearchStrategy[dict[str, Any]]:
    """The fields of a row: a body in one of its forms, or a form's."""
    value = _json(good)
    bodies = [
        pictures().map(bytearray),
        pictures().map(encoded),
        value,
        value.map(lambda each: bytearray(json.dumps(each).encode())),
    ]
    if not good:
        bodies += [st.sampled_from(BROKEN).map(bytearray), st.binary(max_size=30).map(bytearray), st.text(max_size=20)]
    return st.one_of(_forms(good), *(body.map(lambda each: {"body": each}) for body in bodies))


def rows() -> st.SearchStrategy[Row]:
    """One request, of either mode, about a picture for a model of seven classes with the layer `features`.

    Half of them have nothing wrong by themselves, though a header and a body together may.
    """
    good = st.one_of(
        st.builds(Row, fields(True), st.just({}), st.booleans()), st.builds(Row, _raw(), headers(True), st.booleans())
    )
    return st.one_of(
        good,
        good,
        st.builds(Row, fields(False), headers(True), st.booleans()),
        st.builds(Row, fields(True), headers(False), st.booleans()),
    )


def _raw() -> st.SearchStrategy[dict[str, Any]]:
    return pictures().map(lambda picture: {"body": bytearray(picture)})
