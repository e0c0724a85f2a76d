"""What can be explained here: the table of layers, the rule's choice with its reason, and the contact sheet."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from tests import build

from camserve.cam import METHODS
from camserve.tools import inspect_model
from camserve.tools.contact_sheet import CELL, GAP, HEAD, NAMES


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The small classifier's archive, with labels that attack whoever shows them."""
    return build.mar(tmp_path, "small", labels=build.HOSTILE)


def test_an_archive_is_listed_and_drawn(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layers with shape, stride, sign and how gradients come; the rule's choice; a row of heatmaps for each size of map."""
    picture = tmp_path / "picture.png"
    picture.write_bytes(build.encoded(build.square(96, 64, 40, 20, 16)))
    sheet = tmp_path / "new" / "sheet.png"
    assert inspect_model.main([str(archive), "--image", str(picture), "--out", str(sheet), "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith("features")}
    assert rows["features.0"][1:7] == ["Conv2d", "6", "x", "8x8", "8x8", "yes"]
    assert rows["features"][1:7] == ["Sequential", "6", "x", "8x8", "8x8", "no"]
    assert "closed form" in said
    assert said.count("the rule's choice") == 1
    assert "The rule picks features: the last of 3 layers with a map" in said
    drawn = cv2.imread(str(sheet))
    assert drawn.shape == (CELL + 2 * GAP + HEAD + CELL + GAP, NAMES + len(METHODS) * (CELL + GAP), 3)
    lower = drawn[CELL + 2 * GAP + HEAD :]
    cells = [lower[:CELL, NAMES + at * (CELL + GAP) :][:, :CELL] for at in range(len(METHODS))]
    assert all(cell.std() > 1 for cell in cells)
    assert not np.array_equal(cells[0], cells[list(METHODS).index("contrast")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of ARCHIVE.mar, --torchvision ARCH and --model-file FILE"),
        (["--torchvision", "resnet51"], "torchvision has no classifier resnet51; the nearest are"),
        (["--model-file", "net.py"], "--model-file needs --weights FILE"),
        (["none.mar"], "none.mar"),
    ],
)
def test_what_cannot_be_inspected_is_said(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and a status."""
    assert inspect_model.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_picture_that_is_none(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The flag is named with what is wrong."""
    (tmp_path / "text.png").write_text("hello")
    assert inspect_model.main([str(archive), "--image", str(tmp_path / "text.png"), "--rounds", "1"]) == 1
    assert "--image: " in capsys.readouterr().err
