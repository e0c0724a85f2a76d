"""Explaining many pictures: what is taken, what is written, what a second run skips, and the same from an archive."""

from __future__ import annotations

import base64
import io
import json
import runpy
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.support.build import encoded, mar, noise

from camserve.protocol.options import OPTIONS
from camserve.tools import cli
from camserve.tools.client.client import CamserveError
from camserve.tools.client.sources import ServerSource
from camserve.tools.client.token import open_token_file
from camserve.tools.commands import compare, explain
from camserve.tools.commands.explain import find_pictures
from camserve.tools.commands.serve import Server
from camserve.tools.console import Progress, ToolError
from camserve.tools.reports import gallery
from camserve.tools.reports.journal import Journal
from camserve.tools.reports.run import Run

ROOT = Path(__file__).resolve().parents[3]
DEMO = "efficientnet_lite0"


class Told:
    """An source that answers by itself: the label is the picture's bytes; `bad` ones fail."""

    name = "told"
    identity: Mapping[str, str] | None = MappingProxyType({"weights": ""})

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def ask(self, picture: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
        """One explanation, with an overlay where it was asked for."""
        self.asked.append(picture)
        if picture.startswith(b"bad"):
            raise CamserveError(400, "InvalidImage", "it is bad")
        overlay = {"overlay": OVERLAY} if options.get("overlay") else {}
        explanation = {"target": 1, "label": picture.decode(), "probability": 0.5, "region": [0, 0, 2, 4], "warnings": []}
        return {
            "classes": [{"index": 1, "label": picture.decode(), "probability": 0.5}],
            "explanations": [{**explanation, "heatmap": [[1.0]], "range": [0, 1], **overlay}],
            "image": {"width": 8, "height": 4, "view": [0, 0, 8, 4]},
            **{"method": "gradcam++", "layer": "features", "model": "m", "version": "1", "weights": ""},
        }


def _overlay() -> str:
    return "data:image/png;base64," + base64.b64encode(bytes(encoded(noise(16, 8)))).decode()


OVERLAY = _overlay()


def files(folder: Path, **contents: str) -> list[Path]:
    """Files of these names and contents."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.png").write_text(content)
    return sorted(folder.glob("*.png"))


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """The rows by file name."""
    lines = (out / "explanations.jsonl").read_text().splitlines()
    return {Path(row["file"]).stem: row for row in map(json.loads, lines)}


# ------------------------------------------------------------------ what is taken


def test_files_folders_and_globs_are_found_once_each(tmp_path: Path) -> None:
    """A folder gives the pictures below it, in order, without what was written there before; a named file is always taken."""
    files(tmp_path / "a", one="", two="")
    files(tmp_path / "a" / "b", three="")
    files(tmp_path / "a" / "out" / "overlays", written="")
    (tmp_path / "a" / "notes.txt").write_text("")
    out = tmp_path / "a" / "out"
    names = [
        str(tmp_path / "a" / "two.png"),
        str(tmp_path / "a"),
        str(tmp_path / "a" / "*.png"),
        str(tmp_path / "a" / "notes.txt"),
    ]

    assert [path.name for path in find_pictures(names, out)] == ["two.png", "three.png", "one.png", "notes.txt"]
    for name in ("missing.png", "no*.png"):
        with pytest.raises(ToolError, match="there is no such file"):
            find_pictures([str(tmp_path / name)], out)


# ------------------------------------------------------------------ what is written


def test_each_picture_gets_a_row_and_an_overlay(tmp_path: Path) -> None:
    """The row holds the whole answer, with the overlay's file in place of its bytes; names stay apart and harmless."""
    pictures = [*files(tmp_path / "x", cat="cat"), *files(tmp_path / "y", cat="dog"), *files(tmp_path / "z", **{"; rm *": "cow"})]
    run = Run(Told(), tmp_path / "out", {"model": "told", "overlay": True})
    (tmp_path / "out").mkdir()
    assert run.explain(pictures, jobs=2) == {"explained": 3, "done": 0, "failed": 0}

    written = [json.loads(line) for line in (tmp_path / "out" / "explanations.jsonl").read_text().splitlines()]
    assert {row["file"]: row["classes"][0]["label"] for row in written} == dict(
        zip(map(str, pictures), ["cat", "dog", "cow"], strict=True)
    )
    overlays = [row["explanations"][0]["overlay"] for row in written]
    assert len(set(overlays)) == 3
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._/") for name in overlays)
    assert Image.open(io.BytesIO((tmp_path / "out" / overlays[0]).read_bytes())).size == (16, 8)
    assert written[0]["explanations"][0]["heatmap"] == [[1.0]]
    assert written[0]["asked"] == {"model": "told", "overlay": True}


def test_a_failure_is_a_row_and_never_the_end(tmp_path: Path) -> None:
    """The server's error, and a file that cannot be read; the others are explained."""
    pictures = [*files(tmp_path / "x", a="bad", b="cat", c="dog"), tmp_path / "x" / "gone.png"]
    (tmp_path / "out").mkdir()
    run = Run(Told(), tmp_path / "out", {"model": "told"})
    assert run.explain(pictures, jobs=3) == {"explained": 2, "done": 0, "failed": 2}

    written = rows(tmp_path / "out")
    assert written["a"]["error"] == {"status": 400, "type": "InvalidImage", "message": "it is bad"}
    assert written["gone"]["error"]["type"] == "Unreadable"
    assert "explanations" in written["c"]


def test_each_kind_of_failure_names_its_first_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With how many there are of it, the most frequent first; the server's message alone says nothing of where to look."""
    pictures = [tmp_path / "x" / "gone.png", *files(tmp_path / "x", a="bad 1", b="bad 2", c="bad 3", d="cat")]
    (tmp_path / "out").mkdir()
    run = Run(Told(), tmp_path / "out", {"model": "told"})
    counts = run.explain(pictures, jobs=1)
    explain.report(counts, run, Progress())

    said = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    assert said == [
        "1 explained, 0 done before, 4 failed",
        f"  failed, 3 times, first {pictures[1]}: InvalidImage: it is bad",
        f"  failed: {pictures[0]}: Unreadable: the file cannot be read: No such file or directory",
    ]


# ------------------------------------------------------------------ a second run


def test_a_second_run_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    """Changed and failed pictures are asked for again, and those whose overlay is gone; nothing else is."""
    out = tmp_path / "out"
    out.mkdir()
    pictures = files(tmp_path / "x", a="bad", b="cat", c="dog", d="cow", e="emu")
    asked = {"model": "told", "overlay": True}
    Run(Told(), out, asked).explain(pictures, jobs=1)
    pictures[1].write_text("kitten")
    (out / rows(out)["c"]["explanations"][0]["overlay"]).unlink()

    told = Told()
    assert Run(told, out, asked).explain(pictures, jobs=1) == {"explained": 2, "done": 2, "failed": 1}
    assert told.asked == [b"bad", b"kitten", b"dog"]
    labels = {name: row["classes"][0]["label"] for name, row in rows(out).items() if "classes" in row}
    assert labels == {"b": "kitten", "c": "dog", "d": "cow", "e": "emu"}


@pytest.mark.parametrize("change", [{"model": "other"}, {"target": [1]}, {"method": "gradcam"}])
def test_other_options_are_another_run(tmp_path: Path, change: dict[str, Any]) -> None:
    """A row counts as done only for the same model and the same options; `again` asks in any case."""
    (tmp_path / "out").mkdir()
    pictures = files(tmp_path / "x", a="cat")
    Run(Told(), tmp_path / "out", {"model": "told"}).explain(pictures, jobs=1)

    assert Run(Told(), tmp_path / "out", {"model": "told", **change}).explain(pictures, jobs=1)["explained"] == 1
    assert Run(Told(), tmp_path / "out", {"model": "told", **change}).explain(pictures, jobs=1)["done"] == 1
    assert Run(Told(), tmp_path / "out", {"model": "told", **change}).explain(pictures, jobs=1, again=True)["explained"] == 1
    assert len((tmp_path / "out" / "explanations.jsonl").read_text().splitlines()) == 1


def test_a_run_that_was_cut_short_is_taken_up(tmp_path: Path) -> None:
    """What was written stays; a last line that was cut off is asked for again."""
    out = tmp_path / "out"
    out.mkdir()
    pictures = files(tmp_path / "x", a="cat", b="dog")
    Run(Told(), out, {"model": "told"}).explain(pictures, jobs=1)
    whole = (out / "explanations.jsonl").read_bytes()
    (out / "explanations.jsonl").write_bytes(whole[:-20])
    last = b"cat" if json.loads(whole.splitlines()[-1])["file"].endswith("a.png") else b"dog"  # whichever came last

    told = Told()
    assert Run(told, out, {"model": "told"}).explain(pictures, jobs=1) == {"explained": 1, "done": 1, "failed": 0}
    assert told.asked == [last]
    assert set(rows(out)) == {"a", "b"}


def test_a_row_is_whole_on_the_disk_as_soon_as_it_is_added(tmp_path: Path) -> None:
    """Even behind a line that was cut off, and before the journal is closed: the process may be killed at any time."""
    a, b = ({"file": name, "sha256": "0", "asked": {}, "explanations": []} for name in "ab")
    path = tmp_path / "explanations.jsonl"
    path.write_text(json.dumps(a) + "\n" + json.dumps(b)[:-9])
    with Journal(path) as journal:
        journal.add(b)
        assert Journal(path).rows == {"a": a, "b": b}


def test_the_journal_leaves_out_lines_that_are_no_rows(tmp_path: Path) -> None:
    """Whatever stands in the file, only whole rows are read; of two of one file, the later."""
    row = {"file": "a", "sha256": "0", "asked": {}}
    lines = [b"{}", b"[]", b'{"file": 3}', b"\xff", json.dumps({**row, "error": {}}).encode(), b'{"file":"a"']
    path = tmp_path / "explanations.jsonl"
    path.write_bytes(b"\n".join([*lines, json.dumps({**row, "explanations": []}).encode()]))

    assert Journal(path).rows == {"a": {**row, "explanations": []}}
    assert Journal(path).done("a", "0", {})
    assert not Journal(path).done("a", "1", {})


# ------------------------------------------------------------------ the gallery and the tokens


def test_the_gallery_holds_everything_and_ends_no_element_early(tmp_path: Path) -> None:
    """A label that closes a script element stays inside the data; the picture is in the page."""
    (tmp_path / "out").mkdir()
    pictures = files(tmp_path / "x", a="</script><script>alert(1)</script>", b="bad")
    run = Run(Told(), tmp_path / "out", {"model": "told", "overlay": True})
    run.explain(pictures, jobs=1)
    text = gallery.write(list(run.journal.rows.values())[::-1], tmp_path / "out").read_text()

    data = text.partition('id="data">')[2].partition("</script>")[0]
    good, bad = json.loads(data)
    assert good["label"] == "</script><script>alert(1)</script>"
    assert good["region"] == 0.25
    assert good["picture"].startswith("data:image/webp;base64,")
    assert bad == {"file": str(pictures[1]), "error": "InvalidImage: it is bad"}
    assert text.count("</script>") == 2
    assert "{{" not in text


@pytest.mark.parametrize(
    ("content", "wanted"),
    [("abc\n", "abc"), ('{"inference": {"key": "k1", "expiration time": "x"}, "management": {"key": "no"}}', "k1")],
)
def test_a_token_is_read_anew_each_time(tmp_path: Path, content: str, wanted: str) -> None:
    """From a plain file or TorchServe's own, because tokens there expire and are replaced."""
    path = tmp_path / "token"
    path.write_text(content)
    read = open_token_file(path)
    assert read is not None
    assert read() == wanted
    path.write_text("next")
    assert read() == "next"
    assert open_token_file(None) is None


@pytest.mark.parametrize("content", [None, "", "two words", "new\nline", "{}", '{"inference": 3}', "caf\u00e9"])
def test_a_file_without_a_token_is_told_without_repeating_it(tmp_path: Path, content: str | None) -> None:
    """Nothing of the file's content is shown."""
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ToolError) as raised:
        open_token_file(path)
    assert str(path) in str(raised.value)
    assert content is None or not content or content not in str(raised.value)


