"""What a batch may have in memory: decoded pictures, kept originals, overlays that no answer has room for."""

from __future__ import annotations

import base64
import gc
import json
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.build import PLAIN, archive, encoded, noise
from tests.support.comparison.equality import assert_same
from tests.support.processes.waiting import HANG

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.geometry import Rect
from camserve.core.messages import Encoded, Explanation, Item, Media, Options
from camserve.explain.explainer import Prediction
from camserve.explain.observer import NullObserver
from camserve.pictures import render
from camserve.pictures.bounds.limits import Semaphore
from camserve.pictures.decode import Opened, open_enough
from camserve.pictures.overlays import Canvas
from camserve.pictures.preprocess import Preprocess
from camserve.pipeline.chunks import guard
from camserve.pipeline.prepare import Job, Pictures
from camserve.tools.archive.archive import Response, Row, ask, handler_of, load_service

SIDE = 100
LIMITS = {
    **PLAIN,
    "max_pixels": 3 * SIDE**2,
    "max_request_pixels": 8 * SIDE**2,
    "max_picture_side": 80,
    "max_response_bytes": 200_000,
}
"""Eight of the pictures below in one request, and about nine overlays of noise."""

PICTURES = [encoded(noise(SIDE, SIDE, seed)) for seed in range(12)]
TEXTS = [base64.b64encode(each).decode() for each in PICTURES]
WIDE = base64.b64encode(encoded(noise(4 * SIDE, SIDE))).decode()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small classifier, with low limits."""
    return load_service(archive(tmp_path_factory.mktemp("one") / "bright", LIMITS))


def pipeline(service: Any) -> Any:
    """What answers its batches."""
    return handler_of(service).face.pipeline


def v1(*instances: Any, explain: bool = True) -> Row:
    """A V1 request."""
    return Row({"body": {"instances": list(instances)}}, explain=explain)


def v2(*texts: str, explain: bool = True) -> Row:
    """A V2 request of base64."""
    tensor = {"name": "x", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
    return Row({"body": {"inputs": [tensor]}}, explain=explain)


def overlaid(text: str, *targets: int) -> dict[str, Any]:
    """A V1 instance whose explanations carry their pictures."""
    return {"data": text, "overlay": True, "target": list(targets)}


def error(response: Response) -> tuple[int, str, str]:
    """Status, type and message."""
    told = json.loads(response.body)
    assert told["code"] == response.status
    return response.status, told["type"], told["message"]


# ------------------------------------------------------------------ the pixels of one request


@pytest.mark.parametrize("explain", [False, True])
@pytest.mark.parametrize("form", [v1, v2])
def test_the_pictures_of_one_request_have_a_limit_together(
    service: Any, form: Any, explain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight pass, nine are a 413 before any is decoded, whatever `max_instances` allows."""
    assert ask(service, [form(*TEXTS[:8], explain=explain)])[0].status == 200
    monkeypatch.setattr("camserve.pictures.inputs.open_enough", lambda *_: pytest.fail("decoded"))
    (response,) = ask(service, [form(*TEXTS[:9], explain=explain)])

    message = "expected at most 80000 pixels in all pictures of one request, got 90000: send fewer or smaller ones"
    assert error(response) == (413, "ImageTooLarge", message)


def test_a_picture_that_is_refused_by_itself_is_told_by_itself(service: Any) -> None:
    """One that is too large, or none at all, does not count: the answer names it."""
    too_large, none = ask(service, [v1(*TEXTS[:8], WIDE), v1(*TEXTS[:8], TEXTS[8][:40])])

    assert error(too_large) == (413, "ImageTooLarge", "instance 8: data: expected at most 30000 pixels, got 400 x 100")
    assert error(none)[:2] == (400, "InvalidImage")
    assert error(none)[2].startswith("instance 8: data: expected a complete PNG")


