"""Rows hold what a server answers, and what monitoring measures; reference and compare make of them what they make of pictures."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import build as small
from tests.support.comparison.closeness import assert_close, error_of_sum
from tests.tools.reports.dataset.conftest import Run, rows_of

from camserve.core.messages import Call
from camserve.monitoring.reference import FILE, Reference
from camserve.monitoring.statistics import STATISTICS
from camserve.tools.archive.archive import face_of, load_service, open_archive
from camserve.tools.archive.fresh.worker import Row, ask
from camserve.tools.commands import compare, reference
from camserve.tools.watching.baseline import Collector

CLOSE = 1e-5


@pytest.fixture(scope="module")
def served(mar: Path, pictures: Path) -> dict[str, Any]:
    """What TorchServe's worker answers for each picture, by path, asked for eight at a time in the list's order."""
    paths = [*sorted(pictures.glob("*.*")), *sorted((pictures / "more").iterdir())]
    with open_archive(mar) as opened:
        service = load_service(opened.directory)
        model = face_of(service)
        assert model is not None
        collector = Collector(model.scale)
        model.observe(collector)
        answers = []
        for start in range(0, len(paths), 8):
            bodies = [{"body": bytearray(path.read_bytes())} for path in paths[start : start + 8]]
            answers += ask(service, [Row(body, explain=True) for body in bodies])
        measured = collector.measurements()
    return {"answers": dict(zip(map(str, paths), answers, strict=True)), "measured": measured}


@pytest.mark.numeric
def test_a_row_holds_what_a_server_answers(explained: Path, served: dict[str, Any]) -> None:
    """All members of the answer by their names, and the errors; one row for each picture."""
    rows = rows_of(explained)
    assert [row["path"] for row in rows] == list(served["answers"])
    for row in rows:
        answer = served["answers"][row["path"]]
        body = json.loads(answer.body)
        assert row["status"] == answer.status
        assert row["sha256"] == hashlib.sha256(Path(row["path"]).read_bytes()).hexdigest()
        if answer.status != 200:
            assert (row["error"], row["message"], row["target"]) == (body["type"], body["message"], None)
            continue
        (told,) = body["explanations"]
        assert {name: row[name] for name in ("method", "layer", "model", "version", "weights")}.items() <= body.items()
        assert (row["width"], row["height"], row["view"]) == tuple(body["image"].values())
        assert (row["target"], row["label"], row["warnings"]) == (told["target"], told["label"], told["warnings"])
        assert (row["region"], row["further"]) == (told["region"], [])
        assert row["probability"] == pytest.approx(told["probability"], abs=CLOSE)
        assert [each["index"] for each in row["classes"]] == [each["index"] for each in body["classes"]]
        assert json.loads(row["predictions"]) == pytest.approx(body["predictions"], abs=CLOSE)
        heatmap = np.reshape(row["heatmap"], row["heatmap_shape"])
        assert heatmap.shape == np.shape(told["heatmap"])
        if told["warnings"]:
            assert not heatmap.any()
        else:
            low, high = row["range"]
            wanted = np.asarray(told["heatmap"]) * (told["range"][1] - told["range"][0]) + told["range"][0]
            assert_close(low + heatmap * (high - low), wanted, error_of_sum(192))


@pytest.mark.numeric
def test_a_rows_statistics_are_what_monitoring_measures(explained: Path, served: dict[str, Any]) -> None:
    """Each picture's own, and nothing where the picture is none; a map beside them is needless where the heatmap tells it."""
    measured = served["measured"]
    rows = [row for row in rows_of(explained) if row["status"] == 200]
    assert len(rows) == len(measured.targets) == 130
    for place, row in enumerate(rows):
        found = row["statistics"]
        assert (found["target"], found["reason"], found["map"]) == (measured.targets[place], measured.reasons[place], None)
        for name in STATISTICS:
            value = measured.values[name][place]
            assert (found[name] is None) == bool(np.isnan(value)), name
            assert found[name] is None or found[name] == pytest.approx(value, abs=1e-4, rel=1e-4), name
    assert all(row["statistics"] is None for row in rows_of(explained) if row["status"] != 200)


