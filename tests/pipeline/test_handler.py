"""The handler in TorchServe's own `ts.service.Service`: mixed batches, the stock handler's predictions, geometry, isolation."""

from __future__ import annotations

import base64
import gc
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.build import PLAIN, archive, encoded, module_of, noise, square, weights
from tests.support.comparison.closeness import error_of_sum
from tests.support.comparison.equality import assert_close as close
from tests.support.comparison.equality import assert_same
from torchvision import transforms
from torchvision.models import ResNet18_Weights
from torchvision.transforms import v2
from ts.torch_handler.image_classifier import ImageClassifier

from camserve.core.errors import ConfigError
from camserve.pictures.decode import open_enough
from camserve.pictures.preprocess import is_stateless
from camserve.tools.archive.archive import Row, ask, handler_of, load_service
from gradcam_handler import GradCAMHandler

pytestmark = pytest.mark.numeric

LABELS = {"0": "bright", "1": 'dark, "quoted"\r\n<script>', "2": "Weiß"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small classifier with labels, loaded once."""
    return load_service(archive(tmp_path_factory.mktemp("one") / "bright", labels=LABELS))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a test puts an archive of its own."""
    yield tmp_path / "own"
    gc.collect()


def explained(service: Any, picture: bytearray, **headers: str) -> dict[str, Any]:
    """The JSON answer of one explanation that must succeed."""
    (response,) = ask(service, [Row({"body": picture}, headers, explain=True)])
    assert response.status == 200, response.body
    assert response.content_type == "application/json"
    answer: dict[str, Any] = json.loads(response.body)
    return answer


# ------------------------------------------------------------------ predictions


PICTURES = [
    encoded(noise(80, 64, 1)),
    encoded(noise(64, 200, 2), "JPEG", quality=90),
    encoded(noise(31, 17, 3), "BMP"),
    encoded(noise(500, 333, 4), "WEBP", lossless=True),
]


def test_predictions_equal_the_stock_handlers(tmp_path: Path) -> None:
    """Same labels, order and count, values within 1e-5, for the same preprocessing and weights."""
    labels = {str(index): f"class {index % 6}" for index in range(7)}  # classes 0 and 6 share a label
    stock_handler = """
from torchvision import transforms
from ts.torch_handler.image_classifier import ImageClassifier
class Stock(ImageClassifier):
    image_processing = transforms.Compose([
        transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor(), transforms.Normalize([0, 0, 0], [1, 1, 1])])
"""
    ours = load_service(archive(tmp_path / "ours", classes=7, labels=labels))
    given = [*PICTURES, base64.b64encode(PICTURES[0]).decode(), (noise(64, 64).transpose(2, 0, 1) / 255).tolist()]
    answers = ask(ours, [Row({"body": each}) for each in given])
    stock = load_service(archive(tmp_path / "stock", classes=7, labels=labels, handler=stock_handler))
    expected = [*ask(stock, [Row({"body": each}) for each in given[:-1]]), *ask(stock, [Row({"body": given[-1]})])]

    for answer, wanted in zip(answers, expected, strict=True):
        assert (answer.status, wanted.status, answer.content_type) == (200, 200, "application/json")
        found, right = json.loads(answer.body), json.loads(wanted.body)
        assert list(found) == list(right)
        assert list(found.values()) == pytest.approx(list(right.values()), abs=1e-5)


def test_predictions_without_labels_and_with_two_classes(folder: Path) -> None:
    """Where the stock handler fails, fewer than five classes, all of them are listed, by index."""
    service = load_service(archive(folder, classes=2))

    (response,) = ask(service, [Row({"body": PICTURES[0]})])

    answer = json.loads(response.body)
    assert sorted(answer) == ["0", "1"]
    assert sum(answer.values()) == pytest.approx(1)
    assert list(answer.values()) == sorted(answer.values(), reverse=True)


def test_predictions_ignore_options_and_accept(service: Any) -> None:
    """As the stock handler does, even where an explanation would refuse them."""
    plain, odd = ask(
        service,
        [Row({"body": PICTURES[0]}), Row({"data": PICTURES[0], "colour": bytearray(b"x")}, {"Accept": "text/csv"})],
    )

    assert_same(plain, odd)


# ------------------------------------------------------------------ explanations


def test_an_explanation_holds_every_field(service: Any) -> None:
    """The keys of the contract, in its order, with consistent values."""
    answer = explained(service, PICTURES[0])

    assert list(answer) == ["predictions", "classes", "explanations", "image", "method", "layer", "model", "version", "weights"]
    assert answer["predictions"] == {each["label"]: each["probability"] for each in answer["classes"]}
    (explanation,) = answer["explanations"]
    assert list(explanation) == ["target", "label", "probability", "heatmap", "range", "region", "warnings"]
    top = answer["classes"][0]
    assert [explanation[key] for key in ("target", "label", "probability")] == [
        top[key] for key in ("index", "label", "probability")
    ]
    heatmap = np.array(explanation["heatmap"])
    assert heatmap.shape == (8, 8)
    assert (heatmap.min(), heatmap.max()) == (0, 1)
    assert answer["image"] == {"width": 80, "height": 64, "view": [8.0, 0.0, 72.0, 64.0]}
    assert (answer["method"], answer["layer"], answer["model"]) == ("gradcam++", "features", "bright")
    assert answer["weights"].startswith("sha256:")
    assert len(answer["weights"]) == len("sha256:") + 12


SQUARES = [
    pytest.param(640, 480, 400, 160, 60, id="wide"),
    pytest.param(300, 900, 40, 500, 60, id="tall"),
    pytest.param(20, 16, 10, 4, 4, id="tiny"),
    pytest.param(4000, 3000, 1000, 1800, 500, id="huge"),
    pytest.param(128, 128, 0, 0, 24, id="corner"),
]


@pytest.mark.parametrize(("width", "height", "left", "top", "side"), SQUARES)
def test_the_heatmap_lies_where_the_model_looked(service: Any, width: int, height: int, left: int, top: int, side: int) -> None:
    """A model that answers to brightness: the peak and the region fall on the one bright square of the original picture."""
    answer = explained(service, encoded(square(width, height, left, top, side)), **{"X-Explain-Target": "0"})

    (explanation,) = answer["explanations"]
    view = answer["image"]["view"]
    heatmap = np.array(explanation["heatmap"])
    cell_width, cell_height = (view[2] - view[0]) / 8, (view[3] - view[1]) / 8
    row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
    peak_x, peak_y = view[0] + (column + 0.5) * cell_width, view[1] + (row + 0.5) * cell_height
    assert left - cell_width / 2 <= peak_x <= left + side + cell_width / 2
    assert top - cell_height / 2 <= peak_y <= top + side + cell_height / 2
    found = explanation["region"]
    wanted = [left, top, left + side, top + side]
    assert all(abs(a - b) <= step for a, b, step in zip(found, wanted, [cell_width, cell_height] * 2, strict=True))
    assert 0 <= found[0] < found[2] <= width
    assert 0 <= found[1] < found[3] <= height


def test_a_black_picture_gives_a_zero_map_and_says_so(service: Any) -> None:
    """Nothing is bright: zeros, the warning, no region; never NaN."""
    answer = explained(service, encoded(square(64, 64, 0, 0, 0)), **{"X-Explain-Target": "0"})

    (explanation,) = answer["explanations"]
    assert explanation["warnings"] == ["zero"]
    assert explanation["region"] is None
    assert explanation["range"] == [0.0, 0.0]
    assert not np.array(explanation["heatmap"]).any()


def even() -> dict[str, torch.Tensor]:
    """Every cell is the same in every picture."""
    return {**weights(), "features.0.weight": torch.zeros(6, 3, 8, 8), "features.0.bias": torch.ones(6)}


def overflowing() -> dict[str, torch.Tensor]:
    """A channel of white cells is infinite, and no class looks at it."""
    state = weights()
    state["features.0.weight"][5], state["features.0.bias"][5], state["fc.weight"][:, 5] = 2.7e36, -1.5e38, 0
    return state


@pytest.mark.parametrize(("state", "warning"), [(even, "constant"), (overflowing, "not_finite")])
def test_maps_that_say_nothing_are_zeros_and_say_so(folder: Path, state: Callable[[], Any], warning: str) -> None:
    """Every cell the same, or some that are not finite though the scores are: zeros, the warning, no region."""
    finite = "return self.fc((lambda y: y.masked_fill(y > 1e30, 0))(self.features(x)).mean((2, 3)))"
    service = load_service(archive(folder, state=state(), fault=finite))
    white = encoded(np.full((64, 64, 3), 255, np.uint8))
    headers = {"Accept": "application/x-npy"}
    whole, array = ask(service, [Row({"body": white}, explain=True), Row({"body": white}, headers, explain=True)])

    (explanation,) = json.loads(whole.body)["explanations"]
    assert explanation["warnings"] == [warning]
    assert explanation["region"] is None
    low_and_high = explanation["range"]
    assert (low_and_high is None) if warning == "not_finite" else (low_and_high[0] == low_and_high[1])
    assert json.loads(array.headers["x-explain-range"]) == low_and_high
    assert not np.array(explanation["heatmap"]).any()
    assert not np.load(io.BytesIO(array.body)).any()


def test_a_tensor_is_explained_without_a_picture(service: Any) -> None:
    """The stock handler's JSON list: image and region null."""
    values = np.random.default_rng(0).uniform(size=(3, 64, 64)).round(3).tolist()
    (response,) = ask(service, [Row({"body": values}, explain=True)])

    answer = json.loads(response.body)
    assert response.status == 200
    assert answer["image"] is None
    assert answer["explanations"][0]["region"] is None
    assert len(answer["explanations"][0]["heatmap"]) == 8


# ------------------------------------------------------------------ one answer each


def mixed_rows() -> list[Row]:
    """A batch of everything: both modes, several sizes, targets, methods and formats, and bad requests between them."""
    jpeg, wide, tiny, webp = PICTURES
    big = np.random.default_rng(5).uniform(size=(3, 96, 64)).round(3).tolist()
    return [
        Row({"body": jpeg}, explain=True),
        Row({"body": wide}),
        Row({"body": bytearray(b"no picture at all")}, explain=True),
        Row({"body": wide}, {"X-Explain-Target": "2", "X-Explain-Method": "gradcam"}, explain=True),
        Row({"data": tiny, "target": bytearray(b"[0, 1, 2]"), "method": bytearray(b"contrast")}, explain=True),
        Row({"body": big}, explain=True),
        Row({"body": webp}, {"Accept": "image/png"}, explain=True),
        Row({"body": webp}, {"Accept": "application/x-npy", "x-explain-top-k": "3"}, explain=True),
        Row({"body": jpeg}, {"X-Explain-Target": "99"}, explain=True),
        Row({"body": bytearray(b"")}),
        Row({"body": {"instances": [{"b64": "AAAA"}]}}),
        Row({"body": jpeg}, {"X-Explain-Overlay": "true", "X-Explain-Colormap": "jet"}, explain=True),
        Row({"body": wide}, {"Accept": "text/csv"}, explain=True),
        Row({"body": tiny}),
    ]


def test_each_request_of_a_mixed_batch_gets_what_it_would_get_alone(service: Any) -> None:
    """Status, type, headers and body, one bad among many, for both orders of the batch."""
    rows = mixed_rows()
    alone = [ask(service, [row])[0] for row in rows]
    statuses = [response.status for response in alone]
    assert statuses == [200, 200, 400, 200, 200, 200, 200, 200, 400, 400, 400, 200, 406, 200]

    for together, wanted in ((ask(service, rows), alone), (ask(service, rows[::-1]), alone[::-1])):
        for answer, right in zip(together, wanted, strict=True):
            assert_same(answer, right)


def test_a_batch_of_eight_equals_eight_batches_of_one(service: Any) -> None:
    """The heatmaps and ranges do not depend on the neighbours."""
    rows = [Row({"body": encoded(noise(64, 64, seed))}, explain=True) for seed in range(8)]

    for answer, row in zip(ask(service, rows), rows, strict=True):
        assert_same(answer, ask(service, [row])[0])


def test_a_batch_passes_through_the_model_once_for_each_size(service: Any) -> None:
    """However many targets, methods and modes it mixes."""
    model = vars(module_of(service))
    before = model["passes"]

    ask(service, mixed_rows())

    assert model["passes"] - before == 2  # 64x64 pictures, and one tensor of 96x64


@pytest.mark.parametrize("explain", [False, True])
def test_a_describe_header_from_a_client_harms_nobody(service: Any, explain: bool) -> None:
    """It neither shows the metadata nor fails the batch."""
    rows = [Row({"body": PICTURES[0]}, {"describe": "True"}, explain=explain), Row({"body": PICTURES[1]}, explain=explain)]

    for answer, row in zip(ask(service, rows), rows, strict=True):
        assert_same(answer, ask(service, [Row(row.fields, explain=explain)])[0])


@pytest.mark.parametrize("explain", [False, True, None])
@pytest.mark.parametrize("form", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_form_without_fields_is_a_request_without_a_picture(service: Any, explain: bool | None, form: str) -> None:
    """A form without fields looks like the management address's own question, on `/invocations` and its like above all."""
    (answer,) = ask(service, [Row({}, {"describe": "True", "Content-Type": form}, explain=explain)])

    assert (answer.status, json.loads(answer.body)["type"]) == (400, "NoImage")


@pytest.mark.parametrize("explain", [False, True])
def test_the_route_decides_the_mode_and_no_header_of_a_client(service: Any, explain: bool) -> None:
    """TorchServe's headers lie in a hash map: `Explain` and `EXPLAIN` come after its own `explain`."""
    (expected,) = ask(service, [Row({"body": PICTURES[0]}, explain=explain)])
    headers = {"explain": str(explain), "EXPLAIN": str(not explain), "Explain": str(not explain)}
    (answer,) = ask(service, [Row({"body": PICTURES[0]}, headers, explain=None)])

    assert_same(answer, expected)


def test_hostile_labels_reach_headers_and_json_escaped(service: Any) -> None:
    """A label with quotes, line ends and a tag is data everywhere."""
    answer, array = ask(
        service,
        [
            Row({"body": PICTURES[0]}, {"X-Explain-Target": "1"}, explain=True),
            Row({"body": PICTURES[0]}, {"X-Explain-Target": "1", "Accept": "image/jpeg"}, explain=True),
        ],
    )

    assert json.loads(answer.body)["explanations"][0]["label"] == LABELS["1"]
    assert array.status == 200
    assert all(value.isascii() and value.isprintable() for value in array.headers.values())


@pytest.mark.parametrize(
    "error", ["MemoryError", "torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')"]
)
def test_out_of_memory_fails_only_what_does_not_fit_alone(folder: Path, error: str) -> None:
    """The batch is halved; a picture that never fits is a 507, its neighbours are answered as usual."""
    too_much = "len(x) > 2 or bool((x.mean((1, 2, 3)) > 0.9).any())"
    service = load_service(archive(folder, fault=f"if getattr(self, 'small', False) and ({too_much}): raise {error}"))
    rows = [Row({"body": encoded(noise(64, 64, seed))}, explain=seed % 2 == 0) for seed in range(7)]
    rows.insert(3, Row({"body": encoded(np.full((64, 64, 3), 255, np.uint8))}, explain=True))
    wanted = ask(service, rows)
    vars(module_of(service))["small"] = True

    for index, (answer, right) in enumerate(zip(ask(service, rows), wanted, strict=True)):
        if index == 3:
            assert answer.status == 507
            assert json.loads(answer.body)["type"] == "OutOfMemory"
        else:
            assert_same(answer, right)


def test_a_picture_that_only_its_neighbours_leave_no_memory_for_is_tried_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding runs out beside others and not by itself: the answer is as ever. What never fits is a 507."""
    service = load_service(archive(folder))
    rows = [Row({"body": picture}, explain=True) for picture in PICTURES]
    wanted = ask(service, rows)
    tries: Counter[int] = Counter()

    def scarce(data: bytes, *more: Any) -> Any:
        tries[len(data)] += 1
        if len(data) == len(PICTURES[1]) or (len(data) == len(PICTURES[2]) and tries[len(data)] == 1):
            raise MemoryError
        return open_enough(data, *more)

    monkeypatch.setattr("camserve.pictures.inputs.open_enough", scarce)
    answers = ask(service, rows)

    assert [answer.status for answer in answers] == [200, 507, 200, 200]
    assert json.loads(answers[1].body)["type"] == "OutOfMemory"
    for place in (0, 2, 3):
        assert_same(answers[place], wanted[place])
    assert sorted(tries.values()) == [1, 1, 2, 2]


def test_a_fault_of_the_models_is_a_500_for_that_request_alone(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And scores that are not finite too; neither shows what happened inside."""
    fault = "if bool((x[:, 0].mean((1, 2)) > 0.9).any()): raise ValueError('internal detail')"
    service = load_service(archive(folder, fault=fault))
    white = encoded(np.full((64, 64, 3), 255, np.uint8))

    good, bad, also_good = ask(
        service, [Row({"body": PICTURES[0]}), Row({"body": white}, explain=True), Row({"body": PICTURES[1]})]
    )

    assert [good.status, bad.status, also_good.status] == [200, 500, 200]
    assert json.loads(bad.body)["type"] == "InternalError"
    assert b"internal detail" not in bad.body
    assert "internal detail" in caplog.text


def test_scores_that_are_not_finite_are_a_500(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """JSON has no NaN, and a prediction made of it would be a lie; the log says so too."""
    service = load_service(archive(folder, fault="x = torch.where(x.mean((1, 2, 3), keepdim=True) > 0.9, torch.nan, x)"))
    white = encoded(np.full((64, 64, 3), 255, np.uint8))

    bad, good = ask(service, [Row({"body": white}, explain=True), Row({"body": PICTURES[0]}, explain=True)])

    assert (bad.status, good.status) == (500, 200)
    assert b"not finite" in bad.body
    assert "scores of 1 of 2 pictures are not finite" in caplog.text


def test_nothing_is_held_after_a_reply(service: Any) -> None:
    """No tensor outlives a batch, no parameter has a gradient, no hook stays."""
    model = module_of(service)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    ask(service, mixed_rows())
    before = tensors()
    for _ in range(3):
        ask(service, mixed_rows())

    assert tensors() <= before  # what earlier tests left may go meanwhile
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


# ------------------------------------------------------------------ loading


@pytest.mark.parametrize(
    ("explain", "words"),
    [
        ({**PLAIN, "layers": ["feature"]}, "layer feature does not exist, or does not run; layers with a map: features"),
        ({**PLAIN, "layers": ["fc"]}, "layer fc has no spatial map"),
        ({**PLAIN, "colour": "jet"}, 'unknown key "colour"'),
        ({**PLAIN, "method": "gradcam+"}, "method: expected gradcam"),
        ({**PLAIN, "crop": 4}, "does not run on pictures of shape"),
    ],
)
def test_a_configuration_that_cannot_work_stops_the_load_in_one_line(folder: Path, explain: dict[str, Any], words: str) -> None:
    """The worker never gets ready to fail every request."""
    with pytest.raises(ConfigError) as caught:
        load_service(archive(folder, explain))

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_that_do_not_match_stop_the_load(folder: Path) -> None:
    """Better than a KeyError at the first request for class 2."""
    with pytest.raises(ConfigError, match="3 outputs and the labels file 2 entries; no label for 2"):
        load_service(archive(folder, labels={"0": "a", "1": "b"}))


def test_without_layers_the_last_map_is_explained(folder: Path) -> None:
    """The rule's choice, named in the metadata."""
    service = load_service(archive(folder, {name: value for name, value in PLAIN.items() if name != "layers"}))

    assert explained(service, PICTURES[0])["layer"] == "features"


# ------------------------------------------------------------------ subclasses, describe, the stock interface


def subclassed(folder: Path, body: str, explain: dict[str, Any]) -> Any:
    """A service whose handler is a subclass of ours."""
    source = f"""
import io
import torch
from PIL import Image
from torchvision import transforms
from gradcam_handler import GradCAMHandler
class Own(GradCAMHandler):
{body}
"""
    return load_service(archive(folder, explain, handler=source))


def test_a_subclass_with_its_own_image_processing_keeps_it(folder: Path) -> None:
    """Its predictions stay, explanations come along; the view is null, and the overlay covers the whole picture."""
    body = """
    image_processing = transforms.Compose([transforms.CenterCrop(32), transforms.Resize(64), transforms.ToTensor()])
"""
    service = subclassed(folder, body, {"layers": ["features"]})

    answer = explained(service, PICTURES[0])
    (picture,) = ask(service, [Row({"body": PICTURES[0]}, {"Accept": "image/png"}, explain=True)])

    assert answer["image"] == {"width": 80, "height": 64, "view": None}
    assert answer["explanations"][0]["region"] is None
    assert picture.status == 200
    assert Image.open(io.BytesIO(picture.body)).size == (80, 64)


def test_a_subclass_with_steps_of_its_own_keeps_its_predictions(folder: Path) -> None:
    """`preprocess` and `postprocess` as the stock interface has them: rows in, a batch out; scores in, a list out."""
    body = """
    def preprocess(self, data):
        return torch.stack([torch.full((3, 64, 64), len(row["data"]) % 7 / 7) for row in data]).to(self.device)
    def postprocess(self, data):
        return [{"winner": int(row.argmax())} for row in data]
"""
    service = subclassed(folder, body, PLAIN)

    prediction, explanation = ask(service, [Row({"body": PICTURES[0]}), Row({"body": PICTURES[0]}, explain=True)])

    assert json.loads(prediction.body) == {"winner": json.loads(explanation.body)["explanations"][0]["target"]}
    assert json.loads(explanation.body)["image"]["view"] is None


def test_a_step_of_its_own_gets_no_picture_beyond_the_limits(folder: Path) -> None:
    """Predictions too: it would decode what our own does not. What is no picture is its own to read."""
    body = """
    def preprocess(self, data):
        found = bytes(data[0]["data"])
        if found[1:] != b"mine":
            assert Image.open(io.BytesIO(found)).size == (80, 64)
        return torch.zeros(1, 3, 64, 64)
"""
    service = subclassed(folder, body, {**PLAIN, "max_pixels": 80 * 64})
    pictures = (encoded(noise(80, 65)), encoded(noise(80, 65), "WEBP"), PICTURES[0], b"\0mine")
    png, webp, good, own = ask(service, [Row({"body": each}) for each in pictures])

    for answer in (png, webp):
        assert (answer.status, json.loads(answer.body)["type"]) == (413, "ImageTooLarge")
    assert (good.status, own.status) == (200, 200)


def test_a_worker_asks_about_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked of CUDA without a device, such as whether its context is broken."""
    asked: list[torch.device] = []
    monkeypatch.setattr(ImageClassifier, "initialize", lambda self, _: setattr(self, "device", torch.device("cuda:1")))
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    context = SimpleNamespace(model_yaml_config={}, manifest={"model": {}}, system_properties={"model_dir": ""})
    GradCAMHandler()._load(context)
    assert asked == [torch.device("cuda:1")]


def test_an_input_of_another_shape_fails_by_itself(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a preprocess of its own: its neighbours are answered."""
    body = """
    def preprocess(self, data):
        return torch.zeros(1, *([2] if b"\1" in bytes(data[0]["data"]) else []), 3, 64, 64)
"""
    two, one = ask(subclassed(folder, body, PLAIN), [Row({"body": b"\0\1"}), Row({"body": b"\0\0"})])

    assert (two.status, one.status) == (500, 200)
    assert "preprocess: expected a batch [1, channels, height, width], got [1, 2, 3, 64, 64]" in caplog.text


KEEPING = {
    "preprocess": """
    def preprocess(self, data):
        self.kept = Image.open(io.BytesIO(data[0]["data"]))
        self.kept.load()
        return transforms.functional.to_tensor(self.kept.resize((64, 64)))[None]
""",
    "image_processing": """
    def image_processing(self, image):
        self.kept = image
        self.kept = self.kept.resize((300, 300))
        return transforms.functional.to_tensor(self.kept.resize((64, 64)))
""",
}


@pytest.mark.parametrize("body", KEEPING.values(), ids=KEEPING)
def test_a_step_of_its_own_may_keep_something(folder: Path, body: str) -> None:
    """It runs for one picture at a time, as TorchServe calls it, though ours are prepared in threads."""
    pictures = [encoded(noise(600, 600, seed)) for seed in range(8)]
    service = subclassed(folder, body, {"layers": ["features"]})
    alone = [json.loads(ask(service, [Row({"body": each})])[0].body) for each in pictures]
    error = error_of_sum(3 * 8 * 8)  # a batch may take another kernel than a lone picture

    assert np.diff(sorted(each["0"] for each in alone)).min() > 2 * error
    for _ in range(3):
        together = ask(service, [Row({"body": each}) for each in pictures])
        close([json.loads(each.body) for each in together], alone, error)


def test_transforms_of_torchvision_run_in_threads(folder: Path) -> None:
    """They keep nothing, and resizing takes as long as decoding."""
    text = "    image_processing = transforms.Compose([transforms.Resize(64), transforms.ToTensor()])"
    handler = handler_of(subclassed(folder, text, {"layers": ["features"]}))

    assert handler._one_at_a_time(handler.image_processing) is handler.image_processing
    mixed = transforms.Compose([transforms.ToTensor(), lambda tensor: tensor])
    assert handler._one_at_a_time(mixed) is not mixed


class Keeping(transforms.Compose):  # type: ignore[misc]
    """Somebody's own."""


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (transforms.ToTensor(), True),
        (transforms.Compose([transforms.RandomApply([transforms.Resize(8)]), transforms.ToTensor()]), True),
        (v2.Compose([v2.Resize(8), v2.RandomChoice([v2.Grayscale(3), v2.Identity()])]), True),
        (ResNet18_Weights.DEFAULT.transforms(), True),
        (transforms.Lambda(str), False),
        (v2.Compose([v2.Lambda(str)]), False),
        (transforms.Compose([transforms.Compose([str])]), False),
        (transforms.RandomApply([Keeping([])]), False),
        (Keeping([]), False),
    ],
    ids=lambda each: type(each).__name__,
)
def test_only_torchvisions_own_transforms_are_stateless(step: object, expected: bool) -> None:
    """Whatever it is nested in, and in either version."""
    assert is_stateless(step) is expected


def test_a_subclass_cannot_have_its_own_and_the_configured_preprocessing(folder: Path) -> None:
    """One of the two would silently do nothing."""
    with pytest.raises(ConfigError, match="resize: the handler Own brings its own image_processing"):
        subclassed(folder, "    image_processing = transforms.ToTensor()", {"layers": ["features"], "resize": 64})


def test_describe_shows_the_metadata(service: Any) -> None:
    """What the management API asks for with an empty row."""
    (response,) = ask(service, [Row({}, {"describe": "True"}, explain=None)])

    metadata = json.loads(response.body)
    assert metadata["self_test"] == "ok"
    assert (metadata["method"], metadata["layers"], metadata["labels"]) == ("gradcam++", ["features"], 3)
    assert metadata["input_size"] == [64, 64]
    assert len(metadata["weights"]) == len("sha256:") + 64
    assert metadata["limits"]["max_targets"] == 10
    assert metadata["closed_form"] == ["features"]


def test_explain_handle_explains_a_whole_batch(service: Any) -> None:
    """TorchServe's own interface: rows in, a list of answers out, whatever their headers say."""
    handler = handler_of(service)
    rows: Sequence[dict[str, Any]] = [{"body": PICTURES[0]}, {"body": PICTURES[1]}]
    ask(service, [Row(row) for row in rows])

    answers = handler.explain_handle(None, rows)

    assert [json.loads(answer)["layer"] for answer in answers] == ["features", "features"]
