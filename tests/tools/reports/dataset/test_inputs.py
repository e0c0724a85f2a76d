"""What is explained: folders, globs, URIs and Parquet files, listed once and read a chunk at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import build as small
from tests.tools.reports.dataset.conftest import Run, rows_of

from camserve.tools.client.client import CamserveError
from camserve.tools.console import ToolError


def names(given: str | Path, **columns: str) -> list[str]:
    """The names of what is found."""
    from camserve.tools.reports.dataset.inputs import Columns, find_entries

    return [entry.name for entry in find_entries(str(given), Columns(**columns), lambda _line: None)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of files that are found by their names alone."""
    for name in ("b.png", "a.JPG", "notes.txt", "sub/c.png", "sub/deep/d.webp", ".hidden/e.png"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "tree"


def test_folders_and_globs_mean_what_they_mean_to_explain(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an order that is always the same, by absolute names, which workers elsewhere can use."""
    found = [str(tree / name) for name in ("a.JPG", "b.png", ".hidden/e.png", "sub/c.png", "sub/deep/d.webp")]
    assert names(tree) == names(f"file://{tree}") == found
    monkeypatch.chdir(tree.parent)
    assert names("tree") == found
    assert names("tree/*.png") == [str(tree / "b.png")]
    assert names("tree/**/*.webp") == [str(tree / "sub/deep/d.webp")]
    assert names("tree/notes.txt") == [str(tree / "notes.txt")], "a file that is named is always taken"


def test_a_store_is_listed_as_a_folder_is(tree: Path) -> None:
    """By its URI, through fsspec; names are URIs that open again, and their files can be read."""
    import fsspec

    from camserve.tools.reports.dataset.storage import open_named, open_place

    memory = fsspec.filesystem("memory")
    for path in tree.rglob("*.*"):
        if path.is_file():
            memory.pipe(f"/bucket/pictures/{path.relative_to(tree)}", path.read_bytes())
    found = names("memory://bucket/pictures")
    assert [name.removeprefix("memory://bucket/pictures/") for name in found] == [
        *(".hidden/e.png", "a.JPG", "b.png", "sub/c.png", "sub/deep/d.webp")
    ]
    assert [open_named(name).read() for name in found] == [b".hidden/e.png", b"a.JPG", b"b.png", b"sub/c.png", b"sub/deep/d.webp"]
    assert names("memory://bucket/pictures/*.png") == ["memory://bucket/pictures/b.png"]
    assert len(names("memory://bucket/pictures/**/*.png")) == 3
    assert names("memory://bucket/pictures/sub/[c-d].png") == ["memory://bucket/pictures/sub/c.png"]
    assert open_named(found[1]).read(2) == b"a.J", "of a larger file, one byte more than asked for"
    assert str(open_place("memory://bucket/pictures/")) == "memory://bucket/pictures"


def test_results_in_a_store_are_whole_too() -> None:
    """Chunks are joined there as in a folder, done ones are known, and what is damaged is not done."""
    import fsspec

    from camserve.tools.reports.dataset.results import Results
    from camserve.tools.reports.dataset.rows import row_of_error, table_of
    from camserve.tools.reports.dataset.storage import open_place

    results = Results(open_place("memory://results/job"), 3)
    statuses: tuple[list[int | None], ...] = ([400, 400], [413], [None])
    for number, several in enumerate(statuses):
        rows = [row_of_error(f"{number}", None, CamserveError(status, "Some", "words")) for status in several]
        results.write_chunk(number, table_of(rows), "run")
    assert results.find_work() == [2], "the last could not be read"
    memory = fsspec.filesystem("memory")
    memory.pipe("/results/job/_chunks/00000001.parquet", b"damaged")
    assert results.find_work() == [1, 2]
    results.write_chunk(1, table_of([row_of_error("1", None, CamserveError(413, "Some", "words"))]), "run")
    assert results.find_unjoined() == [0]
    results.join(0)
    results.clear()
    assert sorted(memory.find("/results/job")) == ["/results/job/part-00000.parquet"]
    assert [table["status"].to_pylist() for table in results.batches()] == list(statuses)
    assert (results.find_work(), results.find_unjoined()) == ([2], [])
    results.write_chunk(2, table_of([row_of_error("2", None, CamserveError(400, "Some", "words"))]), "run")
    assert (results.find_work(), results.find_unjoined()) == ([], [0])


def write(path: Path, /, **columns: Any) -> Path:
    """Writes a Parquet file of these columns, two rows a group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_paths_in_parquet_are_taken_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one file or a folder of files, by the usual name or the one that is given; a row each, also where a path stands twice."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "1.parquet", path=["b.png", "s3://x/c.png", "b.png"], other=["x", "y", "z"])
    write(tmp_path / "2.parquet", path=["d.png"], other=["w"])
    here = str(tmp_path)
    assert names("1.parquet") == [f"{here}/b.png", "s3://x/c.png", f"{here}/b.png"]
    assert names(tmp_path)[3:] == [f"{here}/d.png"]
    assert names("1.parquet", path="other")[0] == f"{here}/x"
    for wrong, said in (({"path": "nosuch"}, 'no column "nosuch" that fits; its columns are path or other'),):
        with pytest.raises(ToolError, match=said):
            names("1.parquet", **wrong)
    write(tmp_path / "3.parquet", other=["w"])
    with pytest.raises(ToolError, match=r"expected a column of paths .path, file, uri or url. or of pictures"):
        names("3.parquet")
    write(tmp_path / "4.parquet", path=["a.png", None])
    with pytest.raises(ToolError, match="row 1 has no path"):
        names("4.parquet")
    (tmp_path / "a.png").touch()
    with pytest.raises(ToolError, match="it holds pictures and Parquet files"):
        names(tmp_path)


def test_pictures_in_parquet_are_read_where_they_stand(tmp_path: Path) -> None:
    """As bytes, or inside of a struct as data sets often have them; in any order, from any row group."""
    from camserve.tools.reports.dataset.inputs import Columns, find_entries
    from camserve.tools.reports.dataset.reading import Reader

    files = [b"zero", b"one", None, b"three", b"four" * 100]
    plain = write(tmp_path / "plain.parquet", bytes=files, label=[0, 1, 2, 3, 4])
    nested = write(tmp_path / "nested.parquet", image=[None if each is None else {"bytes": each, "path": "x"} for each in files])
    for path in (plain, nested):
        entries = list(find_entries(str(path), Columns(), lambda _line: None))
        assert [entry.name for entry in entries] == [f"{path}#{row}" for row in range(5)]
        reader = Reader("", 100)
        assert [reader.read(entries[row]) for row in (3, 0, 1)] == [b"three", b"zero", b"one"]
        missing, large = (reader.read(entries[row]) for row in (2, 4))
        assert isinstance(missing, CamserveError)
        assert (missing.status, missing.type) == (None, "Unreadable")
        assert isinstance(large, CamserveError)
        assert (large.status, large.type) == (413, "RequestTooLarge")
    targets = find_entries(str(plain), Columns(target="label"), lambda _line: None)
    assert [entry.target for entry in targets] == ["0", "1", "2", "3", "4"]


@pytest.mark.numeric
def test_each_row_of_parquet_has_its_own_target(run: Run, tmp_path: Path) -> None:
    """A label or an index; a wrong one is that row's error. Pictures in columns are explained as files are, missing ones are rows."""
    from camserve.tools.reports.dataset.inputs import Columns

    pictures = [bytes(small.encoded(small.noise(80, 64, seed))) for seed in range(4)]
    write(tmp_path / "in.parquet", picture=[*pictures, None], path=list("abcde"), wanted=["bee", None, "cat", "dog", None])
    run(tmp_path / "in.parquet", tmp_path / "out", columns=Columns(target="wanted"))
    rows = rows_of(tmp_path / "out")
    assert [row["path"] for row in rows] == list("abcde")
    assert [row["label"] for row in rows] == ["bee", rows[1]["classes"][0]["label"], "cat", None, None]
    assert [(row["status"], row["error"]) for row in rows[3:]] == [(400, "UnknownLabel"), (None, "Unreadable")]
    asked_for_another = rows[0]["target"] != rows[0]["statistics"]["target"]
    assert (rows[0]["statistics"]["map"] is not None) == asked_for_another
    assert any(row["statistics"]["map"] is not None for row in rows[:3]), (
        "the map of the predicted class is kept where another is asked for"
    )


def test_each_row_of_parquet_has_its_own_area(run: Run, tmp_path: Path) -> None:
    """A box, of whole numbers or not, or a mask's file; a wrong one is that row's error. What lies inside is a column."""
    from camserve.tools.reports.dataset.inputs import Columns, find_entries
    from camserve.tools.reports.dataset.rows import answer_of

    pictures = [bytes(small.encoded(small.noise(80, 64, seed))) for seed in range(4)]
    boxes = [[8, 0, 40, 64], None, [5, 5, 4, 9], [8, 0, 400, 64]]
    write(tmp_path / "boxes.parquet", picture=pictures, path=list("abcd"), box=boxes)
    write(tmp_path / "masks.parquet", path=["a"], mask=[b"\x89PNG"])

    run(tmp_path / "boxes.parquet", tmp_path / "boxes", columns=Columns(inside="box"), options={"contours": [0.5]})

    one, without, *wrong = rows_of(tmp_path / "boxes")
    assert one["inside"]["area"] == pytest.approx(0.5)
    assert without["inside"] is None
    assert [(row["status"], row["error"]) for row in wrong] == [(400, "InvalidOption")] * 2
    (told,) = answer_of(one)["explanations"]
    assert (told["inside"], told["contours"][0]["level"]) == (one["inside"], 0.5)
    (entry,) = find_entries(str(tmp_path / "masks.parquet"), Columns(inside="mask"), lambda _line: None)
    assert entry.inside == "iVBORw=="


def test_a_list_holds_any_name_and_knows_when_it_changed(tmp_path: Path) -> None:
    """Names need be no Unicode, and a list's digest says every entry and their order."""
    from camserve.tools.reports.dataset.inputs import Entry, List, write_list
    from camserve.tools.reports.dataset.rows import row_of_error, table_of
    from camserve.tools.reports.dataset.storage import open_place

    odd = os.fsdecode(b"/caf\xe9.png")
    entries = [Entry(odd), Entry("b", target='["x"]'), Entry("c", "f.parquet", "bytes", 7)]
    listing = write_list(entries, 2, open_place(str(tmp_path)))
    written = List(open_place(str(tmp_path)))

    assert (listing.pictures, listing.chunks) == (3, 2)
    assert [*written.chunk(0), *written.chunk(1)] == entries
    assert write_list(entries, 2, None) == listing
    assert write_list(entries[::-1], 2, None).digest != listing.digest
    row = row_of_error(odd, None, CamserveError(None, "Unreadable", "\ud800"))
    assert table_of([row])["path"].to_pylist() == ["/caf\\udce9.png"]


def test_a_file_that_is_written_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    """Whatever ends the writing; what was there before stays until then."""
    from camserve.tools.reports.dataset.storage import open_place, write_whole

    folder = open_place(str(tmp_path))
    with write_whole(folder, "deep/file") as stream:
        stream.write(b"old")

    def fail() -> None:
        with write_whole(folder, "deep/file") as stream:
            stream.write(b"new")
            stream.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "deep" / "file").read_bytes() == b"old"


def test_a_map_is_told_from_its_heatmap_where_it_can_be() -> None:
    """Otherwise it is kept: it is another class's, another layer's, or another method's."""
    from camserve.hosts.worker import Measured
    from camserve.tools.reports.dataset.rows import SCHEMA, map_of, row_of_answer, table_of

    whole = np.array([[0.5, 1.5], [2.5, 4.5]], np.float32)
    explanation = {"target": 1, "label": "bee", "probability": 0.5, "heatmap": [[0, 0.25], [0.5, 1]], "range": [0.5, 4.5]}
    explanation |= {"region": None, "warnings": []}
    about = {"method": "gradcam++", "layer": "features", "model": "m", "version": "1", "weights": "sha256:0"}
    classes = [{"index": 1, "label": "bee", "probability": 0.5}]
    answer = {"predictions": {"bee": 0.5}, "classes": classes, "explanations": [explanation], "image": None, **about}
    for target, maps, kept in ((1, whole, False), (2, whole, True), (1, whole[:1], True), (1, 2 * whole, True)):
        row = row_of_answer("a", "digest", answer, Measured(target, "", {"area": 0.5, "peak": np.nan, "new": 1.0}, maps))
        (read,) = table_of([row]).to_pylist()
        assert (read["statistics"]["map"] is not None) is kept
        found = map_of(read)
        assert found is not None
        assert found.tolist() == maps.tolist()
        assert (read["statistics"]["area"], read["statistics"]["peak"]) == (0.5, None)
        assert read.keys() == set(SCHEMA.names)
