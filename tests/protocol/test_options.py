"""Options: what each accepts, in JSON, in text and as V2 parameters."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest

from camserve.core.config import COLORMAPS, METHODS, Config, read_value
from camserve.core.errors import RequestError
from camserve.core.geometry import Rect
from camserve.core.labels import Labels
from camserve.core.messages import Options
from camserve.core.served import Served
from camserve.core.values import number
from camserve.pipeline.model import Model
from camserve.protocol import options
from camserve.protocol.openapi import schemas
from camserve.protocol.openapi.document import describe_api
from camserve.protocol.options import Given, Option, OptionReader, Spelling
from camserve.tools.client.client import Client
from camserve.tools.client.request import write_headers

NAMES = ("tench, Tinca tinca", "tabby", "Egyptian cat", "crane", "crane", "tête-bêche", "285")
LABELS = Labels(len(NAMES), {str(index): name for index, name in enumerate(NAMES)})
READER = OptionReader(Served(Config(max_targets=4, colormap="inferno", opacity=0.25), LABELS, ("layer4", "layer3")))


def read(values: dict[str, Any], spelling: Spelling = "json", accept: str | None = None, tensor: bool = False) -> Options:
    """The options that `values` spell."""
    return READER.read(READER.from_values(values, spelling), accept, tensor)


def refused(values: dict[str, Any], spelling: Spelling = "json", **kwargs: Any) -> RequestError:
    """The error that `values` are refused with."""
    with pytest.raises(RequestError) as caught:
        read(values, spelling, **kwargs)
    assert caught.value.status == 400
    assert caught.value.message.isprintable()
    return caught.value


def test_defaults() -> None:
    """Without any option the archive's configuration decides, and the one most probable class is explained."""
    expected = Options((), "gradcam++", "layer4", "inferno", 0.25, top_k=1, media="json", overlay=False)
    assert read({}) == READER.defaults == expected


@pytest.mark.parametrize(
    ("value", "targets"),
    [
        *((1, (1,)), (0, (0,)), (6, (6,)), (3.0, (3,)), ("tabby", (1,)), ("TABBY", (1,)), ("285", (6,)), ([2, 1], (2, 1))),
        *((["tabby", 1, "Tabby", 0], (1, 0)), ([5], (5,)), ("tench, Tinca tinca", (0,)), ("tête-bêche", (5,))),
    ],
)
def test_target_in_json(value: object, targets: tuple[int, ...]) -> None:
    """A number is an index, a string is a label even if it is made of digits, and each class is kept once, in order."""
    assert read({"target": value}).targets == targets


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        *(("1", (1,)), (" 2\n", (2,)), ("+3", (3,)), ("tabby", (1,)), ("[1, 0]", (1, 0)), ('["285", "tabby"]', (6, 1))),
        *((" [3.0] ", (3,)), (b"2", (2,)), (bytearray("tête-bêche".encode()), (5,)), ([1, "tabby"], (1,)), (4, (4,))),
        ("tench, Tinca tinca", (0,)),
    ],
)
def test_target_in_text(text: object, targets: tuple[int, ...]) -> None:
    """In headers and form fields a decimal integer is an index, `[...]` is a JSON list, and anything else a label."""
    assert read({"target": text}, "text").targets == targets


@pytest.mark.parametrize(("value", "targets"), [("[1, 0]", (1, 0)), ("285", (6,)), ("tabby", (1,)), (1, (1,)), ([0], (0,))])
def test_target_as_parameter(value: object, targets: tuple[int, ...]) -> None:
    """A V2 parameter is read as JSON is, but that a list is spelt as a JSON string."""
    assert read({"target": value}, "parameter").targets == targets


TARGETS = "target: expected a class index from 0 to 6, a label, or a list of 1 to 4 of them, got "


@pytest.mark.parametrize("value", [[], [0] * 5, [[1]], True, [True], None, 1.5, {}, [None], float("nan"), [float("inf")]])
@pytest.mark.parametrize("spelling", ["json", "parameter", "text"])
def test_bad_targets(value: object, spelling: Spelling) -> None:
    """No target, too many, and values that are neither index nor label are refused by what is accepted."""
    error = refused({"target": value}, spelling)
    assert error.kind == "InvalidOption"
    assert error.message.startswith(TARGETS)


@pytest.mark.parametrize("text", ["[", "[1,]", "[1 2]", "[" * 3000 + "]", "[NaN]", "[]", "[1,2,3,4,5]", b"\xff"])
def test_bad_target_texts(text: str | bytes) -> None:
    """Lists that are no JSON, and bytes that are no UTF-8, are refused the same way; an unclosed list is an unknown label."""
    error = refused({"target": text}, "text")
    if text == "[":
        assert error.kind == "UnknownLabel"
    else:
        assert (error.kind, error.message[: len(TARGETS)]) == ("InvalidOption", TARGETS)


