"""The command on its own: what it refuses, deletes, exports, and what compare does with what was marked."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tests.support import build as small
from tests.support.browser import ROOT
from tests.support.monitoring.evidence import keep, look_at, now

from camserve.monitoring.evidence.reading import list_entries
from camserve.monitoring.evidence.records import Picture
from camserve.monitoring.evidence.stores import open_store
from camserve.monitoring.reference import EXAMPLES, FILE, Reference
from camserve.tools.commands import compare
from camserve.tools.commands import reference as reference_command
from camserve.tools.watching.evidence import command
from camserve.tools.watching.evidence.marks import add_mark
from camserve.tools.watching.evidence.pages.findings import Asked
from camserve.tools.watching.evidence.periods import read_period
from camserve.tools.watching.evidence.sources import open_evidence

RAY = ROOT / ".venv-ray" / "bin" / "python"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "there is no folder nowhere"),
        (("nosuch://x",), "nosuch://: cannot be opened here"),
        (("http://127.0.0.1:8090/evidence",), "a page of scripts/inspector.py is for a browser"),
        (("KEPT", "--model", "cat"), 'no evidence of a model "cat"; did you mean cats?'),
        (("KEPT", "--stat", "centroidx"), 'no statistic "centroidx"; did you mean centroid_x?'),
        (("KEPT", "--alert", "CamserveDrift"), 'no alert "CamserveDrift"; did you mean'),
        (("KEPT", "--since", "noon"), 'expected how long ago (30m, 2h, 7d) or a time (2026-01-31T14:00Z), got "noon"'),
        (("KEPT", "--delete"), "--delete without ids deletes all of a time; say which with --since (`ever`: all)"),
        (("KEPT", "--delete", "order-1", "nothing"), 'nothing is deleted: nothing was kept of "order-1" or "nothing"'),
        (("EMPTY",), "no evidence is kept here; the key `evidence` of an archive turns it on"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(
    arguments: tuple[str, ...], said: str, moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what came, what is accepted, and what to do; nothing is written."""
    places = {"KEPT": str(moved), "EMPTY": str(tmp_path)}
    assert command.main([*(places.get(each, each) for each in arguments), "--out", str(tmp_path / "page.html")]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert said in told.err
    assert not (tmp_path / "page.html").exists()


def test_evidence_is_deleted_by_id_by_request_by_time_and_all(
    moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its marks; how many is said."""
    kept = Path(shutil.copytree(moved, tmp_path / "kept"))
    store = open_store(str(kept))
    entries = list_entries(store)
    add_mark(store, entries[0], "wrong", "", "")
    request = open_evidence(str(kept)).shelf.read(entries[5:6])[0].card["request"]

    def delete(*arguments: str) -> int:
        assert command.main([str(kept), "--delete", *arguments]) == 0
        return int(capsys.readouterr().out.split()[0])

    assert delete(entries[0].id) == 1
    assert not list(kept.rglob(f"*{entries[0].id}*"))
    assert delete(request) == 1
    assert delete("--since", "30m") == sum(each.time >= now() - timedelta(minutes=30) for each in entries)
    assert delete("--since", "ever") == len(list_entries(open_store(str(moved)))) - 2 - 4
    assert list_entries(store) == []


def test_records_of_another_reference_are_left_out_and_told(moved: Path, tmp_path: Path, reference: Reference) -> None:
    """The latest counts; without its reference pictures are shown, and nothing is compared."""
    kept = Path(shutil.copytree(moved, tmp_path / "kept"))
    asked = Asked(read_period("1h", "now"))
    keep(kept, look_at([0] * 3, seed=9), None, begin=now() - timedelta(minutes=5))
    report = open_evidence(str(kept)).report("cats", asked)
    assert report["left_out"] == "3 of another reference are left out"
    assert report["kept"] == 364

    for path in kept.rglob("reference-*"):
        path.unlink()
    report = open_evidence(str(kept)).report("cats", asked)
    assert report["statistics"] == []
    assert report["why"] == f"The reference {reference.digest} is not here; give the archive that holds it (--archive)."
    assert len(report["cards"]) == 364
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / FILE).write_text(reference.to_json())
    assert open_evidence(str(kept), [tmp_path / "archive"]).report("cats", asked)["first"] == "centroid_x"


@pytest.mark.skipif(not RAY.exists(), reason="needs .venv-ray, which scripts/test.sh makes")
def test_everything_of_a_time_is_exported_with_its_marks(moved: Path, tmp_path: Path) -> None:
    """A row a record; maps and statistics are those that were kept, to the bit."""
    kept = Path(shutil.copytree(moved, tmp_path / "kept"))
    store = open_store(str(kept))
    entry = list_entries(store)[7]
    add_mark(store, entry, "wrong", "the sign", "ann")
    file = tmp_path / "rows.parquet"
    code = (
        "import sys; sys.path.insert(0, 'handlers'); from camserve.tools.watching.evidence import command as c; import json\n"
        f"assert c.main([{str(kept)!r}, '--parquet', {str(file)!r}]) == 0\n"
        f"import pyarrow.parquet as pq; rows = pq.read_table({str(file)!r}).to_pylist()\n"
        "keys = ('id', 'reasons', 'weight', 'label', 'mark', 'note', 'who', 'map', 'map_shape', 'statistics', 'bins')\n"
        "print(json.dumps([{key: row[key] for key in keys} | {'marks': len(row['marks'])} for row in rows]))"
    )
    ran = subprocess.run([str(RAY), "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    rows = json.loads(ran.stdout.splitlines()[-1])

    assert len(rows) == 364
    assert [row["id"] for row in rows if row["mark"]] == [entry.id]
    row = next(row for row in rows if row["id"] == entry.id)
    assert (row["mark"], row["note"], row["who"], row["marks"], row["weight"], row["reasons"]) == (
        "wrong",
        "the sign",
        "ann",
        1,
        4,
        ["sample"],
    )
    from camserve.monitoring.evidence.reading import read_record

    record = read_record(store, entry)
    np.testing.assert_array_equal(np.array(row["map"], np.float32).reshape(row["map_shape"]), record.raw_map)
    assert row["statistics"] == dict(record.statistics)
    assert {name: place for name, place in row["bins"].items() if place is not None} == dict(record.bins)
    assert (file.stat().st_mode & 0o777) == 0o600


def test_compare_runs_on_what_was_marked(tmp_path: Path, reference: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    """The pictures marked wrong, by their records' names; the same model again looks at the same thing, which is beyond the limit."""
    kept, looks = tmp_path / "kept", look_at([0, 1, 2], seed=5)
    records = keep(kept, looks, reference, begin=now() - timedelta(minutes=9), kind="whole")
    thumbnails = keep(kept, look_at([1], seed=6), reference, begin=now() - timedelta(minutes=5))
    store = open_store(str(kept))
    by_name = {entry.name: entry for entry in list_entries(store)}
    for record in (records[0], records[2], thumbnails[0]):
        add_mark(store, by_name[record.name], "wrong", "", "")
    add_mark(store, by_name[records[2].name], "right", "", "")
    archives = [str(small.archive(tmp_path / name / "small")) for name in ("a", "b")]
    told = tmp_path / "told.json"

    def run(*arguments: str) -> int:
        page = ["--html", str(tmp_path / "report.html"), "--json", str(told)]
        return compare.main(["--trust", *archives, str(kept), "--marked", *arguments, *page])

    assert run("wrong", "--max-same", "0.5") == 1
    found = json.loads(told.read_text())
    assert {row["file"].partition(".jpeg")[0] for row in found["rows"]} == {records[0].name, thumbnails[0].name}
    assert (found["figures"]["same"], found["exceeded"]) == (1, ["same"])
    assert "1 of 2 are thumbnails, which stand for the originals" in capsys.readouterr().out
    assert "data:image/webp" in (tmp_path / "report.html").read_text()
    assert run("right", "--max-overlap-loss", "0") == 0
    assert run("bad_input") == 2
    assert "no picture is marked bad_input" in capsys.readouterr().err


def test_a_reference_keeps_examples_that_the_page_shows_as_normal(tmp_path: Path) -> None:
    """Of every bin and class group; with the map that the model makes of them; those of another reference are not shown."""
    archive = small.archive(tmp_path / "small")
    good = tmp_path / "good"
    good.mkdir()
    small.pictures_in(good)
    arguments = ["--trust", "--archive", str(archive), "--examples", "1", str(good)]
    assert reference_command.main(arguments) == 0
    found = Reference.from_json((archive / FILE).read_text())
    evidence = open_evidence(str(tmp_path), [archive])
    examples = evidence.references.examples(found.digest)

    assert 10 <= len(examples) <= 130
    for name in ("centroid_x", "confidence"):
        table = found.counts[name][:9]
        had = {(each.group, each.bins[name]) for each in examples if name in each.bins}
        assert {(int(group), int(place)) for group, place in np.argwhere(table > 0)} <= had
    assert all(each.picture.jpeg[:2] == b"\xff\xd8" and max(each.picture.size) <= 512 for each in examples)
    first = examples[0]
    columns = first.raw_map.sum(0) / first.raw_map.sum()
    centre = float(columns @ ((np.arange(len(columns)) + 0.5) / len(columns)))
    assert first.statistics["centroid_x"] == pytest.approx(centre, abs=1e-4)
    assert evidence.references.examples("00000000") == []
    assert json.loads((archive / EXAMPLES).read_text())["reference"] == found.digest
    assert isinstance(first.picture, Picture)


def test_nothing_drifted_is_said_only_of_pictures_enough(
    moved: Path, tmp_path: Path, reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a few pictures nothing can be told, whichever way they look; the line says what would count all."""
    few = tmp_path / "few"
    keep(few, look_at([0] * 20, seed=9), reference, begin=now() - timedelta(minutes=5))
    said = {}
    for kept in (moved, few):
        assert command.main([str(kept), "--since", "1h", "--out", str(tmp_path / "page.html")]) == 0
        said[kept] = capsys.readouterr().out.splitlines()[1].strip()
    assert said[moved].startswith("drifted: ")
    assert said[few] == "too few pictures were sampled to tell whether anything drifted; --prometheus URL counts all predictions"
    whole = {"statistics": [{"name": "area", "drifted": False, "enough": True}], "why": "", "counted": 0}
    assert command.say_what_drifted(whole) == "nothing drifted"
