"""What counts as done, two runs at once, hostile answers, and what is not looked at: nothing is mistaken, lost or kept quiet."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.build import archive, encoded, noise, weights
from tests.tools.commands.test_explain import OVERLAY, Told, files, rows

from camserve.tools.client.answers import find_fault, read_json
from camserve.tools.client.client import CamserveError
from camserve.tools.client.sources import ServerSource
from camserve.tools.commands import explain
from camserve.tools.commands.explain import find_pictures
from camserve.tools.console import Progress, ToolError
from camserve.tools.reports.globs import expand
from camserve.tools.reports.journal import Journal
from camserve.tools.reports.run import Run

ASKED = {"model": "told", "overlay": True}


class Changing(Told):
    """A server: only its answers tell which model it has. `changes` are members of each answer."""

    identity: Mapping[str, str] | None = None

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.changes = changes

    def ask(self, picture: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
        """As `Told` answers, changed."""
        return {**super().ask(picture, options), **self.changes}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder that runs write into."""
    made = tmp_path / "out"
    made.mkdir()
    return made


# ------------------------------------------------------------------ what counts as done


def test_rows_of_other_weights_are_not_taken_for_this_archive_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An archive of the same name and version with other weights, or the same with another setting: said, and explained anew."""
    first, second = (archive(tmp_path / f"{seed}" / "tiny", state=weights(seed=seed)) for seed in (1, 2))
    picture = tmp_path / "noise.png"
    picture.write_bytes(encoded(noise(80, 64)))

    def run(folder: Path) -> tuple[str, dict[str, Any]]:
        assert explain.main([str(picture), "--trust", "--archive", str(folder), "--out", str(tmp_path / "out")]) == 0
        return capsys.readouterr().out, rows(tmp_path / "out")["noise"]

    said, before = run(first)
    assert "1 explained" in said
    assert "0 explained, 1 done before" in run(first)[0]
    said, after = run(second)
    assert "1 explained, 0 done before" in said
    assert f"weights was {before['weights']}, is {after['weights']}" in said
    assert before["weights"] != after["weights"]

    (second / "model-config.yaml").write_text((second / "model-config.yaml").read_text() + "maxWorkers: 1\n")
    said, again = run(second)
    assert "1 explained, 0 done before" in said
    assert "archive was sha256:" in said
    assert "weights was" not in said
    assert again["weights"] == after["weights"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": "sha256:01"}, "weights was , is sha256:01"),
        ({"layer": "other"}, "layer was features, is other"),
        ({"classes": [{"index": 1, "label": "cat", "probability": 0.9}]}, "a.png gets another answer now, by the same weights"),
        ({"image": {"width": 8, "height": 4, "view": [1, 0, 7, 4]}}, "a.png gets another answer now, by the same weights"),
    ],
)
def test_a_server_is_asked_once_whether_its_model_is_the_same(
    tmp_path: Path, out: Path, change: dict[str, Any], words: str
) -> None:
    """Its name says nothing of it. Where the answer is the one that stands there, everything done stays done."""
    pictures = files(tmp_path / "x", a="cat", b="dog", c="cow")
    assert Run(Changing(), out, ASKED).explain(pictures, jobs=1)["explained"] == 3
    same = Changing()
    assert Run(same, out, ASKED).explain(pictures, jobs=1)["done"] == 3
    assert same.asked == [b"cat"]

    run = Run(Changing(**change), out, ASKED)
    assert run.explain(pictures, jobs=1) == {"explained": 3, "done": 0, "failed": 0}
    (difference,) = run.differences
    assert words in difference
    assert run.differences[difference] == 3
    assert Run(Changing(**change), out, ASKED).explain(pictures, jobs=1)["done"] == 3


def test_other_options_are_named(tmp_path: Path, out: Path) -> None:
    """Those that were given, that are given, and both."""
    pictures = files(tmp_path / "x", a="cat")
    Run(Told(), out, {"model": "told", "method": "gradcam", "layer": "a"}).explain(pictures, jobs=1)
    run = Run(Told(), out, {"model": "told", "method": "xgradcam", "opacity": 0.5})
    run.explain(pictures, jobs=1)

    assert list(run.differences) == ["layer was a, is not given; method was gradcam, is xgradcam; opacity was not given, is 0.5"]


class Failing(Told):
    """Answers nothing but this error."""

    identity: Mapping[str, str] | None = None

    def __init__(self, status: int | None) -> None:
        super().__init__()
        self.status = status

    def ask(self, picture: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
        """Raises."""
        raise CamserveError(self.status, "Odd", "it is odd")


def test_a_failure_that_says_nothing_of_a_picture_costs_no_row(tmp_path: Path, out: Path) -> None:
    """A server that is gone, or full, leaves what was explained; a picture that is refused now has its refusal."""
    pictures = files(tmp_path / "x", a="cat")
    Run(Told(), out, ASKED).explain(pictures, jobs=1)
    with pytest.raises(ToolError, match="cannot be compared with the server's model: Odd: it is odd"):
        Run(Failing(None), out, ASKED).explain(pictures, jobs=1)
    for status, kept in ((None, True), (503, True), (400, False)):
        assert Run(Failing(status), out, ASKED).explain(pictures, jobs=1, again=True)["failed"] == 1
        assert ("explanations" in rows(out)["a"]) is kept


def test_models_that_change_meanwhile_are_told(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of two models stand side by side then."""
    source = Changing(weights="sha256:01")
    run = Run(source, out, ASKED)
    run.explain(files(tmp_path / "x", a="cat"), jobs=1)
    source.changes["weights"] = "sha256:02"
    counts = run.explain(files(tmp_path / "y", b="dog"), jobs=1)
    explain.report(counts, run, Progress())

    assert "several models answered: sha256:01 1 times, sha256:02 1 times" in " ".join(capsys.readouterr().out.split())


