"""Archives are unpacked once on a node: whole, what was deployed, in a folder of this user's own, and not for ever."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.processes.serving import write_archive
from tests.support.processes.waiting import HANG

from camserve.core.errors import ArchiveError
from camserve.hosts.ray import unpacked
from camserve.hosts.ray.unpacked import find_digest, unpack_once
from camserve.pipeline.archive import extract


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive, and a folder to unpack it in."""
    (tmp_path / "store").mkdir()
    write_archive(tmp_path / "store", "small")
    monkeypatch.setenv(unpacked.VARIABLE, str(tmp_path / "unpacked"))
    return tmp_path / "store" / "small.mar"


def test_many_replicas_share_one_folder(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever comes first unpacks; nobody sees half of it."""
    digest, calls, all_hold = find_digest(archive), [], threading.Barrier(8)

    def slow(path: Path, directory: Path) -> Path:
        calls.append(path)
        time.sleep(0.2)
        return extract(path, directory)

    monkeypatch.setattr(unpacked, "extract", slow)

    def hold(_: int) -> tuple[Path, str]:
        with unpack_once(archive, digest) as opened:
            all_hold.wait(HANG)
            return opened.directory, opened.name

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(hold, range(8)))
    ((directory, name),) = found
    assert (directory.name, name, calls) == (digest, "small", [archive])
    assert sorted(each.name for each in directory.parent.iterdir()) == [digest, f"{digest}.lock"]


def test_who_finds_nothing_while_another_unpacks_does_not_wait_for_its_end(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the lock another replica unpacks the archive, and holds it for as long as it serves."""
    digest, lock, other = find_digest(archive), fcntl.flock, ExitStack()

    def late(held: int, how: int) -> None:
        if how & fcntl.LOCK_EX:
            monkeypatch.setattr(fcntl, "flock", lock)
            other.enter_context(unpack_once(archive, digest))
        lock(held, how)

    monkeypatch.setattr(fcntl, "flock", late)
    opened: list[str] = []

    def hold() -> None:
        with unpack_once(archive, digest) as one:
            opened.append(one.name)

    thread = threading.Thread(target=hold, daemon=True)
    with other:
        thread.start()
        thread.join(HANG)
        assert opened == ["small"]


def test_another_content_than_was_deployed_is_refused(archive: Path) -> None:
    """A node whose copy is an older one must not answer for the new one."""
    digest = find_digest(archive)
    archive.unlink()
    write_archive(archive.parent, "small", version="2.0")
    with pytest.raises(ArchiveError, match="is not the archive that was deployed"), unpack_once(archive, digest):
        pass
    with pytest.raises(ArchiveError, match="every node needs it at this path"):
        find_digest(archive.with_name("none.mar"))


@pytest.mark.parametrize("kind", ["writable", "link"])
def test_a_folder_that_others_may_write_is_refused(archive: Path, tmp_path: Path, kind: str) -> None:
    """Whoever writes there decides what the models answer."""
    folder = tmp_path / "unpacked"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(ArchiveError, match="may be written by others; name a folder"), unpack_once(archive, find_digest(archive)):
        pass


def test_what_nobody_holds_goes_after_a_while_and_what_is_held_stays(archive: Path) -> None:
    """Also what a killed process had half unpacked."""
    write_archive(archive.parent, "other")
    other = archive.with_name("other.mar")
    long_ago = time.time() - 2 * unpacked.UNUSED
    with unpack_once(archive, find_digest(archive)) as held:
        with unpack_once(other, find_digest(other)) as opened:
            place = opened.directory
        for lock in place.parent.glob("*.lock"):
            os.utime(lock, (long_ago, long_ago))
        place.with_name(f"{place.name}.unpacking").mkdir()
        write_archive(archive.parent, "third")
        with unpack_once(archive.with_name("third.mar"), find_digest(archive.with_name("third.mar"))):
            assert not place.exists()
            assert not place.with_name(f"{place.name}.unpacking").exists()
            assert held.directory.exists()