@pytest.mark.parametrize("value", [-1, 7, 1e300, 10**3000])
def test_index_out_of_range(value: float) -> None:
    """An index that no class has is refused with the range, however large."""
    error = refused({"target": value})
    assert error.kind == "InvalidOption"
    assert "from 0 to 6" in error.message
    assert len(error.message) < 160


def test_labels() -> None:
    """A miss names the nearest labels, an ambiguous label its indices; a decimal index in text is never a label."""
    error = refused({"target": "egyptian cats"})
    assert error.kind == "UnknownLabel"
    assert '"Egyptian cat"' in error.message
    error = refused({"target": "Crane"})
    assert error.kind == "UnknownLabel"
    assert "3 or 4" in error.message
    assert refused({"target": "285"}, "text").kind == "InvalidOption"
    assert refused({"target": "9" * 5000}, "text").kind == "UnknownLabel"


VALUES: dict[str, dict[str, list[Any]]] = {
    "top_k": {"good": [1, 4, 2.0], "bad": [0, 5, -1, 1.5, True, "2", None, [1], float("nan"), 10**400]},
    "method": {"good": list(METHODS), "bad": ["GradCAM", "", None, 1, ["gradcam"], {}, "gradcam++ "]},
    "layer": {"good": ["layer3", "layer4"], "bad": ["layer2", "", None, 0, ["layer3"]]},
    "format": {"good": ["json", "png", "jpeg", "webp", "npy"], "bad": ["gif", "JSON", "image/png", None, 1, []]},
    "contours": {"good": [(0.5,), (0.2, 0.9)], "bad": [0, 1, "0.5", True, None, [], [0.5, "x"], [0.5] * 6, [float("nan")], {}]},
    "inside": {
        "good": [Rect(0, 1.5, 7, 9)],
        "bad": [None, 1, True, [], [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, 10**400], {}, [[1] * 4]],
    },
    "overlay": {"good": [True, False], "bad": ["true", 1, 0, None, [], "yes"]},
    "colormap": {"good": list(COLORMAPS), "bad": ["magma", None, 1, [], {}]},
    "opacity": {"good": [0, 1, 0.5, 1.0], "bad": [-0.1, 1.1, True, "0.5", None, float("nan"), float("inf"), 10**400, [0.5]]},
}
ACCEPTED = {
    "top_k": "a whole number from 1 to 4",
    "method": "gradcam++",
    "layer": "layer4 or layer3",
    "format": "json, png, jpeg, webp or npy",
    "contours": "a number from 0.01 to 0.99, or a list of 1 to 5 of them",
    "inside": "a box [left, top, right, bottom], or a mask: a PNG in base64",
    "overlay": "true or false",
    "colormap": "viridis",
    "opacity": "a number from 0 to 1",
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in VALUES for value in VALUES[name]["good"]])
def test_good_values(name: str, value: object) -> None:
    """Every value that the contract lists is taken, and arrives."""
    given = list(value) if isinstance(value, tuple) else list(vars(value).values()) if isinstance(value, Rect) else value
    assert getattr(read({name: given}), "media" if name == "format" else name) == value


@pytest.mark.parametrize("spelling", ["json", "text", "parameter"])
def test_an_alias_is_read_as_the_method_that_it_names(spelling: Spelling) -> None:
    """Finer-CAM is what its paper calls `contrast`; the archive's configuration takes it too."""
    assert read({"method": "finercam"}, spelling).method == read_value("method", "finercam") == "contrast"


