"""Folders and object stores: private, whole or not at all, and the same to whoever reads."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.monitoring.keeping import at, record, write

from camserve.monitoring.evidence.reading import (
    delete_entries,
    find_entries,
    list_beside,
    list_entries,
    list_models,
    read_record,
    read_records,
)
from camserve.monitoring.evidence.records import EvidenceError
from camserve.monitoring.evidence.stores import Folder, ObjectStore, StoreError, hide_secrets, open_store


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A folder, and an object store."""
    return open_store(str(tmp_path / "kept") if request.param == "folder" else f"memory://{tmp_path.name}/kept")


def test_what_is_written_can_be_listed_and_read(store: Any) -> None:
    """Oldest first, by time, by model; nothing is there before anything is written."""
    assert (list_models(store), list_entries(store), store.list_files("m/2026-01-02")) == ([], [], [])
    times = [at(1, 2, 23, 59), at(1, 3, 0, 1), at(1, 5)]
    kept = [write(store, record(time, id=f"{place:016x}")) for place, time in reversed(list(enumerate(times)))]

    assert list_entries(store) == kept[::-1]
    assert list_models(store) == ["m"]
    assert list_entries(store, "other") == []
    assert [each.time for each in list_entries(store, "m", since=times[1], until=times[2])] == [times[1]]
    assert [each.id for each in read_records(store, list_entries(store))] == [f"{place:016x}" for place in range(3)]


def test_marks_lie_beside_and_go_with_their_record(store: Any) -> None:
    """Whatever begins with the record's name and a dot; its neighbours stay."""
    one, two = (write(store, record(at(1, 2), id=each * 16)) for each in "ab")
    store.write(f"m/2026-01-02/{one.name}.mark-7.json", b"{}")
    store.write(f"m/2026-01-02/{two.name}.mark-8.json", b"{}")

    assert list_beside(store, one) == [f"m/2026-01-02/{one.name}.mark-7.json"]
    assert list_entries(store) == [one, two]
    assert delete_entries(store, [one]) == 1
    assert delete_entries(store, [one]) == 0
    assert [name for name, _ in store.list_files("m/2026-01-02")] == sorted([f"{two.name}.json", f"{two.name}.mark-8.json"])


def test_a_record_is_found_by_its_id_its_requests_and_its_answers(store: Any) -> None:
    """By the client's id from names alone; by the answer's, which only records tell, by reading."""
    from camserve.monitoring.evidence.names import make_id

    wanted = write(store, record(at(1, 2), id=make_id("order-1"), request_id="order-1", answer_id="made-1"))
    write(store, record(at(1, 2), id=make_id("order-2"), request_id="order-2", answer_id="made-2"))

    assert find_entries(store, wanted.id) == find_entries(store, "order-1") == find_entries(store, "made-1") == [wanted]
    assert find_entries(store, "order-3") == []


def test_what_is_damaged_or_gone_is_passed_over(store: Any) -> None:
    """A reader meanwhile sees the others."""
    good, damaged, gone = (write(store, record(at(1, 2), id=each * 16)) for each in "abc")
    store.write(damaged.path, b"{")
    store.delete(gone.path)

    assert [each.id for each in read_records(store, [good, damaged, gone])] == [good.id]
    with pytest.raises(EvidenceError, match="gone"):
        read_record(store, gone)


def modes(root: Path) -> set[str]:
    """The modes of folders and files below."""
    return {f"{'d' if path.is_dir() else '-'}{stat.S_IMODE(path.lstat().st_mode):o}" for path in root.rglob("*")}


@pytest.mark.skipif(sys.platform == "win32", reason="has no modes")
def test_nobody_else_can_read_a_folder(tmp_path: Path) -> None:
    """Whatever the umask; a folder that others could look into is closed, and a root of somebody's choice has nothing open."""
    before = os.umask(0)
    try:
        root = tmp_path / "new" / "kept"
        store = Folder(root)
        with store.lock():
            write(store, record(at(1, 2)))
        (root / "m").chmod(0o777)
        write(store, record(at(1, 3)))
        shared = tmp_path / "shared"
        shared.mkdir(mode=0o777)
        write(Folder(shared), record(at(1, 2)))
    finally:
        os.umask(before)

    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert modes(root) == modes(shared) == {"d700", "-600"}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_in_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    """Somebody else's folder would get pictures."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "kept" / "m").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="link"):
        write(Folder(tmp_path / "kept"), record(at(1, 2)))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_who_is_killed_while_writing_leaves_nothing_that_is_listed(tmp_path: Path) -> None:
    """A file has its name only once it is whole; what is left over goes after a while."""
    code = """
import os, signal, sys
from pathlib import Path
from camserve.monitoring.evidence.stores import Folder
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Folder(Path(sys.argv[1])).write("m/2026-01-02/x.json", b"half")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, env=environment, capture_output=True)
    store = Folder(tmp_path)
    (left,) = (tmp_path / "m" / "2026-01-02").iterdir()

    assert ran.returncode < 0, ran.stderr
    assert store.list_files("m/2026-01-02") == []
    os.utime(left, (0, 0))
    store.list_files("m/2026-01-02")
    assert not left.exists()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk has no use for halves."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        Folder(tmp_path).write("m/2026-01-02/x.json", b"data")
    assert not list((tmp_path / "m" / "2026-01-02").iterdir())


def test_a_url_that_nothing_opens_says_what_to_install() -> None:
    """While the archive loads, not when the first picture is to be kept."""
    with pytest.raises(StoreError, match=r"s3://: cannot be opened here .*camserve\[s3\]"):
        open_store("s3://bucket/folder")
    with pytest.raises(StoreError, match="nonsense://"):
        open_store("nonsense://x/y")
    assert isinstance(open_store("memory://x"), ObjectStore)
    assert open_store("file:///var/evidence").to == open_store("/var/evidence").to == "/var/evidence"


def test_no_secret_of_a_url_is_shown() -> None:
    """Metadata and log have the place, not the key to it."""
    assert hide_secrets("s3://key:secret@bucket/folder?endpoint=x") == "s3://bucket/folder"
    assert hide_secrets("/var/evidence") == "/var/evidence"
