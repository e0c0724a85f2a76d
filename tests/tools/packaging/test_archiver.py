"""What torch-model-archiver is given: the weights of a user's file without a copy, and no two files of one name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from tests.support.models.tiny import write_model

from camserve.tools.console import ToolError
from camserve.tools.packaging.archiver import Parts, build_archive
from camserve.tools.packaging.models.files import load_model_file
from camserve.tools.packaging.models.source import ModelSource


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    """The tiny model, of a file of weights that is named as the user likes."""
    write_model(tmp_path)
    return load_model_file(tmp_path / "tiny.py", tmp_path / "tiny.pth", tmp_path / "none")


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """A stage with one file, and what lies beside it."""
    for name in ("stage", "work", "store"):
        (tmp_path / name).mkdir()
    (tmp_path / "stage" / "note.txt").write_text("hello")
    (tmp_path / "work" / "model-config.yaml").write_text("minWorkers: 1\n")
    (tmp_path / "handler.py").write_text("")
    return Parts(tmp_path / "stage", tmp_path / "handler.py", tmp_path / "work" / "model-config.yaml")


def test_a_users_weights_are_linked(source: ModelSource, parts: Parts, tmp_path: Path) -> None:
    """They may be gigabytes large; the archive holds their bytes."""
    archive = build_archive(source, parts, tmp_path / "store", name="tiny", version="2.0")
    assert archive == tmp_path / "store" / "tiny.mar"
    link = tmp_path / "work" / "weights.pth"
    assert link.is_symlink()
    assert link.samefile(tmp_path / "tiny.pth")
    with zipfile.ZipFile(archive) as opened:
        assert opened.read("weights.pth") == (tmp_path / "tiny.pth").read_bytes()
        assert opened.read("note.txt") == b"hello"
        assert not any(member.compress_type for member in opened.infolist())


def test_weights_that_were_taken_out_of_a_file_are_written(source: ModelSource, parts: Parts, tmp_path: Path) -> None:
    """As a state dict of the model."""
    archive = build_archive(ModelSource(source.model_file, source.model), parts, tmp_path / "store", name="tiny", version="1.0")
    with zipfile.ZipFile(archive) as opened:
        opened.extract("weights.pth", tmp_path / "out")
    state = torch.load(tmp_path / "out" / "weights.pth", weights_only=True)
    assert all(torch.equal(value, source.model.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize("name", ["handler.py", "tiny.py", "weights.pth"])
def test_no_file_takes_the_place_of_another(source: ModelSource, parts: Parts, tmp_path: Path, name: str) -> None:
    """The archiver copies the stage last."""
    (parts.folder / name).write_text("other")
    with pytest.raises(ToolError, match=f"the archive would hold two files of the name {name}"):
        build_archive(source, parts, tmp_path / "store", name="tiny", version="1.0")


def test_the_archivers_own_words_are_passed_on(source: ModelSource, parts: Parts, tmp_path: Path) -> None:
    """Here the store is none."""
    with pytest.raises(ToolError, match=r"torch-model-archiver failed: .*is not a directory"):
        build_archive(source, parts, tmp_path / "none", name="tiny", version="1.0")
