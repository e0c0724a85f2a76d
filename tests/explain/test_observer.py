"""An observed pipeline: what is observed, and that no answer changes for it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import build
from tests.support.monitoring.monitors import Output, Seeing, monitor
from tests.support.processes.worker import load_monitored

from camserve.core.messages import Encoded
from camserve.explain.observer import NullObserver, Observer, sample_rows
from camserve.pictures.bounds.limits import Quota
from camserve.pipeline.prepare import Job, Pictures
from camserve.tools.archive.archive import Row, ask, handler_of


def test_rows_are_a_copy_of_a_few_rows_of_the_input() -> None:
    """A kept view would hold the whole tensor in memory."""
    picture = np.arange(3 * 224 * 224, dtype=np.float32).reshape(3, 224, 224)
    rows = sample_rows(picture)

    assert rows.shape == (3, 16, 224)
    assert rows.base is None
    assert np.array_equal(rows[:, 1], picture[:, 14])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small model in a monitored worker, whose observer collects what it sees."""
    return load_monitored(build.archive(tmp_path_factory.mktemp("archive") / "watched"))


def asked(service: Any, observer: Observer, rows: list[Row]) -> list[Any]:
    """The answers to a batch, with this observer."""
    handler_of(service).face.observe(observer)
    answers = ask(service, rows)
    assert {answer.status for answer in answers} == {200}
    return [json.loads(answer.body) for answer in answers]


def test_what_is_measured_is_what_an_explanation_would_show(service: Any) -> None:
    """For predictions, for explanations, and for explanations of another class: always the most probable class's raw map."""
    observer = Seeing()
    picture = {"body": build.encoded(build.noise())}
    other = {"x-explain-target": "[2, 1]"}
    plain, explained, another = asked(service, observer, [Row(picture), Row(picture, {}, True), Row(picture, other, True)])
    (explanation,) = explained["explanations"]
    heatmap, (low, high) = np.array(explanation["heatmap"], dtype=np.float32), explanation["range"]

    assert [each["target"] for each in another["explanations"]] == [2, 1]
    assert len(observer.looks) == 3
    for seen in observer.looks:
        assert np.allclose(seen.maps[0], heatmap * (high - low) + low, rtol=1e-5, atol=1e-7)
        assert seen.scores[0] == pytest.approx((explained["classes"][0]["index"], explained["classes"][0]["probability"]))
        assert seen.size == (80, 64)
        assert len(seen.maps) == 2
    assert max(plain.values()) == pytest.approx(observer.looks[0].scores[0][1])


def test_being_watched_changes_no_answer(service: Any) -> None:
    """Mixed batches, with and without a observer."""
    rows = [
        Row({"body": build.encoded(build.noise(seed=seed))}, {"x-explain-top-k": "3"} if seed == 2 else {}, seed % 2 == 0)
        for seed in range(5)
    ]

    assert asked(service, Seeing(), rows) == asked(service, NullObserver(), rows)


