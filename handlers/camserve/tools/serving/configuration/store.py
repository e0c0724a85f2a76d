"""The archives of a model store: which there are, and what their manifests and configurations say."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from camserve.core.text import listed, nearest, shown
from camserve.tools.serving.process.errors import ServeError

SUFFIXES = (".mar", ".model", ".tar.gz")
MANIFEST = "MAR-INF/MANIFEST.json"


@dataclass(frozen=True)
class Stored:
    """One archive of the store: its file's name, the model's name in URLs, its version, and its `minWorkers`, 0 where
    it leaves them to the server."""

    file: str
    name: str
    version: str
    workers: int = 0
    alias: bool = False

    @property
    def argument(self) -> str:
        """How TorchServe's `--models` takes it."""
        return f"{self.name}={self.file}" if self.alias else self.file


def select(store: Path, names: Sequence[str]) -> list[Stored]:
    """The archives that `names` mean (`name`, `name.mar` or `alias=name.mar`), all of the store's for none.

    TorchServe answers requests that name no version with the first that it is given. So all of a store's come with the oldest
    version of each model first: a newer one that is put beside it waits to be named, whatever its file is called.

    Raises `ServeError` for a store without archives, a name that it does not have, an archive that cannot be read, and
    two archives of one name and version.
    """
    if not store.is_dir():
        raise ServeError(f"there is no model store {shown(str(store))}: package a model first, or give --model-store")
    files = {path.name: path for path in sorted(store.iterdir()) if _is_archive(path)}
    if not files:
        raise ServeError(f"the model store {shown(str(store))} holds no archive: package a model first")
    chosen = [_named(name, files, store) for name in names] or sorted(map(read_archive, files.values()), key=_by_age)
    _refuse_twins(chosen)
    return chosen


def described(archives: Sequence[Stored]) -> list[str]:
    """Each archive in words; where a model has several, with its version, and which is the default."""
    names = [archive.name for archive in archives]
    told = []
    for index, (name, archive) in enumerate(zip(names, archives, strict=True)):
        if names.count(name) == 1:
            told.append(f"{name} ({archive.file})")
        else:
            default = ", the default" if names.index(name) == index else ""
            told.append(f"{name} {archive.version} ({archive.file}{default})")
    return told


def _is_archive(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return (path / MANIFEST).is_file() if path.is_dir() else path.name.endswith(SUFFIXES)


def _named(name: str, files: dict[str, Path], store: Path) -> Stored:
    alias, equals, wanted = name.rpartition("=")
    if equals and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", alias):
        raise ServeError(f"{shown(alias)} cannot name a model: letters, digits, `_`, `-` and `.` are accepted")
    for candidate in (wanted, *(wanted + suffix for suffix in SUFFIXES)):
        if candidate in files:
            archive = read_archive(files[candidate])
            return replace(archive, name=alias, alias=True) if equals else archive
    stems = [_stem(file) for file in files]
    near = nearest(_stem(wanted), stems)
    hint = f"nearest: {listed(near)}" if near else f"it holds {listed(stems)}"
    raise ServeError(f"no archive {shown(wanted)} in the model store {shown(str(store))}; {hint}")


def _by_age(archive: Stored) -> tuple[str, list[tuple[int, str]]]:
    """Sorts by name, then by version, whose numbers count as numbers: 2.0 comes before 10.0."""
    words = re.findall(r"0*([0-9]*)([^0-9]*)", archive.version)
    return archive.name, [part for number, text in words for part in ((len(number), number), (-1, text))]


def _stem(file: str) -> str:
    return next((file[: -len(suffix)] for suffix in SUFFIXES if file.endswith(suffix)), file)


def _refuse_twins(archives: Sequence[Stored]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for archive in archives:
        key = (archive.name, archive.version)
        if key in seen:
            raise ServeError(
                f"{seen[key]} and {archive.file} are both version {archive.version} of the model {shown(archive.name)}: "
                f"choose one with --models, or rename one: --models other={archive.file}"
            )
        seen[key] = archive.file


def read_archive(path: Path) -> Stored:
    """What the manifest and the configuration of the archive at `path` say; `ServeError` when they cannot be read."""
    try:
        if path.is_dir():
            return _described(path.name, lambda name: (path / name).read_bytes())
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as tar:
                return _described(path.name, lambda name: _tar_member(tar, name))
        with zipfile.ZipFile(path) as archive:
            return _described(path.name, archive.read)
    except (OSError, KeyError, ValueError, AttributeError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ServeError(f"{path.name} is not an archive that can be read: {error}") from error


def _tar_member(tar: tarfile.TarFile, name: str) -> bytes:
    for member in tar:
        if member.name.partition("/")[2] == name:
            stream = tar.extractfile(member)
            if stream is not None:
                return stream.read()
    raise KeyError(name)


def _described(file: str, read: Callable[[str], bytes]) -> Stored:
    model = json.loads(read(MANIFEST))["model"]
    config_file = model.get("configFile")
    workers = _workers(file, config_file, read(config_file)) if config_file else 0
    return Stored(file, str(model["modelName"]), str(model.get("modelVersion", "1.0")), workers)


def _workers(file: str, config_file: str, text: bytes) -> int:
    """`minWorkers` where TorchServe takes it: only beside a `maxWorkers` that is no less."""
    try:
        settings: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ServeError(f"{config_file} of {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        # TorchServe's frontend ends at once on an empty one
        raise ServeError(f"{config_file} of {file} is empty or no mapping: it needs at least `minWorkers: 1`")
    low, high = settings.get("minWorkers"), settings.get("maxWorkers")
    return low if isinstance(low, int) and isinstance(high, int) and 0 < low <= high else 0
