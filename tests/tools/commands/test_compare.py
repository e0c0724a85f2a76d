"""Two archives on the same pictures: the figures against SciPy and by hand, and the tool on real archives."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from tests.support.build import PLAIN, archive, encoded, noise, square, weights

from camserve.core.geometry import Rect
from camserve.core.labels import Labels
from camserve.tools.client.client import CamserveError
from camserve.tools.client.result import Explanation, Prediction, Result
from camserve.tools.commands import compare
from camserve.tools.commands.compare import Outcome
from camserve.tools.console import ToolError
from camserve.tools.reports.agreement import LIMITS, Classes, centroid_shift, compared, half_overlap, read, spearman

LABELS = {"0": "bright <b>", "1": "dark", "2": "grey"}


def test_heatmaps_are_read_as_they_are_drawn() -> None:
    """Bilinear with half-pixel centres, clamped at the border: the numbers of torch's own interpolation."""
    heatmap = np.random.default_rng(0).uniform(size=(7, 5)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(torch.tensor(heatmap)[None, None].double(), size=(32, 32), mode="bilinear")

    found = read(heatmap, Rect(10, 20, 110, 220), Rect(10, 20, 110, 220))

    np.testing.assert_allclose(found, wanted[0, 0].numpy(), atol=1e-12)


def test_heatmaps_of_different_views_are_compared_where_both_looked() -> None:
    """The right half of one map is the whole of the other."""
    left = np.tile(np.array([0, 0, 0.2, 0.8, 0.4, 0.6], np.float32), (4, 1))
    found = read(left, Rect(0, 0, 60, 40), Rect(30, 0, 60, 40), points=3)

    np.testing.assert_allclose(found, np.tile([0.8, 0.4, 0.6], (3, 1)), atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_rank_correlation_is_scipys(seed: int) -> None:
    """With ties, which maps with zeros are full of."""
    random = np.random.default_rng(seed)
    one = random.integers(0, 5, (6, 6)) / 5
    other = one + random.integers(0, 3, (6, 6)) / 4

    assert spearman(one, other) == pytest.approx(stats.spearmanr(one.ravel(), other.ravel()).statistic)
    assert spearman(one, np.ones((6, 6))) is None


def test_overlap_and_shift_by_hand() -> None:
    """Two blocks of two cells of four, one of them shared; centroids one cell of four apart."""
    one, other = np.zeros((4, 4)), np.zeros((4, 4))
    one[1, 0:2] = 1
    other[1, 1:3] = 1

    assert half_overlap(one, other) == pytest.approx(1 / 3)
    assert centroid_shift(one, other) == pytest.approx(0.25 / np.sqrt(2))
    assert centroid_shift(one, np.zeros((4, 4))) is None


GOOD = np.eye(4, dtype=np.float32)
WHOLE = Rect(0, 0, 40, 40)


def result(heatmap: NDArray[np.float32] = GOOD, warnings: tuple[str, ...] = (), view: Rect = WHOLE) -> Result:
    """An answer with one explanation."""
    explanation = Explanation(0, "bright", 0.5, heatmap, (0.0, 1.0), None, warnings)
    return Result((Prediction(0, "bright", 0.5),), (explanation,), (40, 40), view, "gradcam++", "f", "m", "1", "w")


SILENT = result(np.zeros_like(GOOD), ("zero",))


@pytest.mark.parametrize(
    ("first", "second", "silent"), [(result(), SILENT, True), (SILENT, result(), False), (SILENT, SILENT, False)]
)
def test_a_map_that_says_nothing_is_not_measured(first: Result, second: Result, silent: bool) -> None:
    """Zeros agree with everything; the measures are None, not 0 or 1. That it is the second's alone is told."""
    row = compared("a.png", first, second)

    assert (row.rank, row.overlap, row.shift) == (None, None, None)
    assert row.silent is silent


def test_a_map_that_says_nothing_where_both_models_looked_is_silent_there() -> None:
    """Its only bright cell lies beside the first's view; half of its maximum, which is 0 there, would be everywhere."""
    corner = np.zeros_like(GOOD)
    corner[0, 3] = 1
    row = compared("a.png", result(view=Rect(0, 0, 20, 40)), result(corner))

    assert (row.silent, row.overlap) == (True, None)


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
    status = compare.main([str(first), str(second), str(pictures), "--json", str(told), "--html", str(page), *limits])
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


def test_archives_of_one_name_are_told_apart_by_their_files(tmp_path: Path, pictures: Path) -> None:
    """The usual case: a new build of the model that is served."""
    builds = [archive(tmp_path / folder / "model", labels=LABELS) for folder in ("old", "new")]
    told, page = tmp_path / "told.json", tmp_path / "report.html"
    assert compare.main([*map(str, builds), str(pictures), "--json", str(told), "--html", str(page)]) == 0
    found = json.loads(told.read_text())

    assert (found["first"], found["second"]) == (f"model 1.0 ({builds[0]})", f"model 1.0 ({builds[1]})")


def reported(pairs: list[tuple[Result, Result]], *limits: str, failed: int = 0) -> dict[str, Any]:
    """What is told of such answers, and of so many pictures that the second does not answer."""
    rows = [compared(f"{place}.png", *pair) for place, pair in enumerate(pairs)]
    outcome = Outcome(rows, {f"failed{place}.png": "500 InternalError: no" for place in range(failed)})
    return compare.report(compare.parser().parse_args(["a", "b", "c", *limits]), [Named(), Named()], outcome, "")


def test_a_figure_that_cannot_be_measured_does_not_keep_its_limit() -> None:
    """Maps that say nothing must not pass for maps that agree."""
    told = reported([(SILENT, result())], "--max-shift", "1")

    assert told["figures"]["shift"] is None
    assert told["exceeded"] == ["shift"]


def test_a_second_model_whose_maps_say_nothing_is_as_far_off_as_can_be() -> None:
    """On two pictures of three: a median of what is left would be that of the one on which the two agree."""
    pairs = [(result(), SILENT), (result(), SILENT), (result(), result())]
    told = reported(pairs, "--max-overlap-loss", "0.9", "--max-rank-loss", "0.9", "--max-shift", "0.9", "--max-silent", "0.5")

    assert told["figures"] == {
        **{"failed": 0, "changed": 0, "confidence": 0, "silent": pytest.approx(2 / 3)},
        **{"rank-loss": 1, "overlap-loss": 1, "shift": 1},
    }
    assert told["exceeded"] == ["silent", "rank-loss", "overlap-loss", "shift"]


def test_a_second_model_that_fails_keeps_no_gate_open() -> None:
    """Whichever limit is given, unless that on failures is; without any limit there is no gate."""
    for limit in LIMITS:
        told = reported([(result(), result())], f"--max-{limit.name}", "1", failed=3)
        assert told["figures"]["failed"] == 0.75
        assert told["exceeded"] == ([] if limit.name == "failed" else ["failed"]), limit.name
    assert reported([(result(), result())], failed=3)["exceeded"] == []
    assert reported([(result(), result())], "--max-failed", "0.5", failed=3)["exceeded"] == ["failed"]
    assert reported([(result(), result())], "--max-failed", "0.5", "--max-shift", "1", failed=1)["exceeded"] == []


def test_the_worst_come_first() -> None:
    """Another class, then no map where the first has one, then little overlap; where the first has none, last."""
    apart = np.fliplr(GOOD).copy()
    other = result()
    rows = [
        compared("same", result(), result()),
        compared("first silent", SILENT, result()),
        compared("second silent", result(), SILENT),
        compared("apart", result(), result(apart)),
        compared("changed", result(), replace(other, predictions=(Prediction(1, "dark", 0.5),))),
    ]

    assert [row.file for row in compare._worst(rows)][:3] == ["changed", "second silent", "apart"]


def labels(*names: str) -> Labels:
    """Classes of these names; none: numbers."""
    return Labels(len(names), {str(index): name for index, name in enumerate(names)})


def test_classes_are_found_by_their_label() -> None:
    """Wherever they stand."""
    classes = Classes(labels("cat", "dog", "cow"), labels("cow", "cat", "horse", "dog"))

    assert [classes.second(index) for index in range(3)] == [1, 3, 0]
    assert "3 of 3 have another index in the second, 0 no counterpart" in classes.told()


def test_a_class_that_the_second_lacks_is_told() -> None:
    """Pictures of it count as failed."""
    classes = Classes(labels("cat", "dog"), labels("dog", "horse"))

    with pytest.raises(CamserveError, match="the second has no class 'cat'"):
        classes.second(0)
    assert classes.told().endswith("1 no counterpart; pictures of these are not compared, and count as failed: cat")


def test_of_several_classes_with_one_label_none_is_guessed() -> None:
    """ImageNet has two cranes. Where both have them at the same places they are the same; anywhere else nobody knows."""
    cranes = labels("crane", "cat", "crane")
    same, longer = Classes(cranes, labels("crane", "cat", "crane")), Classes(cranes, labels("crane", "tabby", "crane", "cat"))
    assert [same.second(index) for index in range(3)] == [0, 1, 2]
    assert same.told() == ""
    assert [longer.second(index) for index in range(3)] == [0, 3, 2]

    for first, second in ((cranes, labels("cat", "crane", "dog")), (labels("crane", "cat"), labels("cat", "crane", "crane"))):
        with pytest.raises(CamserveError, match="several classes have the label 'crane'"):
            Classes(first, second).second(0)


def test_without_labels_classes_are_found_by_their_index() -> None:
    """If there are as many; otherwise they are not the same ones, and nothing is compared."""
    bare, named = Labels(3), labels("cat", "dog", "cow")

    assert [Classes(bare, named).second(index) for index in range(3)] == [0, 1, 2]
    assert "One of them has no labels" in Classes(named, bare).told()
    assert Classes(bare, Labels(3)).told() == ""
    for first, second in ((Labels(2), Labels(3)), (bare, labels("cat", "dog")), (labels("cat", "dog"), bare)):
        with pytest.raises(ToolError, match=r"the first has \d classes and the second \d: without labels in both"):
            Classes(first, second)


@pytest.mark.parametrize("names", [["bright", "dark", "grey"], ["2", "0", "1"]])
def test_a_model_that_orders_its_classes_differently_agrees(tmp_path: Path, pictures: Path, names: list[str]) -> None:
    """The same weights with the classes turned round: every class is compared with itself, also where its label is a number."""
    state = weights()
    turned = {**state, "fc.weight": state["fc.weight"].flip(0), "fc.bias": state["fc.bias"].flip(0)}
    first = archive(tmp_path / "first", labels=dict(zip("012", names, strict=True)))
    second = archive(tmp_path / "second", labels=dict(zip("210", names, strict=True)), state=turned)
    limits = [f"--max-{limit.name}={0 if limit.name in ('changed', 'silent') else 1e-5}" for limit in LIMITS]
    page = tmp_path / "report.html"

    assert compare.main([*map(str, (first, second, pictures)), "--html", str(page), *limits]) == 0
    told = shown(page)
    assert "2 of 3 have another index" in told["classes"]
    assert [len(set(card["pictures"])) for card in told["cards"]] == [1] * 4  # both drew the heatmap of one class


def shown(page: Path) -> dict[str, Any]:
    """What the report holds."""
    found = re.search(r'<script type="application/json" id="told">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    told: dict[str, Any] = json.loads(found[1])
    return told


def test_a_picture_that_is_too_large_to_be_drawn_is_compared_all_the_same(tmp_path: Path, pictures: Path) -> None:
    """An overlay is larger than the numbers; the report does without."""
    first = archive(tmp_path / "first", labels=LABELS)
    second = archive(tmp_path / "second", {**PLAIN, "max_response_bytes": 4000}, labels=LABELS)
    page = tmp_path / "report.html"

    assert compare.main([*map(str, (first, second, pictures)), "--html", str(page), "--max-failed", "0"]) == 0
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

    assert compare.main([*arguments, str(small)]) == 1
    told = json.loads((tmp_path / "told").read_text())
    assert (told["pictures"], told["figures"]["failed"], told["exceeded"]) == (1, 0.8, ["failed"])
    assert all("413 ImageTooLarge" in why for why in told["failed"].values())
    assert "4 are not answered by the second, 1 not by the first" in capsys.readouterr().out
    assert "413 ImageTooLarge" in (tmp_path / "r.html").read_text()
    assert compare.main(arguments) == 2
    assert "the second says: 413 ImageTooLarge" in capsys.readouterr().err


def test_an_archive_of_another_handler_is_refused(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stock handler has no heatmaps to compare."""
    first, stock = archive(tmp_path / "first"), archive(tmp_path / "stock", handler="stock")

    assert compare.main([str(first), str(stock), str(pictures)]) == 2
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

        assert compare.main(both) == 2
        assert f"error: {told.format(tmp_path / name)}" in capsys.readouterr().err


def test_where_the_report_is_is_told(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page always, the figures where they were asked for."""
    both, page, figures = str(archive(tmp_path / "first", labels=LABELS)), tmp_path / "r.html", tmp_path / "r.json"
    assert compare.main([both, both, str(pictures), "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert f"  {page}: the report\n" in said
    assert "None" not in said
    assert compare.main([both, both, str(pictures), "--html", str(page), "--json", str(figures)]) == 0
    assert f"  {page}: the report\n  {figures}: the figures\n" in capsys.readouterr().out


def test_both_archives_run_with_our_handler(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As --help says: not even the first one's serves the second, when it is the first that loads it here."""
    monkeypatch.delitem(sys.modules, "gradcam_handler", raising=False)
    both = [archive(tmp_path / name, labels=LABELS) for name in ("first", "second")]
    for directory in both:
        (directory / "handler.py").unlink()
        (directory / "gradcam_handler.py").write_text("raise RuntimeError('an older release')")
        manifest = directory / "MAR-INF" / "MANIFEST.json"
        manifest.write_text(manifest.read_text().replace("handler.py", "gradcam_handler.py"))

    assert compare.main([*map(str, both), str(pictures), "--html", str(tmp_path / "r.html")]) == 0


class Named:
    """Somebody to ask, by name only."""

    name = "m 1.0"

    def ask(self, picture: bytes, options: object) -> dict[str, object]:
        """Nothing is asked of it."""
        raise NotImplementedError


def test_nothing_to_compare_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, with the reason."""
    assert compare.main([str(tmp_path / "a.mar"), str(tmp_path / "b.mar"), str(tmp_path / "none")]) == 2
    assert "no picture and no folder" in capsys.readouterr().err
