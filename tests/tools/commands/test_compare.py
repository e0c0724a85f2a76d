"""Two archives compared by the command: what it says, writes, and exits with."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.build import PLAIN, archive, encoded, noise, square, weights

from camserve.tools.commands import compare
from camserve.tools.reports.comparison.limits import LIMITS, OUTSIDE

LABELS = {"0": "bright <b>", "1": "dark", "2": "grey"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, one of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(4):
        pixels = np.maximum(noise(64, 64, index) // 3, square(64, 64, 8 * index, 16, 16))
        (folder / f"{index}.png").write_bytes(encoded(pixels))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def compared_with(tmp_path: Path, pictures: Path, head: list[float], *limits: str) -> tuple[int, dict[str, object], str]:
    """Exit status, figures and report of a run of the tool."""
    state = weights()
    state["fc.weight"][0] = torch.tensor(head)
    first = archive(tmp_path / "first", labels=LABELS)
    second = archive(tmp_path / "second", labels=LABELS, state=state)
    told, page = tmp_path / "told.json", tmp_path / "report.html"
    status = compare.main(["--trust", str(first), str(second), str(pictures), "--json", str(told), "--html", str(page), *limits])
    return status, json.loads(told.read_text()), page.read_text()


def test_an_archive_agrees_with_itself(tmp_path: Path, pictures: Path) -> None:
    """Nothing changed, every limit kept at zero, and the broken picture is told, not counted."""
    limits = ["--max-changed", "0", "--max-overlap-loss", "0", "--max-shift", "0.000001", "--max-rank-loss", "0.000001"]

    status, told, page = compared_with(tmp_path, pictures, [6, 0, 0, 0, 0, 0], *limits)

    assert (status, told["pictures"], told["exceeded"]) == (0, 4, [])
    assert [Path(name).name for name in told["skipped"]] == ["broken.png"]  # type: ignore[attr-defined]
    assert (told["failed"], told["figures"]["failed"], told["limits"]["failed"]) == ({}, 0, 0)  # type: ignore[index]
    assert (told["first"], told["second"]) == ("first 1.0", "second 1.0")
    assert "bright <b>" not in page
    assert "content-security-policy" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)|url\(|@import""", page)


def test_another_model_goes_beyond_its_limits(tmp_path: Path, pictures: Path) -> None:
    """Exit 1, and the figures that are beyond are named."""
    status, told, _ = compared_with(tmp_path, pictures, [1, 5, 5, 5, 5, 5], "--max-rank-loss", "0.05")

    assert (status, told["exceeded"]) == (1, ["rank-loss"])


@pytest.mark.parametrize(("across", "status", "exceeded"), [(0, 0, []), (40, 1, ["outside"])])
def test_a_gate_on_what_lies_in_annotated_areas(
    tmp_path: Path, pictures: Path, across: int, status: int, exceeded: list[str]
) -> None:
    """Where the bright square is, and where it is not; of three of the four pictures."""
    boxes = {f"{index}.png": [(8 * index + across) % 64, 16, (8 * index + across) % 64 + 16, 32] for index in range(3)}
    boxes["2.png"] = boxes["2.png"] if across == 0 else [0, 40, 10, 60]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    limits = ["--inside-file", str(tmp_path / "boxes.json"), "--max-outside", "0.6"]

    got, told, _ = compared_with(tmp_path, pictures, [6, 0, 0, 0, 0, 0], *limits)

    assert (got, told["exceeded"]) == (status, exceeded)
    assert [row["inside"] is None for row in told["rows"]].count(True) == 1  # type: ignore[attr-defined]