def test_the_limit_of_a_request_is_never_below_that_of_a_picture(tmp_path: Path) -> None:
    """A picture that is taken alone is taken as the only instance."""
    service = load_service(archive(tmp_path / "small", {**PLAIN, "max_request_pixels": 10}))

    assert [each.status for each in ask(service, [v1(WIDE), Row({"body": base64.b64decode(WIDE)})])] == [200, 200]


def test_a_request_that_is_too_large_harms_no_neighbour(service: Any) -> None:
    """Neither by its pixels nor by its overlays; in any place."""
    rows = [
        Row({"body": PICTURES[0]}, {"Accept": "image/png"}, explain=True),
        v1(*TEXTS),
        v1(overlaid(TEXTS[1], 0, 1), TEXTS[2]),
        v1(*(overlaid(text, 0, 1, 2) for text in TEXTS[:8])),
        Row({"body": PICTURES[3][:300]}, explain=True),
        v2(*TEXTS[4:7]),
    ]
    alone = [ask(service, [row])[0] for row in rows]

    assert [each.status for each in alone] == [200, 413, 200, 413, 400, 200]
    for batch, wanted in ((rows, alone), (rows[::-1], alone[::-1])):
        for answer, right in zip(ask(service, batch), wanted, strict=True):
            assert_same(answer, right)


# ------------------------------------------------------------------ decoded pictures


