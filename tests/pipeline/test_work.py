"""One allowance of work for a batch, and one deadline: who exceeds them is told so, and no neighbour pays for it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.abuse.case import received
from PIL import Image
from tests.support.build import archive, encoded, noise
from torch import nn

from camserve.capture.models.passes import Pass
from camserve.core.messages import Call, Reply
from camserve.pictures.decode import Opened
from camserve.pictures.inputs import open_sized
from camserve.pipeline.loading import half_timeout
from camserve.pipeline.model import Model
from camserve.tools.archive.archive import Row, ask, handler_of, load_service

STEPS: dict[str, Any] = {"resize": 32, "crop": 32, "layers": ["1"], "monitor": False}
SMALL = bytes(encoded(noise(40, 40)))


def large(side: int = 600) -> bytes:
    """A plain picture of few bytes and many pixels."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), "gray").save(file, "PNG")
    return file.getvalue()


def model(**settings: Any) -> Model:
    """A small classifier whose maps take a backward pass each."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 8))
    return Model(net, **{**STEPS, **settings})


def plain(data: bytes, **options: Any) -> Call:
    """An explanation on the plain route."""
    return Call(True, {}, {"body": {"data": base64.b64encode(data).decode(), **options}})


def v1(data: bytes, count: int, explain: bool = False, **options: Any) -> Call:
    """So many instances of one picture."""
    instance = {"data": base64.b64encode(data).decode(), **options}
    return Call(explain, {}, {"body": {"instances": [instance] * count}})


def told(reply: Reply) -> tuple[int, str]:
    """Status and type of an error."""
    return reply.status, json.loads(reply.body)["type"]


def test_more_work_than_a_request_may_be_is_refused_by_its_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a pixel is decoded, with what it comes to; the neighbour's answer is as ever."""
    face = model(max_work=200)
    small = plain(SMALL)
    (alone,) = face.run([small])
    opened: list[bytes] = []

    def record(image: Any, *more: Any) -> Opened:
        opened.append(image.data)
        return open_sized(image, *more)

    monkeypatch.setattr("camserve.pipeline.prepare.open_sized", record)

    heavy, neighbour = face.run([v1(large(), 40), small])

    assert told(heavy) == (413, "TooMuchWork")
    message = json.loads(heavy.body)["message"]
    assert message.startswith("expected at most 200 ms of work on one request's pictures, reading, decoding and drawing, got ")
    assert "for instance 0: send fewer or smaller pictures" in message
    assert neighbour == alone
    assert opened == [SMALL]


def test_a_batch_shares_the_work_and_the_smallest_come_first() -> None:
    """Each by itself is welcome; of those that are too much together, the first ones get their answer."""
    face = model(max_work=1_000)
    calls = [v1(large(), 50), v1(large(), 20), plain(SMALL), v1(large(), 50), v1(large(), 40)]
    alone = [face.run([call])[0] for call in calls]

    together = face.run(calls)

    assert [each.status for each in alone] == [200] * 5
    assert [each.status for each in together] == [200, 200, 200, 503, 200]
    assert told(together[3]) == (503, "Busy")
    assert "share 1000 ms of work" in json.loads(together[3].body)["message"]
    for place in (0, 1, 2, 4):
        ours, theirs = (json.loads(each.body)["predictions"] for each in (together[place], alone[place]))
        assert str(ours)[:40] == str(theirs)[:40]


def test_drawing_is_work_too() -> None:
    """Overlays of a plain picture are small, so the answer's bytes do not bound them."""
    face = model(max_work=1_000)
    overlaid: dict[str, Any] = {"overlay": True, "opacity": 0, "target": list(range(8))}

    fits, drawn, predicted = face.run([v1(large(), 20), v1(large(), 20, explain=True, **overlaid), v1(large(), 20, **overlaid)])

    assert [fits.status, predicted.status] == [200, 200]
    assert told(drawn) == (413, "TooMuchWork")


def test_headers_are_work_before_pillow_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips are read in Python, the interpreter lock held: nobody counts pixels of what is too much by its strips alone."""
    file = io.BytesIO()
    Image.new("L", (1, 9_000)).save(file, "TIFF", tiffinfo={278: 1})
    monkeypatch.setattr("camserve.pictures.decode._read_header", lambda *_: pytest.fail("Pillow reads it"))

    assert told(model(max_work=500).run([v1(file.getvalue(), 10)])[0]) == (413, "TooMuchWork")


def test_numbers_are_work_before_they_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor's text takes as long as a large picture: of two that are too much together one is told to come again."""
    row = "[" + ",".join(["0"] * 400) + "]"
    channel = "[" + ",".join([row] * 400) + "]"
    call = Call(False, {}, {"body": f"[{channel},{channel},{channel}]".encode()})

    net = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8))

    one, other = Model(net, **STEPS, max_work=350).run([call, call])

    assert sorted([one.status, other.status]) == [200, 503]
    monkeypatch.setattr("camserve.protocol.body.json.loads", lambda _: pytest.fail("parsed"))
    (refused,) = model(max_work=100).run([call])
    assert refused.status == 413
    assert b"TooMuchWork" in refused.body