def test_pictures_have_areas_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for with them, told in their rows, and another area is another question; of an archive, in this process."""
    tiny, pictures = mar(tmp_path, "tiny"), tmp_path / "pictures"
    pictures.mkdir()
    for name in ("one", "two", "three"):
        (pictures / f"{name}.png").write_bytes(encoded(noise(80, 64)))
    areas = tmp_path / "areas.json"
    areas.write_text(json.dumps({"one.png": [0, 0, 80, 64], "two.png": [8, 0, 40, 64]}))
    command = [str(pictures), "--trust", "--archive", str(tiny), "--out", str(tmp_path / "out"), "--inside-file", str(areas)]

    assert explain.main(command) == 0
    found = {name: row["explanations"][0].get("inside") for name, row in rows(tmp_path / "out").items()}
    assert (found["one"]["share"], found["one"]["area"], found["three"]) == (1.0, 1.0, None)
    assert found["two"]["area"] == pytest.approx(0.5)
    areas.write_text(json.dumps({"one.png": [0, 0, 80, 64], "two.png": [8, 0, 24, 64]}))
    assert explain.main(command) == 0
    assert "1 explained, 2 done before" in capsys.readouterr().out
    assert rows(tmp_path / "out")["two"]["explanations"][0]["inside"]["area"] == pytest.approx(0.25)


# ------------------------------------------------------------------ for real


def test_each_option_of_a_request_has_a_flag() -> None:
    """Read as the table of options says, and sent only where it was given."""
    words = ["--target", "2", "--target", "tabby", "--top-k", "3", "--method", "finercam", "--layer", "features.8"]
    words += ["--inside", "[1, 2, 3, 4]", "--contours", "0.5"]
    words += ["--check", "--colormap", "jet", "--opacity", ".25", "--no-overlays"]
    given = {"target": [2, "tabby"], "top_k": 3, "method": "finercam", "layer": "features.8", "colormap": "jet", "opacity": 0.25}
    given |= {"check": True, "inside": [1, 2, 3, 4], "contours": 0.5}

    assert explain.parse(["cat.jpg", *words]).request == given
    assert explain.parse(["cat.jpg"]).request == {"overlay": True}
    assert set(given) == {option.name for option in OPTIONS} - {"format", "overlay"}


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        *(("top-k", value, "expected a whole number from 1 to 1000") for value in ("0", "1001", "two", "1.5")),
        *(("opacity", value, "expected a number from 0 to 1") for value in ("7", "half", "nan")),
        *(
            ("inside", "[1, 2, 3]", "expected a box"),
            ("inside", "[3, 2, 1, 4]", "x + width"),
            ("contours", "1", "from 0.01 to 0.99"),
        ),
        *(("method", "GradCAM", "choose from"), ("colormap", "hot", "choose from")),
    ],
)
def test_a_flag_refuses_what_no_archive_accepts(capsys: pytest.CaptureFixture[str], flag: str, value: str, message: str) -> None:
    """Before anything is asked, with the values that there are."""
    with pytest.raises(SystemExit) as raised:
        explain.parser().parse_args(["cat.jpg", f"--{flag}", value])

    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_an_archive_is_explained_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No server: the same rows, overlays and gallery; a picture that is none is a row, and the exit status says so."""
    tiny = mar(tmp_path, "tiny", labels={"0": "bright", "1": "b", "2": "c"})
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "noise.png").write_bytes(encoded(noise(80, 64)))
    (pictures / "broken.png").write_bytes(b"\x00nothing\xff")
    arguments = [
        str(pictures),
        "--trust",
        "--archive",
        str(tiny),
        "--target",
        "bright",
        "--target",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]

    assert explain.main(arguments) == 1
    assert "1 explained, 0 done before, 1 failed" in capsys.readouterr().out
    written = rows(tmp_path / "out")
    assert [each["label"] for each in written["noise"]["explanations"]] == ["bright", "c"]
    assert np.array(written["noise"]["explanations"][0]["heatmap"]).shape == (8, 8)
    assert written["noise"]["asked"]["model"] == "tiny 1.0"
    assert written["broken"]["error"]["type"] == "UnsupportedFormat"
    overlay = (tmp_path / "out" / written["noise"]["explanations"][1]["overlay"]).read_bytes()
    assert Image.open(io.BytesIO(overlay)).size == (80, 64)
    (pictures / "broken.png").unlink()
    assert explain.main(arguments) == 0
    assert "0 explained, 1 done before, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.png"], "there is no such file"),
        (["PICTURE", "--url", "localhost:8080"], "expected http://HOST:PORT"),
        (["PICTURE", "--token-file", "missing"], "cannot read the token file"),
        (["PICTURE", "--archive", "missing.mar"], "no archive missing.mar"),
        (["PICTURE", "--trust", "--archive", "x"], "x: not an archive: its manifest"),
        (["PICTURE", "--archive", "x", "--model", "m"], "--archive asks no server; leave --model out"),
        (["PICTURE", "--archive", "x", "--token-file", "m"], "--archive asks no server; leave --token-file out"),
        (["PICTURE", "--url", "http://127.0.0.1:9"], "which model? Give --model NAME, or a URL that ends in /explanations/MODEL"),
        (["PICTURE", "--url", "http://h/explanations/m", "--model", "n"], "the URL names a model already, m"),
    ],
)
def test_what_cannot_be_begun_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    """The exit status is 1, and no traceback is shown."""
    monkeypatch.chdir(tmp_path)
    (picture,) = files(tmp_path / "x", a="cat")
    assert explain.main([str(picture) if each == "PICTURE" else each for each in arguments]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_the_only_model_need_not_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several, they are listed. What the servers say of their models is tried live."""
    served = ["cats"]
    monkeypatch.setattr("camserve.tools.client.sources.list_models", lambda *_: served)

    assert ServerSource("http://127.0.0.1:8080", None, None, 1).name == "http://127.0.0.1:8080/explanations/cats"

    served.append("dogs")
    with pytest.raises(ToolError, match=r"which model.* it serves cats or dogs"):
        ServerSource("http://127.0.0.1:8080", None, None, 1)


def test_the_server_s_root_and_a_model_or_its_own_url_are_asked() -> None:
    """And named alike in the rows."""
    whole = "http://127.0.0.1:8080/explanations/cats"
    assert ServerSource("http://127.0.0.1:8080/", "cats", None, 1).name == ServerSource(whole, None, None, 1).name == whole


def test_an_archive_of_another_handler_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TorchServe's own answers with something else; what makes an archive of it that explains is named."""
    stock = mar(tmp_path, "stock", handler="stock")
    (picture,) = files(tmp_path / "x", a="cat")

    assert explain.main([str(picture), "--trust", "--archive", str(stock), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert f"{stock}: its handler is not camserve's" in said
    assert f"--from-archive {stock}" in said


class OddError(Exception):
    """Nobody foresees it."""


def raising(error: BaseException) -> Any:
    """A function that raises it, whatever it is given."""

    def function(*_: Any, **__: Any) -> None:
        raise error

    return function


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("way", ["command", "script"])
def test_what_no_tool_foresaw_is_one_line(
    way: str, debug: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `camserve explain` and by scripts/explain.py; the traceback is for who asks for it."""
    monkeypatch.setenv("CAMSERVE_DEBUG", "1" if debug else "")
    monkeypatch.setattr(explain, "find_pictures", raising(OddError("one\ntwo")))
    monkeypatch.setattr(sys, "argv", ["explain", "x.png"])
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    if way == "command":
        assert cli.main(["explain", "x.png"]) == 1
    else:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "scripts" / "explain.py"))
        assert ended.value.code == 1

    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1] == ("error: OddError: one two" if debug else "error: OddError: one two (CAMSERVE_DEBUG=1 shows where)")
    assert (lines[0] == "Traceback (most recent call last):") is debug
    assert debug or len(lines) == 1


def test_what_compare_did_not_foresee_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit status 1 says that the archives differ."""
    monkeypatch.setattr(compare, "list_pictures", raising(OddError("odd")))
    assert cli.main(["compare", "a.mar", "b.mar", "x.png"]) == 2


def test_ctrl_c_and_exits_keep_their_meaning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """130, and whatever status a tool ends with."""
    monkeypatch.setattr(explain, "find_pictures", raising(KeyboardInterrupt()))
    assert cli.main(["explain", "x.png"]) == 130
    monkeypatch.setattr(explain, "find_pictures", raising(SystemExit(7)))
    with pytest.raises(SystemExit) as ended:
        cli.main(["explain", "x.png"])
    assert ended.value.code == 7
    assert capsys.readouterr().err == ""


@pytest.mark.live
def test_a_live_server_is_asked_by_several_threads(live: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Thirty pictures at eight in flight: every row is its own picture's, and a second run asks nothing."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(30):
        shutil.copy(ROOT / "examples" / ("coffee.jpg", "rocket.jpg")[index % 2], pictures / f"{index}.jpg")
    arguments = [str(pictures), "--url", f"{live.url}/explanations/{DEMO}", "--jobs", "8", "--out", str(tmp_path / "out")]

    assert explain.main(arguments) == 0
    assert "30 explained, 0 done before, 0 failed" in capsys.readouterr().out
    labels = {int(name): row["classes"][0]["label"] for name, row in rows(tmp_path / "out").items()}
    assert labels == {index: ("espresso", "missile")[index % 2] for index in range(30)}
    assert explain.main(arguments) == 0
    assert "0 explained, 30 done before, 0 failed" in capsys.readouterr().out
