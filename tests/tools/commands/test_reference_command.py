"""The command that makes the reference, and what keeps it from doing so."""

from __future__ import annotations

import errno
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.support import build as small
from tests.support.monitoring.traffic import reference_of, traffic
from tests.support.processes.worker import load_monitored

from camserve.core.labels import Labels
from camserve.monitoring.reference import (
    BINS,
    EXAMPLES,
    FILE,
    UNSEEN,
    Reference,
    load,
)
from camserve.monitoring.statistics import STATISTICS
from camserve.tools.archive import archive as archives
from camserve.tools.archive import rewriting
from camserve.tools.archive.archive import handler_of
from camserve.tools.archive.fresh.worker import Row, ask
from camserve.tools.archive.rewriting import put_file
from camserve.tools.commands import reference
from camserve.tools.console import Progress, ToolError
from camserve.tools.reports.pictures import list_pictures
from camserve.tools.watching import measuring
from camserve.tools.watching.evidence.normal.examples import read_examples
from camserve.tools.watching.measuring import print_reference


@pytest.fixture(scope="module")
def mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of the tests' small model, with a stored and a compressed member."""
    folder = small.archive(tmp_path_factory.mktemp("small") / "small")
    path = folder.parent / "small.mar"
    with zipfile.ZipFile(path, "w") as target:
        target.comment = b"kept"
        for each in sorted(folder.rglob("*")):
            if each.is_file():
                kind = zipfile.ZIP_STORED if each.suffix == ".pth" else zipfile.ZIP_DEFLATED
                target.write(each, each.relative_to(folder), kind)
    path.chmod(0o640)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 pictures in two folders, one of them damaged, beside a file that is no picture."""
    path = tmp_path_factory.mktemp("pictures")
    small.pictures_in(path)
    (path / "200.jpg").write_bytes(b"\xff\xd8\xff broken")
    (path / "notes.txt").write_text("no picture")
    return path


@pytest.fixture
def made(mar: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """The archive with a reference made by the command, and what it printed."""
    path = Path(shutil.copy(mar, tmp_path))
    assert reference.main(["--trust", "--archive", str(path), str(folder)]) == 0
    return path, capsys.readouterr().out


def test_the_command_measures_a_folder_and_writes_the_reference(made: tuple[Path, str]) -> None:
    """It says what it found, and which picture did not count."""
    path, printed = made
    with zipfile.ZipFile(path) as archive:
        found = Reference.from_json(archive.read(FILE).decode())

    assert found.images == 130
    assert (found.provenance.layer, found.provenance.method) == ("features", "gradcam++")
    assert all(found.counts[name].sum() == 130 for name in ("confidence", "brightness", "width"))
    assert "1 pictures were refused" in printed
    assert "200.jpg" in printed
    assert "130 pictures of" in printed
    assert "\x1b" not in printed


def test_the_command_says_how_much_to_expect_of_unseen_classes(capsys: pytest.CaptureFixture[str]) -> None:
    """By those that came up once; nothing, where none did."""
    for targets in ([0] * 180 + list(range(1, 11)) * 2, [0] * 190 + list(range(1, 11))):
        found = traffic(targets, np.random.default_rng(0), ())
        print_reference(found, reference_of(targets), {}, Labels(20), Progress())
    first, last = capsys.readouterr().out.split("200 pictures of")[1:]

    assert "came up once" not in first
    assert "10 of them (5.0%) are of classes that came up once: expect as many" in " ".join(last.split())


def test_a_worker_bins_the_reference_pictures_into_the_references_counts(made: tuple[Path, str], folder: Path) -> None:
    """The command and the worker measure alike: the same pictures again give the reference's own counts, to the last one."""
    path, _ = made
    lines: list[bytes] = []
    with archives.open_archive(path) as opened:
        service = load_monitored(opened.directory)
        handler = handler_of(service)
        handler.face.observer._exporter._write = lines.append
        rows = [Row({"body": each.read_bytes()}) for each in list_pictures([folder])]
        for start in range(0, len(rows), 8):
            ask(service, rows[start : start + 8])
        handler.face.observer.close()
        found = load(opened.directory, handler.face.provenance)
        described = handler.face.metadata["monitor"]

    assert found is not None
    told: dict[tuple[str, int], int] = {}
    for line in b"".join(lines).decode().split("\n"):
        if line.startswith("[METRICS]camserve_map_bin_total."):
            value, stat, place = (
                line.split(":")[1].partition("|")[0],
                line.split("stat:")[1].split(",")[0],
                line.split("bin:")[1].split(",")[0],
            )
            told[stat, int(place)] = told.get((stat, int(place)), 0) + int(value)
    for name in STATISTICS:
        assert [told.get((name, place), 0) for place in range(BINS)] == found.counts[name].sum(0).tolist(), name
    mix = [told.get(("class", place), 0) for place in range(BINS)]
    assert (mix[UNSEEN], sum(mix)) == (0, 130)
    assert all(seen >= repeated for seen, repeated in zip(mix[:UNSEEN], found.group_images[:UNSEEN], strict=True))
    assert described["reference"] == {"id": found.digest, "images": 130, "classes": len(found.groups)}