# ------------------------------------------------------------------ two runs at once


def test_two_runs_never_write_into_one_folder(tmp_path: Path, out: Path) -> None:
    """The second would drop the first one's rows when it ends; it says so, and goes when the first has ended."""
    first, second = files(tmp_path / "x", a="cat"), files(tmp_path / "y", b="dog")
    late = Run(Told(), out, ASKED)  # has read the rows before the other writes any
    with Journal(out / "explanations.jsonl"), pytest.raises(ToolError, match=r"another run writes into .*out: let it end"):
        late.explain(second, jobs=1)
    Run(Told(), out, ASKED).explain(first, jobs=1)
    late.explain(second, jobs=1)
    assert set(rows(out)) == {"a", "b"}


# ------------------------------------------------------------------ hostile answers


class Hostile(Told):
    """Answers `bad` pictures as it was told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def ask(self, picture: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
        """As the client lets it through."""
        if not picture.startswith(b"bad"):
            return super().ask(picture, options)
        fault = find_fault(self.answer)
        if fault:
            raise CamserveError(200, "BadAnswer", fault)
        answer: dict[str, Any] = self.answer
        return answer


GOOD = Told().ask(b"cat", {"overlay": True})


def changed(**changes: Any) -> dict[str, Any]:
    """A good answer with other members in its explanation."""
    return {**GOOD, "explanations": [{**GOOD["explanations"][0], **changes}]}


@pytest.mark.parametrize("target", ["../../../escaped", "/tmp/escaped", True, None, 1.5, [1], 10**40, "1"])
def test_a_target_that_is_no_number_names_no_file(tmp_path: Path, out: Path, target: Any) -> None:
    """Neither outside the folder nor inside; the other pictures are explained."""
    pictures = files(tmp_path / "x", a="bad", b="cat")
    assert Run(Hostile(changed(target=target)), out, ASKED).explain(pictures, jobs=1) == {"explained": 1, "done": 0, "failed": 1}
    assert rows(out)["a"]["error"] == {"status": 200, "type": "BadAnswer", "message": "explanations[0].target"}
    assert not list(tmp_path.rglob("*escaped*"))
    assert len(list((out / "overlays").iterdir())) == 1


def test_two_explanations_of_one_target_have_two_files(tmp_path: Path, out: Path) -> None:
    """One must not take the other's place."""
    twice = {**GOOD, "explanations": GOOD["explanations"] * 2}
    Run(Hostile(twice), out, ASKED).explain(files(tmp_path / "x", a="bad"), jobs=1)
    assert len({each["overlay"] for each in rows(out)["a"]["explanations"]}) == 2


