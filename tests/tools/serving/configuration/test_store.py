"""Which archives a store has, what they say, and which of several versions answers requests that name none."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from camserve.tools.commands.serve import main
from camserve.tools.serving.configuration.store import StoredArchive, describe, read_archive, select
from camserve.tools.serving.process.errors import ServeError


def put(store: Path, file: str, name: str, version: str) -> None:
    """An archive that is a manifest only."""
    with zipfile.ZipFile(store / file, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelName": name, "modelVersion": version}}))


@pytest.mark.parametrize(
    ("old", "new"), [("1.0", "2.0"), ("2.0", "10.0"), ("1.9", "1.10"), ("9", "010"), ("1.0", "1.0-b"), ("a", "b"), ("", "1")]
)
def test_the_oldest_version_comes_first(tmp_path: Path, old: str, new: str) -> None:
    """Whatever the files' names: one that is put beside does not become the default unasked, `cats-2.mar` as little as `a.mar`."""
    for new_file, old_file in (("cats-2.mar", "cats.mar"), ("a.mar", "b.mar"), ("z.mar", "b.mar")):
        store = tmp_path / new_file
        store.mkdir()
        put(store, new_file, "cats", new)
        put(store, old_file, "cats", old)
        put(store, "c.mar", "dogs", "0.1")

        found = select(store, [])
        assert [(archive.name, archive.version) for archive in found] == [("cats", old), ("cats", new), ("dogs", "0.1")]
        assert [archive.file for archive in select(store, [new_file, old_file])] == [new_file, old_file]


def test_versions_are_told_with_the_default(tmp_path: Path) -> None:
    """Where a model has several; one alone needs no version."""
    for file, name, version in (("cats-2.mar", "cats", "2.0"), ("cats.mar", "cats", "1.0"), ("dogs.mar", "dogs", "1.0")):
        put(tmp_path, file, name, version)

    assert describe(select(tmp_path, [])) == ["cats 1.0 (cats.mar, the default)", "cats 2.0 (cats-2.mar)", "dogs (dogs.mar)"]
    assert describe(select(tmp_path, ["cats-2", "cats"])) == ["cats 2.0 (cats-2.mar, the default)", "cats 1.0 (cats.mar)"]
    assert describe(select(tmp_path, ["new=cats-2", "cats"])) == ["new (cats-2.mar)", "cats (cats.mar)"]


def test_unknown_model_names_the_nearest(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that the store does not have is an error that names the nearest archives."""
    assert main(["--model-store", str(store), "--models", "quik", "--port", "0"]) == 1
    assert 'no archive "quik"' in (message := capsys.readouterr().err)
    assert "nearest: quick" in message


def test_names_of_archives(store: Path) -> None:
    """`name`, `name.mar` and `alias=name.mar` mean the same file; no name means every archive."""
    quick = StoredArchive("quick.mar", "quick", "1.0", workers=1)
    assert select(store, ["quick"]) == select(store, ["quick.mar"]) == [quick]
    (other,) = select(store, ["other=quick"])
    assert (other.name, other.argument, quick.argument) == ("other", "other=quick.mar", "quick.mar")
    assert [archive.name for archive in select(store, [])] == ["bad", "batch", "forks", "fragile", "quick", "slow", "stuck"]


def test_archive_as_folder_or_tarball(store: Path, tmp_path: Path) -> None:
    """A folder and a `.tar.gz`, as the archiver makes them, are read like a `.mar`."""
    with zipfile.ZipFile(store / "quick.mar") as archive:
        archive.extractall(tmp_path / "quick")
    subprocess.run(["tar", "czf", "quick.tar.gz", "quick"], cwd=tmp_path, check=True)
    for file in ("quick", "quick.tar.gz"):
        assert select(tmp_path, [f"other={file}", file])[1] == StoredArchive(file, "quick", "1.0", workers=1)


def put_configured(store: Path, file: str, config: str | None) -> None:
    """An archive of a manifest and a configuration only."""
    model = {"modelName": "m", "modelVersion": "1.0"} | ({"configFile": "c.yaml"} if config is not None else {})
    with zipfile.ZipFile(store / file, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        if config is not None:
            archive.writestr("c.yaml", config)


@pytest.mark.parametrize(
    ("config", "words"),
    [("", "c.yaml of m.mar is empty"), ("a: [", "c.yaml of m.mar is not YAML"), ("- 1", "no mapping")],
)
def test_broken_configuration(tmp_path: Path, config: str, words: str) -> None:
    """A configuration that would end TorchServe's frontend, or keep its workers dying, is refused with the file's name."""
    put_configured(tmp_path, "m.mar", config)
    with pytest.raises(ServeError, match=words):
        select(tmp_path, [])


@pytest.mark.parametrize(
    ("config", "workers"),
    [(None, 0), ("a: 1", 0), ("minWorkers: 3", 0), ("minWorkers: 3\nmaxWorkers: 4", 3), ("minWorkers: 3\nmaxWorkers: 2", 0)],
)
def test_workers_of_an_archive(tmp_path: Path, config: str | None, workers: int) -> None:
    """`minWorkers` counts as TorchServe counts it: only beside a `maxWorkers` that is no less."""
    put_configured(tmp_path, "m.mar", config)
    assert read_archive(tmp_path / "m.mar").workers == workers


def test_stores_that_cannot_be_served(tmp_path: Path) -> None:
    """No folder, an empty one, a file that is no archive, and two archives of one model are errors that say so."""
    with pytest.raises(ServeError, match="there is no model store"):
        select(tmp_path / "none", [])
    (tmp_path / "README.md").write_text("not an archive")
    with pytest.raises(ServeError, match="holds no archive"):
        select(tmp_path, [])
    (tmp_path / "m.mar").write_text("not a zip")
    with pytest.raises(ServeError, match=r"m\.mar is not an archive"):
        select(tmp_path, [])
    put_configured(tmp_path, "m.mar", None)
    put_configured(tmp_path, "n.mar", None)
    with pytest.raises(ServeError, match=r'm\.mar and n\.mar are both version 1\.0 of the model "m"'):
        select(tmp_path, [])
    assert len(select(tmp_path, ["m", "n=n"])) == 2
    with pytest.raises(ServeError, match="cannot name a model"):
        select(tmp_path, ["a/b=n"])
