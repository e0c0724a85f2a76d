"""What is said of an archive before anything of it runs, and what runs without `--trust`: nothing of its own."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.support.build import PLAIN, archive, encoded, noise

from camserve.core.errors import ArchiveError
from camserve.pipeline.archive import read_archive
from camserve.tools.archive.archive import load_service, open_archive
from camserve.tools.archive.trust import find_code, read_weights, review
from camserve.tools.commands import compare, explain, inspect_model, package, reference
from camserve.tools.console import ToolError
from camserve.tools.packaging.models import libraries
from camserve.tools.packaging.models.libraries import architectures
from camserve.tools.packaging.models.libraries.generated import TEMPLATE, is_generated
from camserve.tools.serving.configuration.store import MAX_TEXT
from camserve.tools.serving.configuration.store import read_archive as read_stored
from camserve.tools.serving.process.errors import ServeError

ALARM = """
import os, pathlib
pathlib.Path(os.environ["ALARM"]).write_text("it ran")
"""
GENERATED = TEMPLATE.format(arch="resnet18", name="Resnet18", options=", num_classes=3")


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """An archive as packaging makes it of torchvision's name: nothing in it is anybody's code but ours and theirs."""
    folder = archive(tmp_path / "ours")
    (folder / "model.py").rename(folder / "torchvision_resnet18.py")
    (folder / "torchvision_resnet18.py").write_text(GENERATED)
    change(folder, modelFile="torchvision_resnet18.py")
    return folder


def change(folder: Path, **entries: Any) -> None:
    """Other entries in the manifest."""
    path = folder / "MAR-INF" / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    manifest["model"].update(entries)
    path.write_text(json.dumps(manifest))


class Pickled:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (ALARM,))


def _model(folder: Path) -> None:
    (folder / "torchvision_resnet18.py").write_text(GENERATED + ALARM)


def _handler(folder: Path) -> None:
    (folder / "their_handler.py").write_text(ALARM)
    change(folder, handler="their_handler.py")


def _beside(folder: Path) -> None:
    (folder / "captum.py").write_text(ALARM)


def _package(folder: Path) -> None:
    (folder / "inner" / "deep").mkdir(parents=True)
    (folder / "inner" / "deep" / "x.py").write_text(ALARM)


def _cache(folder: Path) -> None:
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "torchvision_resnet18.cpython-311.pyc").write_bytes(b"whatever")


def _library(folder: Path) -> None:
    (folder / "isal.so").write_bytes(b"\x7fELF")


def _pickle(folder: Path) -> None:
    torch.save({"weight": Pickled()}, folder / "weights.pth")


def _program(folder: Path) -> None:
    (folder / "model.pt").write_bytes(b"")
    change(folder, modelFile="", serializedFile="model.pt")


def _installed(folder: Path) -> None:
    change(folder, handler="shutil:rmtree")


WAYS: dict[str, tuple[Callable[[Path], None], str]] = {
    "model": (_model, '"torchvision_resnet18.py" (the model\'s file)'),
    "handler": (_handler, '"their_handler.py" (the handler)'),
    "beside": (_beside, '"captum.py"'),
    "package": (_package, '"inner/deep/x.py"'),
    "cache": (_cache, '"__pycache__/torchvision_resnet18.cpython-311.pyc"'),
    "library": (_library, '"isal.so"'),
    "pickle": (_pickle, '"weights.pth" (weights that are pickled objects, not tensors alone)'),
    "program": (_program, '"model.pt" (a program)'),
    "installed": (_installed, '"shutil:rmtree" (the handler, a module that is installed here)'),
}


@pytest.mark.parametrize("way", WAYS)
def test_code_of_an_archive_s_own_is_named_and_not_run(ours: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """However it could come to run; with trust it is named too, before it does."""
    monkeypatch.setenv("ALARM", str(ours.parent / "alarm"))
    make, words = WAYS[way]
    make(ours)
    said: list[str] = []
    with open_archive(ours) as opened:
        with pytest.raises(ToolError, match="Nothing of it has run") as raised:
            review(ours, opened, trusted=False, say=said.append)
        review(ours, opened, trusted=True, say=said.append)
    assert words in str(raised.value)
    assert words in said[2]
    assert "ours" in said[0]
    assert not (ours.parent / "alarm").exists()


def test_what_packaging_makes_of_a_name_needs_no_trust(ours: Path) -> None:
    """What can be read is said: name, version, handler, weights with their digest and size, labels, configuration."""
    said: list[str] = []
    with open_archive(ours) as opened:
        review(ours, opened, trusted=False, say=said.append)
    (line,) = said
    for part in (
        '"ours" "1.0"',
        "gradcam_handler.py",
        "4 tensors, 1,179 numbers",
        "sha256:",
        "no labels",
        json.dumps(dict(sorted(PLAIN.items()))),
    ):
        assert part in line


def test_packaging_s_own_text_is_known_to_the_letter() -> None:
    """Whatever is added or changed is somebody's code."""
    assert is_generated(GENERATED)
    assert is_generated(TEMPLATE.format(arch="vit_b_16", name="VitB16", options=", image_size=384, aux_logits=False"))
    for text in (
        GENERATED + "\n",
        GENERATED.replace("num_classes=3", "num_classes=f()"),
        GENERATED.replace("weights=None", "w=1"),
        "",
    ):
        assert not is_generated(text)


