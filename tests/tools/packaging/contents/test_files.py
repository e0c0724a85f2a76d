"""The user's extra files in an archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from camserve.tools.console import ToolError
from camserve.tools.packaging.contents.files import copy_extra_files


def test_extra_files_may_not_take_a_name_of_packagings_own(tmp_path: Path) -> None:
    """Nor hide a module of the worker's."""
    for name, message in {"index_to_name.json": "give labels with --labels", "json.py": "would hide the module json"}.items():
        folder = tmp_path / name.replace(".", "-")
        stage = tmp_path / f"stage-{name}"
        for each in (folder, stage):
            each.mkdir()
        (folder / name).write_text("")
        with pytest.raises(ToolError, match=message):
            copy_extra_files([str(folder)], stage)


def test_a_space_behind_a_comma_is_no_part_of_a_files_name(tmp_path: Path) -> None:
    """And nothing between two commas is not this folder."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "stage").mkdir()
    copy_extra_files(f"{tmp_path / 'a.txt'}, {tmp_path / 'b.txt'},".split(","), tmp_path / "stage")
    assert sorted(each.name for each in (tmp_path / "stage").iterdir()) == ["a.txt", "b.txt"]