@pytest.mark.parametrize("spelling", ["json", "parameter"])
@pytest.mark.parametrize(("name", "value"), [(name, value) for name in VALUES for value in VALUES[name]["bad"]])
def test_bad_values(name: str, value: object, spelling: Spelling) -> None:
    """Every other value is a 400 that names the option, what is accepted and what came; text is no number."""
    error = refused({name: value}, spelling)
    assert error.kind == "InvalidOption"
    assert error.message.startswith(f"{name}: expected {ACCEPTED[name]}")
    assert ", got " in error.message


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        *(("top_k", "3", 3), ("top_k", " +2 ", 2), ("overlay", "true", True), ("overlay", "False", False)),
        *(("opacity", "0.75", 0.75), ("opacity", "1", 1.0), ("opacity", ".5", 0.5), ("opacity", "5e-1", 0.5)),
        *(("method", "gradcam\n", "gradcam"), ("layer", b"layer3", "layer3"), ("colormap", bytearray(b"jet"), "jet")),
        *(
            ("contours", "0.5", (0.5,)),
            ("contours", " [0.5, 0.25,0.5] ", (0.5, 0.25)),
            ("inside", b"[1,2,3,4.5]", Rect(1, 2, 3, 4.5)),
        ),
        *(("format", "png", "png"), ("top_k", 3, 3), ("overlay", True, True), ("overlay", "TRUE ", True)),
    ],
)
def test_text_values(name: str, text: object, value: object) -> None:
    """Text spells numbers and flags too; a form's JSON part counts as JSON."""
    assert getattr(read({name: text}, "text"), "media" if name == "format" else name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("top_k", ""), ("top_k", "3.0"), ("top_k", "1_0"), ("top_k", "two"), ("top_k", "9" * 5000), ("top_k", b"\xff")),
        *(("overlay", "1"), ("overlay", "yes"), ("overlay", ""), ("opacity", "nan"), ("opacity", "inf"), ("opacity", "1_0")),
        *(("opacity", "1e999"), ("opacity", "half"), ("opacity", ""), ("method", "grad cam"), ("method", "gradcam\r\nx: y")),
        *(("opacity", "1" * 200_000 + "x"), ("opacity", "." + "1" * 200_000 + "x")),  # in an instant
        *(
            ("contours", "1_0"),
            ("contours", "[0.5"),
            ("contours", "[" * 100_000 + "]"),
            ("inside", "[1, 2, 3, NaN]"),
            ("inside", b"\xff"),
        ),
        *(("layer", ""), ("format", "html"), ("colormap", "hot"), ("top_k", "٣"), ("opacity", "٠")),
    ],
)
def test_bad_texts(name: str, text: object) -> None:
    """Text that spells nothing acceptable is refused like any other value, on one line."""
    error = refused({name: text}, "text")
    assert error.kind == "InvalidOption"
    assert error.message.startswith(f"{name}: expected {ACCEPTED[name]}")


def test_target_and_top_k_exclude_each_other() -> None:
    """Both together are a 400, whatever they say."""
    error = refused({"target": 1, "top_k": 1})
    assert (error.kind, error.message) == ("InvalidOption", "target, top_k: expected one of the two, got both")


def test_top_k_beyond_the_classes() -> None:
    """More classes than the model has are all of them."""
    assert (
        OptionReader(Served(Config(), Labels(2), ("a",))).read(READER.from_values({"top_k": 9}, "json"), None, False).top_k == 2
    )


@dataclass(frozen=True)
class Extended(Options):
    """Options with one more."""

    smoothing: float = 0.25


