"""What is kept of requests: the very map that an explanation shows, with the request's id, and no change to any answer."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.build import PLAIN, archive, encoded, noise, square
from tests.support.comparison.equality import assert_same
from tests.support.processes.waiting import wait_until
from tests.support.processes.worker import load_monitored

from camserve.core.config.switch import KEEP, KEEP_AT
from camserve.core.errors import ConfigError
from camserve.explain.sampling import Budget
from camserve.monitoring.evidence.reading import find_entries, list_entries, read_records
from camserve.monitoring.evidence.records import Record
from camserve.monitoring.evidence.stores import Folder
from camserve.tools.archive.archive import Response, Row, ask, handler_of

EVERY = {"sample": 0, "confidence": 1, "per_reason": 1000, "per_class": 1000}
"""Every prediction of this model is unsure."""
PICTURE = encoded(square(300, 200, 120, 40, 60) // 2 + noise(300, 200) // 4)
TEXT = base64.b64encode(PICTURE).decode()


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said by this machine's own settings."""
    for name in (KEEP, KEEP_AT):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Where evidence is kept."""
    return Folder(tmp_path_factory.mktemp("evidence") / "kept")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, store: Folder) -> Iterator[Any]:
    """The small classifier, which keeps what it is asked, whatever that costs."""
    folder = tmp_path_factory.mktemp("one") / "bright"
    made = load_monitored(archive(folder, {**PLAIN, "evidence": {"to": store.to, "picture": "whole", **EVERY}}))
    handler_of(made).face.observer._keeper._writer._budget = Budget()
    yield made
    handler_of(made).face.observer.close()


def kept(service: Any, store: Folder, rows: list[Row]) -> tuple[list[Response], list[Record]]:
    """Asks; returns the answers, and what was kept of just these requests, in the order of the requests."""
    monitor = handler_of(service).face.observer
    before = {entry.id for entry in list_entries(store)}
    answers = ask(service, rows)
    monitor._digest()
    writer = monitor._keeper._writer
    wait_until(lambda: not writer._queue)
    taken = time.monotonic()

    def has_written() -> bool:
        """Whether a turn has ended since nothing waited: what it took is in the store."""
        with writer._turns:
            writer._turns.notify()
        return bool(writer._ended > taken)

    wait_until(has_written)
    new = [entry for entry in list_entries(store) if entry.id not in before]
    return answers, sorted(read_records(store, new), key=lambda record: (record.request_id, record.instance))


@pytest.mark.numeric
def test_the_kept_map_is_the_one_that_an_explanation_shows(service: Any, store: Folder) -> None:
    """Heatmap, range, view, size, classes: what the client was told, of a prediction and of an explanation."""
    rows = [Row({"body": PICTURE}, {"x-request-id": "a"}, explain=True), Row({"body": PICTURE}, {"X-Request-Id": "b"})]
    (shown, predicted), (explained, plain) = kept(service, store, rows)
    answer = json.loads(shown.body)
    (explanation,) = answer["explanations"]

    for record in (explained, plain):
        assert record.heatmap == pytest.approx(np.array(explanation["heatmap"]), abs=1e-4)
        assert [record.raw_map.min(), record.raw_map.max()] == pytest.approx(explanation["range"], rel=1e-4, abs=1e-7)
        assert list(record.view or ()) == answer["image"]["view"] == [50.0, 0.0, 250.0, 200.0]
        assert record.image == (300, 200)
        assert {each.label: each.probability for each in record.classes} == pytest.approx(json.loads(predicted.body))
        assert record.target == explanation["target"]
        assert (record.source.method, record.source.layer, record.source.model) == ("gradcam++", "features", "bright")
        assert record.source.weights.startswith(answer["weights"])
        assert len(record.source.weights) == len("sha256:") + 64
        assert record.picture.file == bytes(PICTURE)
    assert (explained.explain, plain.explain) == (True, False)
    assert (explained.request_id, plain.request_id) == ("a", "b")


def test_a_request_is_found_again_by_its_id(service: Any, store: Folder) -> None:
    """The client's own; of KServe's V2 the body's; each instance by its place; nothing that could break a header or a line."""
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": [TEXT]}], "id": "v2-1"}
    rows = [
        Row({"body": {"instances": [{"b64": TEXT}, TEXT]}}, {"x-request-id": "several"}),
        Row({"body": body}),
        Row({"body": body}, {"x-request-id": "header"}),
        Row({"body": PICTURE}, {"x-request-id": "two words\n"}),
    ]
    answers, records = kept(service, store, rows)

    assert [each.status for each in answers] == [200] * 4
    named = [(each.request_id, each.instance) for each in records if each.request_id in ("header", "several", "v2-1")]
    assert named == [("header", 0), ("several", 0), ("several", 1), ("v2-1", 0)]
    assert len(records) == 5
    assert not any("two" in each.request_id for each in records)
    assert len(find_entries(store, "several")) == 2


def test_a_tensor_is_kept_without_a_picture(service: Any, store: Folder) -> None:
    """There is none."""
    tensor = np.random.default_rng(0).random((3, 64, 64)).astype(np.float32).tolist()
    _, (record,) = kept(service, store, [Row({"body": {"data": tensor}}, {"x-request-id": "t"}, explain=True)])
    assert (record.picture.kind, record.picture.why, record.image, record.view) == ("none", "tensor", None, None)


def test_answers_are_the_same_whatever_is_kept(service: Any, tmp_path: Path, plain_environment: None) -> None:
    """Byte for byte, and metadata says what is kept."""
    plain = load_monitored(archive(tmp_path / "bright"))
    rows = [Row({"body": PICTURE}, {"x-request-id": "z"}, explain=True), Row({"body": PICTURE}), Row({"body": bytearray(b"no")})]
    for one, other in zip(ask(service, rows), ask(plain, rows), strict=True):
        assert_same(one, other)
    assert handler_of(service).face.metadata["evidence"]["kept"]
    assert handler_of(plain).face.metadata["evidence"] == {"kept": False, "why": "the archive does not ask for it"}


def test_a_server_forces_and_forbids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever archives ask for."""
    monkeypatch.setenv(KEEP, "true")
    monkeypatch.setenv(KEEP_AT, str(tmp_path / "kept"))
    forced = handler_of(load_monitored(archive(tmp_path / "one"))).face
    assert forced.metadata["evidence"]["to"] == str(tmp_path / "kept")
    unwatched = handler_of(load_monitored(archive(tmp_path / "two", {**PLAIN, "monitor": False}))).face
    assert "not watched" in unwatched.metadata["evidence"]["why"]
    monkeypatch.setenv(KEEP, "false")
    asks = {**PLAIN, "evidence": {"to": str(tmp_path / "kept")}}
    forbidden = handler_of(load_monitored(archive(tmp_path / "three", asks))).face
    assert "server forbids" in forbidden.metadata["evidence"]["why"]
    assert not (tmp_path / "kept").exists()


def test_no_place_stops_the_load(tmp_path: Path, plain_environment: None) -> None:
    """With one line that says what to do."""
    with pytest.raises(ConfigError, match="not known where to keep it"):
        load_monitored(archive(tmp_path / "one", {**PLAIN, "evidence": True}))
