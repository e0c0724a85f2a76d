"""One file of an archive rewritten, without harm to the rest."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from camserve.monitoring.reference import FILE
from camserve.tools.archive.rewriting import put_file


@pytest.fixture
def mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with a stored and a compressed member, a comment and a mode."""
    path = tmp_path_factory.mktemp("old") / "small.mar"
    with zipfile.ZipFile(path, "w") as target:
        target.comment = b"kept"
        target.writestr("weights.pth", bytes(range(256)) * 100, zipfile.ZIP_STORED)
        target.writestr("MAR-INF/MANIFEST.json", "{}" * 100, zipfile.ZIP_DEFLATED)
    path.chmod(0o640)
    return path


def members(path: Path) -> dict[str, tuple[int, tuple[int, ...], int, bytes]]:
    """What each file of an archive is: how it is stored, when it is from, its mode and its bytes."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment == b"kept"
        return {
            each.filename: (each.compress_type, each.date_time, each.external_attr, archive.read(each))
            for each in archive.infolist()
        }


def test_writing_into_an_archive_leaves_all_else_as_it_was(mar: Path, tmp_path: Path) -> None:
    """Twice: the second reference takes the place of the first."""
    path = Path(shutil.copy(mar, tmp_path))
    before = members(path)
    for text in ("{}", '{"second": 1}'):
        put_file(path, FILE, text)
        after = members(path)
        assert after.pop(FILE)[3] == text.encode()
        assert after == before
        assert len(zipfile.ZipFile(path).namelist()) == len(before) + 1
    assert path.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["small.mar"]


def test_a_failed_write_leaves_the_old_archive_and_nothing_else(
    mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, or an interruption, in the midst of it."""
    path = Path(shutil.copy(mar, tmp_path))
    before = path.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        put_file(path, FILE, "{}")
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["small.mar"]


def test_a_link_stays_one_and_what_it_points_to_is_rewritten(mar: Path, tmp_path: Path) -> None:
    """A model store may hold links to the archives of a release."""
    (tmp_path / "store").mkdir()
    path = Path(shutil.copy(mar, tmp_path))
    link = tmp_path / "store" / "served.mar"
    link.symlink_to("../small.mar")
    put_file(link, FILE, "{}")

    assert link.is_symlink()
    assert members(path)[FILE][3] == b"{}"
    assert [each.name for each in (tmp_path / "store").iterdir()] == ["served.mar"]