def test_an_answer_cannot_pose_as_another_row(tmp_path: Path, out: Path) -> None:
    """The tool's own members are the tool's."""
    own = {"file": "other", "sha256": "0", "asked": {}, "error": {"status": 1}, "seconds": "x"}
    pictures = files(tmp_path / "x", a="bad")
    assert Run(Hostile({**GOOD, **own}), out, ASKED).explain(pictures, jobs=1)["explained"] == 1
    (row,) = rows(out).values()
    assert (row["file"], row["asked"]) == (str(pictures[0]), ASKED)
    assert "error" not in row


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(OVERLAY),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*GOOD, *GOOD["explanations"][0]]), inner, max_size=4)
    ),
    max_leaves=6,
)


def test_an_answer_without_a_map_is_one(tmp_path: Path, out: Path) -> None:
    """Of several labels at once none may reach the threshold: the row says so, and counts as done."""
    source = Hostile({**GOOD, "explanations": [], "scores": "sigmoid", "threshold": 0.5})
    pictures = files(tmp_path / "x", a="bad")
    assert Run(source, out, ASKED).explain(pictures, jobs=1)["explained"] == 1
    assert Run(source, out, ASKED).explain(pictures, jobs=1)["done"] == 1


@settings(max_examples=60)
@given(
    answer=st.one_of(
        st.builds(lambda name, value: {**GOOD, name: value}, st.sampled_from([*GOOD, "scores", "threshold"]), JSON),
        st.builds(lambda name, value: changed(**{name: value}), st.sampled_from([*GOOD["explanations"][0], "direction"]), JSON),
    )
)
def test_no_answer_ends_a_run(tmp_path_factory: pytest.TempPathFactory, answer: dict[str, Any]) -> None:
    """Whatever one answer holds, it is a row or an error, the picture after it is explained, and the gallery is written."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "out").mkdir()
    run = Run(Hostile(answer), folder / "out", ASKED)
    counts = run.explain(files(folder / "x", a="bad", b="cat"), jobs=1)
    assert counts["explained"] + counts["failed"] == 2
    assert "explanations" in rows(folder / "out")["b"]
    assert run.page.is_file()


@pytest.mark.parametrize("body", [b"NaN", b'{"a": Infinity}', b"[" * 100_000, b"{", b"\xff", b"9" * 10_000])
def test_what_is_not_json_is_an_error_of_one_kind(body: bytes) -> None:
    """Python's own reader takes NaN, and gives up on depth in a way of its own."""
    with pytest.raises(ValueError):  # noqa: PT011
        read_json(body)


def test_what_a_server_says_moves_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences and half characters are shown, not obeyed, and end nothing."""
    Progress().note("caf\u00e9 \x1b]0;owned\x07 \ud800")
    assert capsys.readouterr().out == "caf\u00e9 \\x1b]0;owned\\x07 \\ud800\n"


@pytest.mark.parametrize(
    "url", ["http://me:secret@h:1/explanations/m", "http://me:secret@h:1/explanations/m?token=secret", "http://secret@h:1"]
)
def test_no_row_holds_a_password(url: str) -> None:
    """Neither a user nor a query; and a URL that is refused does not repeat them."""
    source = ServerSource(url, None if url.partition("//")[2].count("/") else "m", None, 60)
    assert source.name == "http://h:1/explanations/m"
    with pytest.raises(ToolError) as raised:
        ServerSource(url.replace("http:", "ftp:"), None, None, 60)
    assert "secret@" not in str(raised.value)


# ------------------------------------------------------------------ what is taken, and what is said of the rest


def test_a_glob_goes_round_no_loop(tmp_path: Path) -> None:
    """Python's own finds this picture 41 times. Linked folders are looked into, once."""
    files(tmp_path / "a", one="")
    files(tmp_path / "elsewhere", two="")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "there").symlink_to(tmp_path / "elsewhere")
    found = find_pictures([str(tmp_path / "a" / "**" / "*.png")], tmp_path / "out")
    assert sorted(path.name for path in found) == ["one.png", "two.png"]
    twice = find_pictures([str(tmp_path / "a"), str(tmp_path / "a" / "loop" / "one.png")], tmp_path / "out")
    assert twice == [tmp_path / "a" / "one.png"]


