"""Opening archives: safe to unpack, and loaded as a worker loads them."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from tests.support.build import archive, encoded, module_of, noise

from camserve.tools.archive.archive import Row, ask, load_service, open_archive
from camserve.tools.console import ToolError


def zipped(path: Path, members: dict[str, str], mode: int = 0o644) -> Path:
    """A zip file with these members, the last of which has the Unix `mode`."""
    with zipfile.ZipFile(path, "w") as made:
        for name, text in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            made.writestr(info, text)
    return path


MANIFEST = json.dumps({"model": {"modelName": "m", "modelVersion": "2.0", "configFile": "model-config.yaml"}})
WHOLE = {"MAR-INF/MANIFEST.json": MANIFEST, "model-config.yaml": "batchSize: 4\nexplain: {opacity: 0.25}\n"}


def test_an_archive_is_unpacked_read_and_removed(tmp_path: Path) -> None:
    """Name, version and configuration are the archive's, and its folder is gone afterwards."""
    with open_archive(zipped(tmp_path / "m.mar", WHOLE)) as opened:
        assert (opened.name, opened.version) == ("m", "2.0")
        assert opened.config == {"batchSize": 4, "explain": {"opacity": 0.25}}
        assert (opened.directory / "model-config.yaml").is_file()
    assert not opened.directory.exists()


def test_a_folder_is_an_archive_too_and_stays(tmp_path: Path) -> None:
    """An unpacked archive is opened where it lies."""
    directory = archive(tmp_path / "tiny")
    with open_archive(directory) as opened:
        assert (opened.name, opened.directory) == ("tiny", directory)
    assert directory.is_dir()


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "..\\out.txt", "C:/out.txt"])
def test_an_archive_that_would_write_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    """No member is written outside the archive's folder; nothing at all is."""
    with (
        pytest.raises(ToolError, match=r"is unsafe: it holds .*out\.txt'"),
        open_archive(zipped(tmp_path / "m.mar", {**WHOLE, name: "x"})),
    ):
        pass


def test_an_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    """A symbolic link could lead a later member outside."""
    with (
        pytest.raises(ToolError, match="unsafe"),
        open_archive(zipped(tmp_path / "m.mar", {**WHOLE, "link": "/etc"}, mode=0o120777)),
    ):
        pass


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.txt": "x"}, "not an archive: its manifest"),
        ({"MAR-INF/MANIFEST.json": "{"}, "not an archive: its manifest"),
        ({"MAR-INF/MANIFEST.json": MANIFEST, "model-config.yaml": "a: ["}, "configuration cannot be read"),
    ],
)
def test_a_zip_file_that_is_no_archive_is_refused(tmp_path: Path, members: dict[str, str], message: str) -> None:
    """What lacks a readable manifest or configuration is said to be no archive."""
    with pytest.raises(ToolError, match=message), open_archive(zipped(tmp_path / "m.mar", members)):
        pass


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    """Both are named."""
    with pytest.raises(ToolError, match=r"no archive .*none\.mar"), open_archive(tmp_path / "none.mar"):
        pass
    damaged = zipped(tmp_path / "m.mar", WHOLE)
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with pytest.raises(ToolError, match=r"m\.mar is not an archive, or is damaged"), open_archive(damaged):
        pass


def test_a_service_answers_as_its_model_does(tmp_path: Path) -> None:
    """`ask` reads status, headers and body of each request of a batch back from the worker's own encoding."""
    directory = archive(tmp_path / "stock", handler="stock", classes=6)
    with open_archive(directory):
        service = load_service(directory)
        first, second = ask(service, [Row({"body": encoded(noise(seed=seed))}) for seed in (1, 2)])
    assert (first.status, second.status) == (200, 200)
    for response in (first, second):
        probabilities = json.loads(response.body)
        assert len(probabilities) == 5
        assert sum(probabilities.values()) <= 1
    assert first.body != second.body


def test_two_archives_with_modules_of_one_name_keep_their_own(tmp_path: Path) -> None:
    """The second archive's `model.py` is its own, not the first one's that is loaded already."""
    six, seven = (archive(tmp_path / f"m{classes}", handler="stock", classes=classes) for classes in (6, 7))
    with open_archive(six), open_archive(seven):
        models = [module_of(load_service(directory)) for directory in (six, seven)]
    assert [len(model.get_parameter("fc.weight")) for model in models] == [6, 7]


def test_nothing_of_an_unpacked_archive_stays_in_this_process(tmp_path: Path) -> None:
    """Path and modules are as before."""
    directory = archive(tmp_path / "stock", handler="stock", classes=6)
    packed = tmp_path / "stock.mar"
    with zipfile.ZipFile(packed, "w") as made:
        for file in directory.rglob("*"):
            made.write(file, file.relative_to(directory))
    path = list(sys.path)
    with open_archive(packed) as opened:
        load_service(opened.directory)
        assert "model" in sys.modules
    assert "model" not in sys.modules
    assert sys.path == path


def tarred(path: Path, *members: tarfile.TarInfo) -> Path:
    """A tar file of these members, whose content is `x` where they are files."""
    with tarfile.open(path, "w:gz") as made:
        for member in members:
            member.size = 1 if member.isfile() else 0
            made.addfile(member, io.BytesIO(b"x"))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../out.txt", tarfile.REGTYPE, ""),
        ("m/../../out.txt", tarfile.REGTYPE, ""),
        ("m/link", tarfile.SYMTYPE, "/etc"),
        ("m/hard", tarfile.LNKTYPE, "../out.txt"),
        ("m/pipe", tarfile.FIFOTYPE, ""),
        ("m/device", tarfile.CHRTYPE, ""),
    ],
)
def test_a_tar_file_that_would_write_elsewhere_is_refused(tmp_path: Path, name: str, kind: bytes, link: str) -> None:
    """As a zip file: no path outside, no link, nothing but files and folders."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    with pytest.raises(ToolError, match="is unsafe: it holds"), open_archive(tarred(tmp_path / "m.tar.gz", member)):
        pass
    assert not (tmp_path / "out.txt").exists()


def test_a_damaged_tar_file_is_refused(tmp_path: Path) -> None:
    """And it is said what is accepted."""
    members = [tarfile.TarInfo(f"m/{number}.txt") for number in range(900)]
    whole = tarred(tmp_path / "m.tar.gz", *members).read_bytes()
    (tmp_path / "m.tar.gz").write_bytes(whole[: len(whole) // 2])
    with (
        pytest.raises(ToolError, match=r"or is damaged: .*; accepted are \.mar \(zip\) and \.tar\.gz"),
        open_archive(tmp_path / "m.tar.gz"),
    ):
        pass