def test_a_review_needs_no_torchvision(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes as long to load as torch does: a job's driver would load it to look at one file."""
    monkeypatch.delitem(sys.modules, architectures.__name__)
    monkeypatch.delattr(libraries, "architectures")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    said: list[str] = []
    with open_archive(ours) as opened:
        review(ours, opened, trusted=False, say=said.append)
    assert len(said) == 1


def test_our_handler_runs_in_place_of_an_archive_s_copy(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of its name may hold anything: it is never loaded."""
    monkeypatch.setenv("ALARM", str(ours.parent / "alarm"))
    (ours / "gradcam_handler.py").write_text(ALARM)
    (ours / "camserve").mkdir()
    (ours / "camserve" / "__init__.py").write_text(ALARM)
    with open_archive(ours) as opened:
        assert find_code(opened, read_weights(opened)) == []
        monkeypatch.delitem(sys.modules, "gradcam_handler")
        with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):  # these weights are another net's
            load_service(opened.directory)
    assert not (ours.parent / "alarm").exists()


TOOLS: dict[str, Callable[[Path, Path, Path], list[str]]] = {
    "explain": lambda mar, pictures, out: [str(pictures), "--archive", str(mar), "--out", str(out)],
    "compare": lambda mar, pictures, out: [str(mar), str(mar), str(pictures), "--html", str(out / "r.html")],
    "reference": lambda mar, pictures, out: ["--archive", str(mar), str(pictures)],
    "inspect_model": lambda mar, pictures, out: [str(mar), "--rounds", "1"],
    "package": lambda mar, pictures, out: ["--from-archive", str(mar), "--export-path", str(out), "--name", "new"],
}
MAINS = {"explain": explain, "compare": compare, "reference": reference, "inspect_model": inspect_model, "package": package}


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_asks_for_trust_before_it_runs_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tool: str
) -> None:
    """It says what it read and what would run; its help says what `--trust` means."""
    monkeypatch.setenv("ALARM", str(tmp_path / "alarm"))
    (tmp_path / "pictures").mkdir()
    for place in range(100):
        (tmp_path / "pictures" / f"{place}.png").write_bytes(encoded(noise(8, 8, seed=place)))
    folder = archive(tmp_path / "theirs")
    (folder / "model.py").write_text((folder / "model.py").read_text() + ALARM)
    mar = Path(shutil.make_archive(str(tmp_path / "theirs"), "zip", folder)).rename(tmp_path / "theirs.mar")
    (tmp_path / "out").mkdir()

    assert MAINS[tool].main(TOOLS[tool](mar, tmp_path / "pictures", tmp_path / "out")) in (1, 2)
    told = capsys.readouterr()
    assert "4 tensors" in told.out
    assert 'brings code of its own, which would run with your rights: "model.py" (the model\'s file)' in told.err
    assert not (tmp_path / "alarm").exists()
    with pytest.raises(SystemExit):
        MAINS[tool].main(["--help"])
    assert "let the archive's own code run" in " ".join(capsys.readouterr().out.split())


# ------------------------------------------------------------------ paths and sizes, in each reader


@pytest.mark.parametrize("key", ["configFile", "handler", "modelFile", "requirementsFile", "serializedFile"])
@pytest.mark.parametrize("where", ["absolute", "above"])
def test_a_manifest_names_no_file_outside(tmp_path: Path, key: str, where: str) -> None:
    """Nothing there is read, by none of those that open archives."""
    outside = tmp_path / "outside.yaml"
    outside.write_text(yaml.safe_dump({"minWorkers": 7, "maxWorkers": 7, "explain": {"colormap": "jet"}}))
    folder = archive(tmp_path / "bad")
    change(folder, **{key: str(outside) if where == "absolute" else "../outside.yaml"})
    with pytest.raises(ArchiveError, match=f"{key} names a file outside the archive"):
        read_archive(folder)
    with pytest.raises(ToolError, match=f"{key} names a file outside the archive"), open_archive(folder):
        pass
    if key == "configFile":
        with pytest.raises(ServeError, match="outside the archive"):
            read_stored(folder)


def test_a_server_reads_no_endless_manifest(tmp_path: Path) -> None:
    """A few kilobytes may unpack to gigabytes."""
    mar = tmp_path / "bomb.mar"
    with zipfile.ZipFile(mar, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("MAR-INF/MANIFEST.json", b" " * (MAX_TEXT + 1))
    with pytest.raises(ServeError, match="are the most"):
        read_stored(mar)


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_unpacks_within_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tool: str
) -> None:
    """300 kB that would write 300 MiB, for the limits are lowered here."""
    monkeypatch.setattr("camserve.pipeline.archive.FREE_BYTES", 1 << 16)
    (tmp_path / "pictures").mkdir()
    for place in range(100):
        (tmp_path / "pictures" / f"{place}.png").write_bytes(b"")
    mar = tmp_path / "bomb.mar"
    with zipfile.ZipFile(mar, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("MAR-INF/MANIFEST.json", b" " * (1 << 20))
    (tmp_path / "out").mkdir()
    assert MAINS[tool].main(TOOLS[tool](mar, tmp_path / "pictures", tmp_path / "out")) in (1, 2)
    assert "bytes, which is 200 times its size, or the limit of" in " ".join(capsys.readouterr().err.split())