@pytest.mark.parametrize("pattern", ["*.png", "**/*.png", "?/*.png", "a/**", "**", "[ab]/*", "a/*.png", "*", ".*/*.png", "no*"])
def test_a_glob_means_what_python_s_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    """Where no link leads round."""
    for folder in ("a", "b/c", ".d"):
        files(tmp_path / folder, one="", two="")
    monkeypatch.chdir(tmp_path)
    wanted = {Path(each) for each in glob.glob(pattern, recursive=True) if Path(each).is_file()}  # noqa: PTH207
    assert {each for each in expand(pattern) if each.is_file()} == wanted
    absolute = {tmp_path / each for each in wanted}
    assert {each for each in expand(str(tmp_path / pattern)) if each.is_file()} == absolute


def test_links_to_one_picture_are_pictures(tmp_path: Path) -> None:
    """As data sets are often sampled: each name is a picture of its own."""
    files(tmp_path / "store", one="")
    for name in ("a.png", "b.png"):
        (tmp_path / name).symlink_to(tmp_path / "store" / "one.png")
    assert len(find_pictures([str(tmp_path / "*.png")], tmp_path / "out")) == 2


def test_what_is_written_is_not_taken_again(tmp_path: Path) -> None:
    """Not by a glob either."""
    files(tmp_path / "out" / "overlays", written="")
    files(tmp_path / "in", one="")
    assert [path.stem for path in find_pictures([str(tmp_path / "**" / "*.png")], tmp_path / "out")] == ["one"]


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_pipe, "a named pipe"),
        (_socket, "a socket"),
        (lambda path: path.symlink_to("nowhere"), "a link that leads nowhere"),
        (lambda path: path.symlink_to("../store"), "a link to a folder"),
    ],
    ids=["pipe", "socket", "broken", "folder"],
)
def test_what_a_folder_leaves_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], words: str
) -> None:
    """With where it is: a pipe would be waited for, a linked folder may lead anywhere."""
    files(tmp_path / "store", two="")
    files(tmp_path / "x", one="")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make(Path("x", "odd.png"))
    said: list[str] = []
    assert find_pictures(["x"], tmp_path / "out", said.append) == [Path("x", "one.png")]
    assert re.fullmatch(rf"left out \({words}\): x/odd.png.*", said[0])
    if words in ("a named pipe", "a socket"):
        with pytest.raises(ToolError, match=f"expected a file, a folder or a glob, got {words}"):
            find_pictures(["x/odd.png"], tmp_path / "out")
    shutil.rmtree("x")


def test_a_row_without_its_archive_is_not_taken_as_done(tmp_path: Path, out: Path) -> None:
    """As an older release wrote them."""
    pictures = files(tmp_path / "x", a="cat")
    Run(Told(), out, ASKED).explain(pictures, jobs=1)
    source = Told()
    source.identity = MappingProxyType({"weights": "", "archive": "sha256:00"})
    run = Run(source, out, ASKED)
    assert run.explain(pictures, jobs=1)["explained"] == 1
    assert list(run.differences) == ["archive was not given, is sha256:00"]
    assert json.loads((out / "explanations.jsonl").read_text())["archive"] == "sha256:00"