@pytest.mark.numeric
def test_a_reference_of_rows_is_that_of_the_pictures(
    explained: Path, mar: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same counts, edges and mean maps; and once the archive holds it, the rows are still the archive's."""
    paths = [Path(shutil.copy(mar, tmp_path / name)) for name in ("pictures.mar", "rows.mar")]
    assert reference.main(["--trust", "--archive", str(paths[0]), str(pictures)]) == 0
    assert reference.main(["--archive", str(paths[1]), str(explained)]) == 0
    assert reference.main(["--archive", str(paths[1]), str(explained)]) == 0
    made = []
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            made.append(Reference.from_json(archive.read(FILE).decode()))
    one, other = made

    assert (one.provenance, one.images, one.groups) == (other.provenance, other.images, other.groups)
    assert one.images == 130
    for name in STATISTICS:
        assert one.edges[name] == pytest.approx(other.edges[name], rel=1e-4, abs=1e-6), name
        assert np.abs(one.counts[name] - other.counts[name]).sum() <= 2, name  # a value on an edge may fall on either side
    assert list(one.attention) == list(other.attention)
    assert one.attention
    for target, attention in one.attention.items():
        assert attention.images == other.attention[target].images
        assert attention.grid == pytest.approx(other.attention[target].grid, abs=1e-6)
    assert "2 pictures were refused and do not count" in capsys.readouterr().out


def test_rows_of_another_archive_are_refused(explained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reference of another model's maps would call every prediction a drift."""
    other = small.mar(tmp_path, "small", state=small.weights(seed=3), settings={"batchSize": 8})
    assert reference.main(["--archive", str(other), str(explained)]) == 1
    assert "its rows are of small 1.0" in " ".join(capsys.readouterr().err.split())
    assert reference.main(["--archive", str(other), str(explained), str(explained)]) == 1
    assert "expected at most 1 such folder" in " ".join(capsys.readouterr().err.split())


@pytest.mark.numeric
def test_comparing_rows_is_comparing_the_pictures(explained: Path, mar: Path, pictures: Path, run: Run, tmp_path: Path) -> None:
    """With the second archive asked now, or its rows read; the figures are the same, and the worst pictures are drawn."""
    from camserve.tools.reports.dataset.inputs import Columns

    state = small.weights()
    state["fc.weight"] = state["fc.weight"].flip(1)
    other = small.mar(tmp_path, "other", state=state, settings={"batchSize": 8}, labels={"0": "ant", "1": "bee", "2": "cat"})
    seconds = tmp_path / "seconds"
    run(explained, seconds, archive=other, columns=Columns(target="label"))
    told = []
    for number, images in enumerate(([pictures], [explained], [explained, seconds])):
        figures, page = tmp_path / f"{number}.json", tmp_path / f"{number}.html"
        arguments = ["--trust", str(mar), str(other), *map(str, images), "--json", str(figures), "--html", str(page)]
        assert compare.main(arguments) == 0
        told.append(json.loads(figures.read_text()))
        assert page.read_text().count("data:image/webp") == 24
    first = {row["file"]: row for row in told[0]["rows"]}
    assert len(first) == 130
    for each in told[1:]:
        assert each["pictures"] == 130
        assert each["skipped"].keys() == told[0]["skipped"].keys()
        assert each["figures"] == pytest.approx(told[0]["figures"], abs=1e-3)
        assert {row["file"]: (row["first"], row["second"], row["target"]) for row in each["rows"]} == {
            file: (row["first"], row["second"], row["target"]) for file, row in first.items()
        }


def test_a_changed_picture_is_not_compared(explained: Path, mar: Path, pictures: Path, tmp_path: Path) -> None:
    """Its row is of what it was."""
    changed, figures, page = pictures / "002.png", tmp_path / "figures.json", tmp_path / "report.html"
    before = changed.read_bytes()
    changed.write_bytes(small.encoded(small.noise(80, 64, 9)))
    try:
        assert compare.main(["--trust", str(mar), str(mar), str(explained), "--json", str(figures), "--html", str(page)]) == 0
    finally:
        changed.write_bytes(before)
    told = json.loads(figures.read_text())
    assert (told["pictures"], list(told["failed"])) == (129, [str(changed)])
    assert "another than it was" in told["failed"][str(changed)]


def test_no_call_of_the_pipeline_is_taken_for_another(mar: Path) -> None:
    """Observations say whose they are, also where a neighbour fails."""
    with open_archive(mar) as opened:
        model = face_of(load_service(opened.directory))
        assert model is not None
        collector = Collector(model.scale)
        seen: list[int] = []
        collector.observe = lambda observation: seen.append(observation.call)  # type: ignore[method-assign]
        model.observe(collector)
        good = bytes(small.encoded(small.noise()))
        bodies = [good, b"bad", good, good]
        model.run([Call(True, {}, {"body": body}) for body in bodies])
    assert seen == [0, 2, 3]
