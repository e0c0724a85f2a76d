"""Several versions of one model in a store: which of them answers requests that name none."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import requests
from tests.support.build import encoded, mar, noise

from camserve.tools.commands.serve import Server
from camserve.tools.serving.configuration.store import describe, select

ROOT = Path(__file__).resolve().parents[3]


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


@pytest.mark.live
def test_a_newer_file_in_the_store_waits_to_be_named(tmp_path: Path) -> None:
    """TorchServe's default is the first that it is given: version 1.0, though `cats-2.mar` sorts before `cats.mar`."""
    store, aside = tmp_path / "store", tmp_path / "aside"
    store.mkdir()
    aside.mkdir()
    mar(store, "cats", version="1.0")
    mar(aside, "cats", version="2.0").rename(store / "cats-2.mar")

    with Server(store, config=ROOT / "config.properties") as server:
        (default,) = requests.get(f"{server.management_url}/models/cats", timeout=60).json()
        every = requests.get(f"{server.management_url}/models/cats/all", timeout=60).json()
        picture = bytes(encoded(noise()))
        told = [
            requests.post(f"{server.url}/explanations/cats{version}", data=picture, timeout=60).json() for version in ("", "/2.0")
        ]

    assert (default["modelVersion"], {each["modelVersion"] for each in every}) == ("1.0", {"1.0", "2.0"})
    assert [each["version"] for each in told] == ["1.0", "2.0"]