@pytest.fixture
def living(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pixels of decoded pictures lived after each one was opened."""
    counts: list[int] = []
    alive: dict[int, int] = {}
    lock = threading.Lock()

    def opened(*given: Any) -> Opened:
        found = open_enough(*given)
        picture = found.picture
        with lock:
            alive[id(picture)] = picture.width * picture.height
            weakref.finalize(picture, alive.pop, id(picture))
            counts.append(sum(alive.values()))
        time.sleep(0.002)  # long enough for the others to open theirs
        return found

    monkeypatch.setattr("camserve.pictures.inputs.open_enough", opened)
    return counts


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([v1(*TEXTS[:8]), v2(*TEXTS[:8])], id="explained"),
        pytest.param([v1(*TEXTS[:8], explain=False)] * 2, id="predicted"),
        pytest.param([Row({"body": each}, explain=True) for each in PICTURES], id="plain"),
        pytest.param([Row({"body": each}, {"Accept": "image/png"}, explain=True) for each in PICTURES], id="drawn smaller"),
    ],
)
def test_decoded_pictures_do_not_wait_for_the_answer(service: Any, rows: list[Row], living: list[int]) -> None:
    """Only as many live as there are threads, and of those that are drawn on a smaller copy is kept."""
    assert {each.status for each in ask(service, rows)} == {200}

    assert len(living) >= 12
    assert max(living) <= pipeline(service)._threads.count * SIDE**2


@pytest.mark.parametrize("headers", [{}, {"Accept": "image/png"}])
def test_large_pictures_are_decoded_one_after_another(
    service: Any, headers: dict[str, str], living: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that do not fit beside each other wait; the answers are the same."""
    rows = [Row({"body": each}, headers, explain=True) for each in PICTURES]
    wanted = ask(service, rows)
    assert max(living) > SIDE**2
    living.clear()
    monkeypatch.setattr(pipeline(service)._threads, "semaphore", Semaphore(2 * SIDE**2 - 1))

    for answer, right in zip(ask(service, rows), wanted, strict=True):
        assert_same(answer, right)
    assert living == [SIDE**2] * len(rows)


def test_large_pictures_are_drawn_one_after_another(service: Any, living: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when they are opened again for that."""
    rows = [Row({"body": each}, {"Accept": "image/png"}, explain=True) for each in PICTURES]
    wanted = ask(service, rows)
    living.clear()
    monkeypatch.setattr("camserve.pipeline.prepare.CANVAS_PIXELS", 0)
    monkeypatch.setattr(pipeline(service)._threads, "semaphore", Semaphore(2 * SIDE**2 - 1))

    for answer, right in zip(ask(service, rows), wanted, strict=True):
        assert_same(answer, right)
    assert living == [SIDE**2] * 2 * len(rows)


@pytest.mark.parametrize(
    ("size", "kept", "media", "pixels"),
    [
        ((100, 60), True, "png", 3 * 100 * 60),
        ((100, 60), False, "png", 3 * 100 * 60),
        ((3000, 2000), True, "png", 3 * 1600**2),
        ((3000, 2000), False, "png", 3 * 1600**2),
        ((9000, 5000), False, "png", 9000 * 5000),
        ((9000, 5000), True, "json", 0),
        (None, False, "png", 0),
    ],
)
def test_the_pixels_that_drawing_takes_are_counted(size: Any, kept: bool, media: Media, pixels: int) -> None:
    """So many maps at the size at which they are drawn, or the picture, where it has to be opened again."""
    pictures = Pictures(Config(), Preprocess(Config()))
    item = Item(Encoded(b""), Options((), "gradcam", "top", "jet", 0.4, media=media))
    canvas = Canvas(np.zeros((1, 1, 3), np.uint8), Rect(0, 0, 1, 1)) if kept else None

    explanation = Explanation(0, "0", 1.0, np.zeros((1, 1), np.float32), None, None, ())
    prediction = Prediction((), (explanation,) * 3, torch.zeros(1))
    job = Job(0, item, True, size=size, canvas=canvas, prediction=prediction)

    assert pictures.drawing_pixels(job) == pixels
    assert pictures.drawing_pixels(replace(job, explain=False)) == 0


@pytest.mark.parametrize("explain", [False, True])
def test_ordinary_pictures_are_decoded_beside_each_other(service: Any, explain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In as many threads as there are: each waits for the others, so one after another they would never end."""
    threads = pipeline(service)._threads.count
    barrier = threading.Barrier(threads)

    def opened(*given: Any) -> Opened:
        barrier.wait(timeout=HANG)
        return open_enough(*given)

    monkeypatch.setattr("camserve.pictures.inputs.open_enough", opened)
    rows = [Row({"body": each}, explain=explain) for each in PICTURES[:threads]]
    assert [each.status for each in ask(service, rows)] == [200] * threads


DRAWN = [
    *(Row({"body": each}, {"X-Explain-Format": kind, "X-Explain-Top-K": "2"}, explain=True) for each, kind in zip(PICTURES, ("png", "jpeg", "webp"), strict=False)),
    v1(overlaid(TEXTS[3], 0), TEXTS[4], overlaid(TEXTS[5], 2, 1)),
]  # fmt: skip


def record(step: Callable[..., Any], given: list[Any]) -> Callable[..., Any]:
    """Wraps a step so that what it is given first is kept."""

    def recorded(first: Any, *more: Any) -> Any:
        given.append(first)
        return step(first, *more)

    return recorded


@pytest.mark.parametrize("room", [0, 80 * 80, 3 * 80 * 80])
def test_what_is_not_kept_is_opened_again(service: Any, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for no picture, for one and for some, answers are what they are with room for all, byte by byte."""
    wanted = ask(service, DRAWN)
    opened: list[bytes] = []
    monkeypatch.setattr("camserve.pipeline.prepare.CANVAS_PIXELS", room)
    monkeypatch.setattr("camserve.pictures.inputs.open_enough", record(open_enough, opened))

    for answer, right in zip(ask(service, DRAWN), wanted, strict=True):
        assert (answer.status, answer.headers) == (right.status, right.headers) == (200, right.headers)
        assert answer.body == right.body
    assert len(opened) == 6 + 5 - room // 80**2


def test_an_error_does_not_hold_the_picture_that_it_is_about() -> None:
    """Its traceback would, for as long as the batch lasts, and in a circle for longer."""

    class Picture:
        """Stands for one."""

    made: list[weakref.ref[Picture]] = []

    def fail(_: int) -> None:
        picture = Picture()
        made.append(weakref.ref(picture))
        try:
            raise OSError("truncated")
        except OSError:
            raise RequestError(400, "InvalidImage", f"cut off: {picture is not None}") from None

    gc.disable()
    try:
        found = guard(fail, 0)
        assert made[0]() is None
    finally:
        gc.enable()
    assert isinstance(found, RequestError)
    assert (found.status, found.kind, found.message) == (400, "InvalidImage", "cut off: True")


def test_a_size_that_is_only_not_explained_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens may lie nobody knows how: predictions of such pictures go on, and their neighbours' explanations."""
    service = load_service(archive(tmp_path / "own", {**PLAIN, "crop": None}))
    capture = handler_of(service).face.backend.capture
    forward = type(capture).forward

    def failing(self: Any, pictures: torch.Tensor, layers: Any) -> Any:
        if layers and pictures.shape[2:] != (64, 64):
            raise ValueError("128 tokens are no grid")
        return forward(self, pictures, layers)

    monkeypatch.setattr(type(capture), "forward", failing)
    wide = encoded(noise(200, 100))
    rows = [Row({"body": wide}, explain=True), Row({"body": PICTURES[0]}, explain=True)]
    refused, good = ask(service, rows)
    handler_of(service).face.observe(NullObserver())
    (predicted,) = ask(service, [Row({"body": wide})])

    came = "a picture of 200 x 100, which makes an input of 64 x 128"
    assert error(refused) == (
        400,
        "InvalidImage",
        f"data: the model cannot be explained at this layer on {came}; its own is 64 x 64",
    )
    assert (good.status, predicted.status) == (200, 200)


def test_a_picture_that_failed_is_let_go_of() -> None:
    """Its error is what is left of it, though nothing collects cycles: memory that its neighbours wait for is free."""
    pictures = [np.zeros(9)]
    picture = weakref.ref(pictures[0])

    def draw(_: int) -> None:
        held = pictures.pop()
        raise RequestError(507, "OutOfMemory", f"{held.size} is too large")

    gc.disable()
    try:
        error = guard(draw, 0)
        assert picture() is None
    finally:
        gc.enable()
    assert isinstance(error, RequestError)
    assert error.status == 507


def test_an_input_that_the_model_does_not_run_on_is_the_clients_error(tmp_path: Path) -> None:
    """It names the picture's size, or the tensor's; a neighbour of the model's own size is answered."""
    fault = "if x.shape[2:] != (64, 64): raise ValueError('size')"
    service = load_service(archive(tmp_path / "square", {**PLAIN, "crop": None}, fault=fault))
    picture = encoded(noise(200, 100))
    wide, tensor, good = ask(service, [Row({"body": each}) for each in (picture, np.zeros((3, 8, 9)).tolist(), PICTURES[0])])

    own = "; its own is 64 x 64"
    message = f"data: the model does not run on a picture of 200 x 100, which makes an input of 64 x 128{own}"
    assert error(wide) == (400, "InvalidImage", message)
    assert error(tensor) == (400, "InvalidTensor", f"data: the model does not run on an input of 8 x 9{own}")
    assert good.status == 200


# ------------------------------------------------------------------ drawing


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of every picture that is encoded."""
    lengths: list[int] = []
    encode = render.encode

    def counted(picture: render.Picture, media: str) -> bytes:
        body = encode(picture, media)
        lengths.append(len(body))
        return body

    monkeypatch.setattr(render, "encode", counted)
    return lengths


@pytest.mark.parametrize(
    "row",
    [
        v1(*(overlaid(text, 0, 1, 2) for text in TEXTS[:8])),
        v1(*(overlaid(text, 0) for text in TEXTS[:7]), overlaid(TEXTS[1], 0, 1, 2)),
        v1(overlaid(TEXTS[0], 0, 1, 2), *TEXTS[1:8]),
        Row({"body": overlaid(TEXTS[0], 0, 1, 2)}, explain=True),
    ],
)
def test_overlays_end_where_they_cannot_fit_any_more(tmp_path: Path, row: Row, encodings: list[int]) -> None:
    """A 413 about the whole answer; at most one overlay too many in each thread."""
    limit = 40_000  # of overlays of 22,500
    service = load_service(archive(tmp_path / "small", {**LIMITS, "max_request_pixels": 10**6, "max_response_bytes": limit}))
    (response,) = ask(service, [row])

    way_out = "ask for fewer pictures or targets, or without overlay"
    assert error(response) == (413, "ResponseTooLarge", f"the answer takes more than the limit of {limit} bytes; {way_out}")
    assert len(encodings) == 2 if "data" in row.fields["body"] else len(encodings) <= 2 + pipeline(service)._threads.count
    assert sum(encodings) * 4 / 3 > limit


@pytest.mark.parametrize(
    "row", [v1(overlaid(TEXTS[0], 0, 1), overlaid(TEXTS[1], 2), TEXTS[2]), Row({"body": overlaid(TEXTS[0], 0, 1)}, explain=True)]
)
def test_an_answer_that_just_fits_is_sent(service: Any, row: Row, tmp_path: Path) -> None:
    """And with one byte less it is told how long it is."""
    (wanted,) = ask(service, [row])
    size = len(wanted.body)
    for limit, status in ((size, 200), (size - 1, 413)):
        own = load_service(archive(tmp_path / str(status) / "bright", {**LIMITS, "max_response_bytes": limit}))
        (answer,) = ask(own, [row])
        assert answer.status == status
        if status == 200:
            assert answer.body == wanted.body
        else:
            assert error(answer)[2].startswith(f"the answer takes {size} bytes and the limit is {limit}; ")


def test_nothing_is_drawn_for_a_request_that_has_failed(service: Any, encodings: list[int]) -> None:
    """One bad instance is the whole answer; a neighbour's pictures are drawn."""
    bad = v1(*(overlaid(text, 0, 1, 2) for text in TEXTS[:7]), {"b64": TEXTS[7][:400]})
    (response,) = ask(service, [bad])
    assert error(response)[:2] == (400, "InvalidImage")
    assert encodings == []

    responses = ask(service, [bad, Row({"body": PICTURES[0]}, {"Accept": "image/png"}, explain=True)])
    assert [each.status for each in responses] == [400, 200]
    assert len(encodings) == 1


def test_a_picture_that_is_opened_again_for_nothing_is_not(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the answer is too long, pictures that were not kept stay closed."""
    opened: list[bytes] = []
    monkeypatch.setattr("camserve.pipeline.prepare.CANVAS_PIXELS", 0)
    monkeypatch.setattr("camserve.pictures.inputs.open_enough", record(open_enough, opened))
    monkeypatch.setattr(pipeline(service)._threads, "semaphore", Semaphore(1))
    served = pipeline(service)._served
    monkeypatch.setattr(pipeline(service), "_served", replace(served, config=replace(served.config, max_response_bytes=1_000)))

    (response,) = ask(service, [v1(*(overlaid(text, 0) for text in TEXTS[:8]))])

    assert error(response)[1] == "ResponseTooLarge"
    assert len(opened) == 8 + 1


def test_memory_is_given_back_after_large_batches_only(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after the small one that follows."""
    given: list[None] = []
    monkeypatch.setattr("camserve.pipeline.pipeline.give_back", lambda: given.append(None))
    monkeypatch.setattr("camserve.pipeline.pipeline.LARGE_BATCH", 3 * SIDE**2)
    for count, times in ((4, 1), (2, 1), (3, 1), (4, 2)):
        ask(service, [Row({"body": each}) for each in PICTURES[:count]])
        assert len(given) == times
