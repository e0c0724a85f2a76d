"""Areas of pictures in a file: which picture each is of, and what is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.build import encoded

from camserve.tools.client.annotations import Annotations
from camserve.tools.console import ToolError


def held(folder: Path, areas: Any) -> Annotations:
    """What a file that holds this says."""
    (folder / "areas.json").write_text(json.dumps(areas))
    return Annotations(folder / "areas.json")


def test_areas_are_found_by_the_end_of_a_path(tmp_path: Path) -> None:
    """By the file's name, or by more of the path; masks lie beside the file."""
    mask = bytes(encoded(np.full((4, 6), 255, np.uint8)))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "b.png").write_bytes(mask)
    pictures = [Path("x/a.jpg"), Path("y/a.jpg"), Path("/data/b.jpg"), Path("c.jpg")]

    found = held(tmp_path, {"y/a.jpg": [1, 2, 3, 4], "b.jpg": "masks/b.png", "other.jpg": [0, 0, 1, 1]}).match(pictures)

    assert found == {pictures[1]: [1.0, 2.0, 3.0, 4.0], pictures[2]: base64.b64encode(mask).decode()}


@pytest.mark.parametrize(
    ("areas", "says"),
    [
        ({"a.jpg": [1, 2, 3, 4]}, "x/a.jpg and y/a.jpg"),
        ({"x/a.jpg": [1, 2, 3, 4], "z.jpg": 1, "c.jpg": "none.png"}, "c.jpg: expected a box or a mask's file"),
        ({"c.jpg": [1, "b"]}, "c.jpg: expected a box"),
        ({"z.jpg": [1, 2, 3, 4]}, "names none of the pictures"),
        ({}, "expected JSON with an area for each picture"),
        ([], "expected JSON with an area for each picture"),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path: Path, areas: Any, says: str) -> None:
    """A name of two pictures, a mask that is not there, no area, no file of areas."""
    with pytest.raises(ToolError, match=says):
        held(tmp_path, areas).match([Path("x/a.jpg"), Path("y/a.jpg"), Path("c.jpg")])


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """It says what it should hold."""
    with pytest.raises(ToolError, match="expected JSON with an area"):
        Annotations(tmp_path / "none.json")
