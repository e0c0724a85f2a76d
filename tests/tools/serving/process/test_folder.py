"""A server's temporary folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from camserve.tools.serving.process import folder


def test_folders_of_killed_servers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new server removes what a killed one left, and nothing that is in use or another's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(folder, "LONGEST_BASE", 1000)
    left, other = tmp_path / f"{folder.PREFIX}left", tmp_path / "other"
    for path in (left, other):
        path.mkdir()
        (path / folder.LOCK).touch()
    with folder.temporary_folder() as one:
        assert one.is_dir()
        assert not left.exists()
        with folder.temporary_folder() as two:
            assert one.is_dir()
            assert two != one
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