def test_an_archive_whose_preprocessing_was_edited_has_no_reference_any_more(made: tuple[Path, str]) -> None:
    """The worker serves, and says what has changed."""
    path, _ = made
    with archives.open_archive(path) as opened:
        config = opened.config
    assert monitored_reference(path) is not None
    put_file(path, "model-config.yaml", yaml.safe_dump({**config, "explain": {**config["explain"], "exif": True}}))

    assert monitored_reference(path) == f"{FILE} was made with exif=false, the archive now has exif=true; make it again"


def monitored_reference(path: Path) -> Any:
    """What a worker of an archive tells of its reference, or why it has none."""
    with archives.open_archive(path) as opened:
        told = handler_of(load_monitored(opened.directory)).face.metadata["monitor"]
    return told["reference"] or told["why"]


def test_every_picture_is_measured_where_maps_take_backward_passes(tmp_path: Path, folder: Path) -> None:
    """A worker has a budget for that; the reference has none, and knows the runner-up's overlap of all."""
    curved = "return self.fc(torch.tanh(self.features(x).mean((2, 3))))"
    path = small.archive(tmp_path / "curved", fault=curved)
    assert reference.main(["--trust", "--archive", str(path), str(folder)]) == 0
    found = Reference.from_json((path / FILE).read_text())

    assert handler_of(load_monitored(path)).face.backend.closed_form == ()
    assert {name: table.sum() for name, table in found.counts.items()} == dict.fromkeys(STATISTICS, 130)


def test_an_archive_of_several_layers_has_the_reference_of_the_watched_one(tmp_path: Path, folder: Path) -> None:
    """Its answers multiply the maps of two layers; what is watched, and kept as examples, is the first layer's Grad-CAM++."""
    explain = {**small.PLAIN, "layers": ["features", "features.0"], "method": "refinecam"}
    path = small.archive(tmp_path / "several", explain=explain)
    assert reference.main(["--trust", "--archive", str(path), "--examples", "1", str(folder)]) == 0
    found = Reference.from_json((path / FILE).read_text())
    assert (found.provenance.layer, found.provenance.method) == ("features", "gradcam++")

    face = handler_of(load_monitored(path)).face
    assert load(path, face.provenance) is not None
    examples = read_examples((path / EXAMPLES).read_text(), found.digest)
    assert examples
    for each in examples[:3]:
        (picture,) = folder.rglob(each.request_id)
        (explained,) = face.explain(picture, method="gradcam++", layer="features")
        low, high = explained.range
        assert np.allclose(each.raw_map, low + explained.heatmap * (high - low), rtol=1e-4, atol=1e-6)


def test_a_server_that_does_not_declare_the_metrics_is_told_nothing(made: tuple[Path, str]) -> None:
    """Without metrics.yaml every line would be dropped; the handler does not measure in vain, and its metadata say so."""
    with archives.open_archive(made[0]) as opened:
        handler = handler_of(archives.load_service(opened.directory))

    assert handler.face.metadata["monitor"] is None


