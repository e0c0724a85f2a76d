"""Two archives on the same pictures: the figures against SciPy and by hand, and the tool on real archives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from tests.build import archive, encoded, noise, square, weights

from camserve.geometry import Rect
from camserve.tools import compare
from camserve.tools.agreement import centroid_shift, compared, half_overlap, read, spearman
from camserve.tools.result import Explanation, Prediction, Result

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


def result(heatmap: NDArray[np.float32], warnings: tuple[str, ...] = ()) -> Result:
    """An answer with one explanation."""
    explanation = Explanation(0, "bright", 0.5, heatmap, (0.0, 1.0), None, warnings)
    return Result((Prediction(0, "bright", 0.5),), (explanation,), (40, 40), Rect(0, 0, 40, 40), "gradcam++", "f", "m", "1", "w")


def test_a_map_that_says_nothing_is_not_compared() -> None:
    """Zeros agree with everything; the measures are None, not 0 or 1."""
    good = np.eye(4, dtype=np.float32)
    row = compared("a.png", result(good), result(np.zeros_like(good), ("zero",)))

    assert (row.rank, row.overlap, row.shift) == (None, None, None)


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
    assert [Path(name).name for name in told["failed"]] == ["broken.png"]  # type: ignore[attr-defined]
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


def test_a_figure_that_cannot_be_measured_does_not_keep_its_limit() -> None:
    """Maps that say nothing must not pass for maps that agree."""
    row = compared("a.png", result(np.zeros((4, 4), np.float32), ("zero",)), result(np.eye(4, dtype=np.float32)))
    told = compare.report(compare.parser().parse_args(["a", "b", "c", "--max-shift", "1"]), [Named(), Named()], [row], {})

    assert told["figures"]["shift"] is None
    assert told["exceeded"] == ["shift"]


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