def test_a_prediction_does_not_fail_for_being_watched(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were there too little memory for the maps, there would still be a prediction."""

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    rows = [Row({"body": build.encoded(build.noise(seed=seed))}) for seed in range(3)]
    expected = asked(service, NullObserver(), rows)
    monkeypatch.setattr(handler_of(service).face.pipeline.explainer, "_make_round", fail)
    output = Output()
    observer = monitor(output)

    assert asked(service, observer, rows) == expected
    observer.flush()
    assert output.totals()["camserve_unmeasured_maps_total", "failed"] == 3
    assert output.totals()["camserve_maps_total",] == 0


def test_a_picture_that_cannot_be_watched_is_answered(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with it."""
    rows = [Row({"body": build.encoded(build.noise(seed=seed))}) for seed in range(3)]
    expected = asked(service, NullObserver(), rows)
    monkeypatch.setattr("camserve.pipeline.pipeline.sample_rows", lambda _: 1 / 0)
    output = Output()
    observer = monitor(output)

    assert asked(service, observer, rows) == expected
    observer.flush()
    assert output.totals()["camserve_unmeasured_maps_total", "failed"] == 3


OF_ANOTHER_TYPE = """
from torch import bfloat16
from gradcam_handler import GradCAMHandler
from torchvision.transforms.functional import center_crop, to_tensor
class Own(GradCAMHandler):
    def image_processing(self, image):
        return center_crop(to_tensor(image), 64).to(bfloat16).requires_grad_()
"""


def test_an_input_of_a_handlers_own_type_is_watched(tmp_path: Path) -> None:
    """Of half precision, or with a graph."""
    folder = build.archive(tmp_path / "half", {"layers": ["features"]}, handler=OF_ANOTHER_TYPE, fault="x = x.float()")
    output = Output()
    service = load_monitored(folder)
    observer = monitor(output)
    handler_of(service).face.observe(observer)

    assert ask(service, [Row({"body": build.encoded(build.noise())})])[0].status == 200
    observer.flush()
    assert output.totals()["camserve_maps_total",] == 1


def test_what_is_tried_again_for_want_of_memory_is_counted_once(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of two pictures, of which one did not fit beside its neighbour's."""
    texts = [base64.b64encode(build.encoded(build.noise(seed=seed))).decode() for seed in range(2)]
    rows = [Row({"body": {"instances": [{"data": text} for text in texts]}}), Row({"body": build.encoded(build.noise(seed=2))})]
    prepare, refused = Pictures.prepare, [Encoded(base64.b64decode(texts[1]))]

    def once_too_large(self: Pictures, job: Job, canvases: Quota) -> None:
        if job.item.image in refused:
            refused.clear()
            raise MemoryError
        prepare(self, job, canvases)

    monkeypatch.setattr(Pictures, "prepare", once_too_large)
    output = Output()
    observer = monitor(output)
    handler_of(service).face.observe(observer)

    assert [answer.status for answer in ask(service, rows)] == [200, 200]
    assert not refused
    observer.flush()
    assert output.totals()["camserve_maps_total",] == 3


def test_a_picture_that_the_model_fails_on_is_no_failure_of_watching(tmp_path: Path) -> None:
    """The chunk is halved down to that picture, and fails unwatched too: nothing is counted, and its neighbours are measured."""
    white = np.full((64, 64, 3), 255, dtype=np.uint8)
    fault = "assert not (x.amin((1, 2, 3)) == 1).any(), 'a white picture'"
    service = load_monitored(build.archive(tmp_path / "picky", fault=fault))
    output = Output()
    observer = monitor(output)
    handler_of(service).face.observe(observer)
    rows = [Row({"body": build.encoded(white if seed == 5 else build.noise(seed=seed))}) for seed in range(8)]

    assert [answer.status for answer in ask(service, rows)] == [200] * 5 + [500] + [200] * 2
    observer.flush()
    assert output.totals()["camserve_unmeasured_maps_total", "failed"] == 0
    assert output.totals()["camserve_maps_total",] == 7


def test_bad_requests_are_not_measured_but_counted(service: Any) -> None:
    """The picture that cannot be read leaves its neighbours measured."""
    output = Output()
    observer = monitor(output)
    handler_of(service).face.observe(observer)
    ask(service, [Row({"body": build.encoded(build.noise())}), Row({"body": b"no picture"}), Row({"body": b"none"}, {}, True)])
    observer.close()
    found = output.totals()

    assert found["camserve_maps_total",] == 1
    assert found["camserve_requests_total", "predict", "ok"] == 1
    assert found["camserve_requests_total", "predict", "client_error"] == 1
    assert found["camserve_requests_total", "explain", "client_error"] == 1
    assert found["camserve_stage_seconds_count", "batch"] == 1


def test_whoever_observes_a_model_is_told_of_the_passes(service: Any) -> None:
    """Whoever is put in its place, as scripts/reference.py does, is asked what they may cost."""
    face = handler_of(service).face
    face.observe(observer := Seeing())
    assert face.pipeline.explainer.observer is face.observer is observer
    face.observe(None)
    assert isinstance(face.observer, NullObserver)