def test_too_few_pictures_are_refused(mar: Path, folder: Path, tmp_path: Path) -> None:
    """Shares of ten bins of a few dozen pictures are chance."""
    with pytest.raises(ToolError, match=r"at least 100 pictures .*, found 65"):
        reference.make(mar, [folder / "more"], Progress(), True)
    with pytest.raises(ToolError, match="no picture and no folder"):
        list(list_pictures([tmp_path / "nothing"]))


def test_an_archive_of_another_handler_is_refused(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stock handler has no maps to measure."""
    stock = small.archive(tmp_path / "stock", handler="stock")

    assert reference.main(["--trust", "--archive", str(stock), str(folder)]) == 1
    assert "the archive's handler is not camserve's" in capsys.readouterr().err


def said(path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it fails; it must be one line."""
    assert reference.main(["--trust", "--archive", str(path), str(pictures)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_an_archive_that_does_not_load_is_told_in_one_line(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its model raises."""
    broken = small.archive(tmp_path / "broken", fault="raise ZeroDivisionError('no\\nluck')")
    lacking = small.archive(tmp_path / "lacking")
    (lacking / "model.py").write_text("import a_module_that_nobody_has")

    assert "no luck" in said(broken, folder, capsys)
    assert f"{lacking} does not load: ModuleNotFoundError: No module named 'a_module_that_nobody_has'" in said(
        lacking, folder, capsys
    )


def refuse(error: Exception) -> Any:
    """A function that raises this."""

    def refusing(*_: object, **__: object) -> None:
        raise error

    return refusing


def test_an_archive_that_cannot_be_rewritten_is_told_before_anything_is_measured(
    mar: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store that is mounted for reading only, or a disk that is full."""
    path = Path(shutil.copy(mar, tmp_path))
    monkeypatch.setattr(measuring, "open_archive", refuse(AssertionError("it went on")))
    with monkeypatch.context() as read_only:
        read_only.setattr(
            "camserve.tools.archive.rewriting.tempfile.NamedTemporaryFile", refuse(OSError(errno.EROFS, "Read-only file system"))
        )
        assert f"{path} cannot be rewritten: in {tmp_path}: Read-only file system" in said(path, folder, capsys)
    with monkeypatch.context() as full:
        full.setattr(
            "camserve.tools.archive.rewriting.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, path.stat().st_size)
        )
        assert f"are needed in {tmp_path}, and {path.stat().st_size} are free" in said(path, folder, capsys)
    assert "it went on" in said(path, folder, capsys)
    assert [each.name for each in tmp_path.iterdir()] == ["small.mar"]


def test_an_archive_of_another_kind_is_told_before_anything_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch-model-archiver also makes .tar.gz."""
    monkeypatch.setattr(measuring, "open_archive", refuse(AssertionError("it went on")))
    path = tmp_path / "small.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass
    assert f"{path} cannot be rewritten: expected a .mar (a zip archive) or a folder" in said(path, folder, capsys)


def test_a_disk_that_fills_up_meanwhile_is_told_and_leaves_the_archive_as_it_was(
    mar: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others write too."""
    path = Path(shutil.copy(mar, tmp_path))
    monkeypatch.setattr(rewriting, "_copy", refuse(OSError(errno.ENOSPC, "No space left on device")))

    assert f"{path} cannot be rewritten, and is as it was: No space left on device" in said(path, folder, capsys)
    assert path.read_bytes() == mar.read_bytes()


def test_pictures_that_cannot_be_read_do_not_count(
    mar: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are told like those that the model refuses, and end nothing."""
    path = Path(shutil.copy(mar, tmp_path))
    whole = Path.read_bytes

    def read(self: Path) -> bytes:
        if self.name in ("000.png", "128.png"):  # one beside the one that the model refuses
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return whole(self)

    monkeypatch.setattr(Path, "read_bytes", read)

    assert reference.make(path, [folder], Progress(), True).images == 128
    printed = capsys.readouterr().out
    assert "3 pictures were refused and do not count" in printed
    assert f"{folder / '000.png'}: cannot be read: Permission denied" in printed