def test_a_new_option_is_one_row_and_one_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is accepted in each spelling, documented, and refused where it is wrong; nothing else has to know of it."""
    row = Option("smoothing", "how far the map is smoothed", number(0, 2), default=lambda served: served.config.opacity)
    monkeypatch.setattr(options, "Options", Extended)
    monkeypatch.setattr(options, "OPTIONS", (*options.OPTIONS, row))
    monkeypatch.setattr(schemas, "OPTIONS", options.OPTIONS)
    served = Served(Config(opacity=0.75), Labels(2), ("a",))
    reader = OptionReader(served)

    def smoothing(given: dict[str, Given]) -> float:
        asked = reader.read(given, None, False)
        assert isinstance(asked, Extended)
        return asked.smoothing

    assert smoothing({}) == 0.75
    for spelling in get_args(Spelling):
        value = "1.5" if spelling == "text" else 1.5
        assert smoothing(reader.from_values({"smoothing": value}, spelling)) == 1.5
    assert smoothing(reader.from_headers(write_headers({"smoothing": 1.5}))) == 1.5
    with pytest.raises(RequestError, match="smoothing: expected a number from 0 to 2, got 3"):
        smoothing({"smoothing": Given(3)})
    components = describe_api(served)["components"]
    description = {"description": "How far the map is smoothed.", "default": 0.75}
    assert components["schemas"]["smoothing"] == {"type": "number", "minimum": 0, "maximum": 2, **description}
    assert components["parameters"]["smoothing"]["name"] == "X-Explain-Smoothing"
    assert "smoothing" in components["schemas"]["ExplanationRequest"]["anyOf"][0]["properties"]


@pytest.mark.parametrize(
    ("explain", "left_out"), [(Client.explain, {"format"}), (Model.explain, {"format", "overlay"})], ids=["client", "model"]
)
def test_each_option_is_an_argument_in_python(explain: Callable[..., Any], left_out: set[str]) -> None:
    """By its name, and in the table's order. Both return values rather than files; a model's draw themselves when asked to."""
    arguments = inspect.signature(explain).parameters.values()
    named = [argument.name for argument in arguments if argument.kind is inspect.Parameter.KEYWORD_ONLY]

    assert named == [option.name for option in options.OPTIONS if option.name not in left_out]


@pytest.mark.parametrize("target", ["tabby", "285", "tête-bêche", "tench, Tinca tinca", [1, "285"], np.int64(2), [np.int64(0)]])
def test_what_is_written_as_headers_is_read_back(target: Any) -> None:
    """A label of digits stays a label, and all of it is ASCII."""
    written = write_headers({"target": target, "overlay": True, "opacity": 0.5, "method": "gradcam"})
    asked = READER.read(READER.from_headers(written), None, False)
    as_json = json.loads(json.dumps(target, default=int))

    assert "".join(written.values()).isascii()
    assert asked == read({"target": as_json, "overlay": True, "opacity": 0.5, "method": "gradcam"})


def test_unknown_names() -> None:
    """An unknown name is a 400 that says which is nearest and which there are."""
    error = refused({"traget": 1})
    assert error.kind == "UnknownOption"
    assert 'unknown option "traget"; did you mean target?' in error.message
    assert error.message.endswith("target, top_k, method, layer, format, check, inside, contours, overlay, colormap or opacity")
    assert "did you mean" not in refused({"\r\n<script>" * 9: 1}).message
    assert refused({"": 1}).kind == refused({"Target": 1}).kind == "UnknownOption"


def test_headers() -> None:
    """`X-Explain-*` headers are text, `-` stands for `_`, and labels come through in UTF-8 and in Latin-1."""
    headers = {"x-explain-top-k": "2", "x-explain-overlay": "true", "x-other": "1", "explain": "True"}
    asked = READER.read(READER.from_headers(headers), None, False)
    assert (asked.top_k, asked.overlay) == (2, True)
    for value in ("tête-bêche", "tête-bêche".encode().decode("latin-1")):
        assert READER.read(READER.from_headers({"x-explain-target": value}), None, False).targets == (5,)
    with pytest.raises(RequestError, match='unknown option "x-explain-topk"; did you mean top_k') as caught:
        READER.from_headers({"x-explain-topk": "2"})
    assert caught.value.kind == "UnknownOption"
    with pytest.raises(RequestError):
        READER.from_headers({"x-explain-": "2"})


@pytest.mark.parametrize(
    ("headers", "own", "expected"),
    [
        ({"x-explain-top-k": "2"}, {"target": 1}, ((1,), 1)),
        ({"x-explain-target": "1"}, {"top_k": 2}, ((), 2)),
        ({"x-explain-target": "1"}, {"target": 2}, ((2,), 1)),
        ({"x-explain-target": "1"}, {"method": "gradcam"}, ((1,), 1)),
    ],
)
def test_the_body_beats_the_header_also_where_one_choice_has_two_names(
    headers: dict[str, str], own: dict[str, Any], expected: tuple[tuple[int, ...], int]
) -> None:
    """A proxy that asks for the two best must not break a request for a class."""
    asked = READER.read(READER.merge(READER.from_headers(headers), READER.from_values(own, "json")), None, False)
    assert (asked.targets, asked.top_k) == expected


def test_format_beats_accept() -> None:
    """With the option, `Accept` is not even read."""
    assert read({"format": "png"}, accept="text/html").media == "png"
    assert read({"format": "json"}, accept="not parsable;;;q=9").media == "json"
    assert read({}, accept="image/webp").media == "webp"
    with pytest.raises(RequestError) as caught:
        read({}, accept="text/html")
    assert caught.value.status == 406


def test_overlay_belongs_to_json() -> None:
    """In an answer that is itself a picture or an array there is nothing to carry an overlay."""
    assert read({"overlay": True}).overlay
    assert not read({"overlay": True, "format": "png"}).overlay
    assert not read({"overlay": True}, accept="application/x-npy").overlay


def test_a_box_without_extent_and_text_that_is_no_mask() -> None:
    """Each with its advice: widths for edges, base64 that cannot be read, another kind of file."""
    assert "send [x, y, x + width, y + height]" in refused({"inside": [10, 10, 5, 5]}).message
    assert refused({"inside": "nonsense!"}).kind == "InvalidBase64"
    assert refused({"inside": "@mask.png"}, "text").kind == "NoImage"
    assert refused({"inside": "/9j/4AAQSkZJRg=="}).message.startswith("inside: expected a box")
    assert "an array holds none" in refused({"contours": 0.5, "format": "npy"}).message


@pytest.mark.parametrize("values", [{"format": "png"}, {"format": "webp"}, {"overlay": True}, {"contours": 0.5}])
def test_a_tensor_has_no_picture(values: dict[str, Any]) -> None:
    """A picture asked for of a tensor is a 400 `NoPicture`."""
    assert refused(values, tensor=True).kind == "NoPicture"
    assert refused({}, tensor=True, accept="image/png").kind == "NoPicture"
    for overlay in (False, True):  # an array has no place for one
        assert read({"format": "npy", "overlay": overlay}, tensor=True).media == "npy"