def test_a_gate_on_areas_needs_areas(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is no gate that no picture goes through."""
    first = archive(tmp_path / "first")
    assert compare.main(["--trust", str(first), str(first), str(pictures), "--max-outside", "0.2"]) == 2
    assert "of which areas" in capsys.readouterr().err


def test_archives_of_one_name_are_told_apart_by_their_files(tmp_path: Path, pictures: Path) -> None:
    """The usual case: a new build of the model that is served."""
    builds = [archive(tmp_path / folder / "model", labels=LABELS) for folder in ("old", "new")]
    told, page = tmp_path / "told.json", tmp_path / "report.html"
    assert compare.main(["--trust", *map(str, builds), str(pictures), "--json", str(told), "--html", str(page)]) == 0
    found = json.loads(told.read_text())

    assert (found["first"], found["second"]) == (f"model 1.0 ({builds[0]})", f"model 1.0 ({builds[1]})")


@pytest.mark.parametrize("names", [["bright", "dark", "grey"], ["2", "0", "1"]])
def test_a_model_that_orders_its_classes_differently_agrees(tmp_path: Path, pictures: Path, names: list[str]) -> None:
    """The same weights with the classes turned round: every class is compared with itself, also where its label is a number."""
    state = weights()
    turned = {**state, "fc.weight": state["fc.weight"].flip(0), "fc.bias": state["fc.bias"].flip(0)}
    first = archive(tmp_path / "first", labels=dict(zip("012", names, strict=True)))
    second = archive(tmp_path / "second", labels=dict(zip("210", names, strict=True)), state=turned)
    limits = [
        f"--max-{limit.name}={0 if limit.name in ('changed', 'silent') else 1e-5}"
        for limit in LIMITS
        if limit.name not in (OUTSIDE, "same")
    ]
    page = tmp_path / "report.html"

    assert compare.main(["--trust", *map(str, (first, second, pictures)), "--html", str(page), *limits]) == 0
    told = shown(page)
    assert "2 of 3 have another index" in told["classes"]
    assert [len(set(card["pictures"])) for card in told["cards"]] == [1] * 4  # both drew the heatmap of one class


def shown(page: Path) -> dict[str, Any]:
    """What the report holds."""
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    told: dict[str, Any] = json.loads(found[1])
    return told


def test_a_picture_that_is_too_large_to_be_drawn_is_compared_all_the_same(tmp_path: Path, pictures: Path) -> None:
    """An overlay is larger than the numbers; the report does without."""
    first = archive(tmp_path / "first", labels=LABELS)
    second = archive(tmp_path / "second", {**PLAIN, "max_response_bytes": 4000}, labels=LABELS)
    page = tmp_path / "report.html"

    assert compare.main(["--trust", *map(str, (first, second, pictures)), "--html", str(page), "--max-failed", "0"]) == 0
    assert [[drawn is not None for drawn in card["pictures"]] for card in shown(page)["cards"]] == [[True, False]] * 4


def test_a_second_archive_that_refuses_most_pictures_does_not_pass(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One picture of five is small enough for it, and there the two agree."""
    small = tmp_path / "small.png"
    small.write_bytes(encoded(square(32, 32, 8, 8, 16)))
    first = archive(tmp_path / "first", labels=LABELS)
    second = archive(tmp_path / "second", {**PLAIN, "max_pixels": 2000}, labels=LABELS)
    outputs = ["--json", str(tmp_path / "told"), "--html", str(tmp_path / "r.html")]
    arguments = [*outputs, "--max-overlap-loss", "0.3", *map(str, (first, second, pictures))]

    assert compare.main(["--trust", *arguments, str(small)]) == 1
    told = json.loads((tmp_path / "told").read_text())
    assert (told["pictures"], told["figures"]["failed"], told["exceeded"]) == (1, 0.8, ["failed"])
    assert all("413 ImageTooLarge" in why for why in told["failed"].values())
    assert "4 are not answered by the second, 1 not by the first" in capsys.readouterr().out
    assert "413 ImageTooLarge" in (tmp_path / "r.html").read_text()
    assert compare.main(["--trust", *arguments]) == 2
    assert "the second says: 413 ImageTooLarge" in capsys.readouterr().err


def test_an_archive_of_another_handler_is_refused(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stock handler has no heatmaps to compare."""
    first, stock = archive(tmp_path / "first"), archive(tmp_path / "stock", handler="stock")

    assert compare.main(["--trust", str(first), str(stock), str(pictures)]) == 2
    assert f"{stock}: its handler is not camserve's" in capsys.readouterr().err


@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_archive_is_told_by_name_before_the_other_is_loaded(
    tmp_path: Path, pictures: Path, place: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading a large one takes a while, and which of the two it is nobody would know."""
    monkeypatch.setattr(compare, "load", lambda *_: pytest.fail("it was loaded"))
    (tmp_path / "empty").mkdir()
    for name, told in (("gone.mar", "no archive {}"), ("empty", "{}: not an archive: its manifest")):
        both = [str(archive(tmp_path / f"beside {name}")), str(pictures)]
        both.insert(place, str(tmp_path / name))

        assert compare.main(["--trust", *both]) == 2
        assert f"error: {told.format(tmp_path / name)}" in capsys.readouterr().err


def test_where_the_report_is_is_told(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page always, the figures where they were asked for."""
    both, page, figures = str(archive(tmp_path / "first", labels=LABELS)), tmp_path / "r.html", tmp_path / "r.json"
    assert compare.main(["--trust", both, both, str(pictures), "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert f"  {page}: the report\n" in said
    assert "None" not in said
    assert compare.main(["--trust", both, both, str(pictures), "--html", str(page), "--json", str(figures)]) == 0
    assert f"  {page}: the report\n  {figures}: the figures\n" in capsys.readouterr().out


def test_both_archives_run_with_our_handler(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As --help says: not even the first one's serves the second, when it is the first that loads it here."""
    monkeypatch.delitem(sys.modules, "gradcam_handler", raising=False)
    both = [archive(tmp_path / name, labels=LABELS) for name in ("first", "second")]
    for directory in both:
        (directory / "gradcam_handler.py").write_text("raise RuntimeError('an older release')")

    assert compare.main(["--trust", *map(str, both), str(pictures), "--html", str(tmp_path / "r.html")]) == 0


def test_nothing_to_compare_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, with the reason."""
    assert compare.main(["--trust", str(tmp_path / "a.mar"), str(tmp_path / "b.mar"), str(tmp_path / "none")]) == 2
    assert "no picture and no folder" in capsys.readouterr().err