class Clock:
    """A clock that backward passes and decoding push on, a second each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.passes = self.decoded = 0
        monkeypatch.setattr("camserve.pictures.bounds.limits.time", SimpleNamespace(monotonic=lambda: self.now))
        differentiate: Callable[..., Any] = Pass.gradients
        monkeypatch.setattr(Pass, "gradients", self._counting("passes", differentiate))

    def decoding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Count decoding too."""
        convert: Callable[..., Any] = Image.Image.convert
        monkeypatch.setattr("PIL.Image.Image.convert", self._counting("decoded", convert))

    def _counting(self, what: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any) -> Any:
            self.now += 1
            setattr(self, what, getattr(self, what) + 1)
            return step(*given)

        return counted


def test_passes_end_with_the_time_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`contrast` takes six passes for each target; neighbours of fewer passes come first, and get what they got alone."""
    face = model(max_seconds=10, max_batch=4)
    neighbours = [plain(SMALL), plain(SMALL, top_k=2, method="gradcam")]
    alone = [face.run([call])[0] for call in neighbours]
    clock = Clock(monkeypatch)

    heavy, *others = face.run([v1(SMALL, 12, explain=True, method="contrast", top_k=8), *neighbours])

    assert told(heavy) == (503, "Busy")
    message = json.loads(heavy.body)["message"]
    assert message.startswith(
        "instance 0: the time of this batch, 10 s, was over before all maps of this picture were made, with contrast"
    )
    assert [each.status for each in others] == [200, 200]
    for ours, theirs in zip(others, alone, strict=True):
        mine, right = json.loads(ours.body), json.loads(theirs.body)
        assert [each["target"] for each in mine["explanations"]] == [each["target"] for each in right["explanations"]]
    assert clock.passes <= 11  # of 3 chunks x 8 targets x 6 classes and the neighbours'


def test_a_request_within_its_time_is_answered_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three targets by contrast take eighteen passes."""
    face = model(max_seconds=22.5)  # of which passes have four fifths
    clock = Clock(monkeypatch)

    (reply,) = face.run([plain(SMALL, method="contrast", top_k=3)])

    assert (reply.status, clock.passes) == (200, 18)
    assert len(json.loads(reply.body)["explanations"]) == 3


def test_decoding_ends_with_the_time_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at between two pictures; a single one of a smaller request came first."""
    face = model(max_seconds=10)
    clock = Clock(monkeypatch)
    clock.decoding(monkeypatch)
    grey = bytes(encoded(noise(40, 40)[:, :, 0]))

    heavy, small = face.run([v1(grey, 30), Call(False, {}, {"body": bytearray(grey)})])

    assert told(heavy) == (503, "Busy")
    assert small.status == 200
    assert clock.decoded < 12


@pytest.mark.parametrize(("given", "half"), [({}, 60), ({"responseTimeout": 30}, 15), ({"responseTimeout": 0}, 60)])
def test_a_batch_ends_well_before_the_server_ends_the_worker(given: dict[str, Any], half: float) -> None:
    """Half of the archive's `responseTimeout`, or of TorchServe's own."""
    assert half_timeout(given) == half


def test_the_archives_timeout_bounds_the_time_of_a_batch(tmp_path: Path) -> None:
    """As TorchServe reads it."""
    service = load_service(archive(tmp_path / "hurried", settings={"responseTimeout": 20}))

    assert handler_of(service).face.served.config.max_seconds == 10
    assert handler_of(service).face.metadata["limits"]["max_seconds"] == 10


def test_a_flood_of_json_is_refused_by_the_worker_itself(tmp_path: Path) -> None:
    """TorchServe's codec leaves it as it came, once a worker of ours is loaded; other bodies are parsed as ever."""
    service = load_service(archive(tmp_path / "spared"))
    flood = received(b"[" + b"[]," * 200_000 + b"[]]", "application/json")
    fair = received(b'{"data": "QUJD"}', "application/json")

    assert isinstance(flood, (bytes, bytearray))
    assert fair == {"data": "QUJD"}
    answer = ask(service, [Row({"body": flood}, {"Content-Type": "application/json"}, explain=True)])[0]
    assert (answer.status, json.loads(answer.body)["type"]) == (400, "InvalidJSON")
