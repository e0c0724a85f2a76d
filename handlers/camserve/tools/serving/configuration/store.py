"""Reads a model store: which archives it has, and what their manifests and configurations say."""

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

from camserve.core.text import find_nearest, join_names, show
from camserve.tools.serving.process.errors import ServeError

SUFFIXES = (".mar", ".model", ".tar.gz")
MANIFEST = "MAR-INF/MANIFEST.json"
MAX_TEXT = 16 * 2**20
"""Bytes of a manifest, or of a configuration."""


@dataclass(frozen=True)
class StoredArchive:
    """One archive of the store.

    Attributes:
        file: its file's name.
        name: the model's name in URLs.
        workers: its `minWorkers`; 0 where it leaves them to the server.
        alias: whether `name` is another than its manifest's.
    """

    file: str
    name: str
    version: str
    workers: int = 0
    alias: bool = False

    @property
    def argument(self) -> str:
        """How TorchServe's `--models` takes it."""
        return f"{self.name}={self.file}" if self.alias else self.file


def select(store: Path, names: Sequence[str]) -> list[StoredArchive]:
    """Finds the archives that `names` mean (`name`, `name.mar` or `alias=name.mar`); without names, all of the store.

    TorchServe answers requests that name no version with the first version that it is given. So without names the oldest version
    of each model comes first: a newer one that is put beside it waits to be named, whatever its file is called.

    Raises:
        ServeError: the store has no archive, or none of a name; an archive cannot be read; two have one name and version.
    """
    if not store.is_dir():
        raise ServeError(f"there is no model store {show(str(store))}: package a model first, or give --model-store")
    files = {path.name: path for path in sorted(store.iterdir()) if _is_archive(path)}
    if not files:
        raise ServeError(f"the model store {show(str(store))} holds no archive: package a model first")
    chosen = [_named(name, files, store) for name in names] or sorted(map(read_archive, files.values()), key=_by_age)
    _refuse_duplicates(chosen)
    return chosen


def describe(archives: Sequence[StoredArchive]) -> list[str]:
    """Describes each archive in words; where a model has several versions, with its own, and which is the default."""
    names = [archive.name for archive in archives]
    descriptions = []
    for index, (name, archive) in enumerate(zip(names, archives, strict=True)):
        if names.count(name) == 1:
            descriptions.append(f"{name} ({archive.file})")
        else:
            default = ", the default" if names.index(name) == index else ""
            descriptions.append(f"{name} {archive.version} ({archive.file}{default})")
    return descriptions


def _is_archive(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return (path / MANIFEST).is_file() if path.is_dir() else path.name.endswith(SUFFIXES)


def _named(name: str, files: dict[str, Path], store: Path) -> StoredArchive:
    alias, equals, wanted = name.rpartition("=")
    if equals and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", alias):
        raise ServeError(f"{show(alias)} cannot name a model: letters, digits, `_`, `-` and `.` are accepted")
    for candidate in (wanted, *(wanted + suffix for suffix in SUFFIXES)):
        if candidate in files:
            archive = read_archive(files[candidate])
            return replace(archive, name=alias, alias=True) if equals else archive
    stems = [_stem(file) for file in files]
    near = find_nearest(_stem(wanted), stems)
    hint = f"nearest: {join_names(near)}" if near else f"it holds {join_names(stems)}"
    raise ServeError(f"no archive {show(wanted)} in the model store {show(str(store))}; {hint}")


def _by_age(archive: StoredArchive) -> tuple[str, list[tuple[int, str]]]:
    """Returns a sort key: the name, then the version, whose numbers count as numbers (2.0 comes before 10.0)."""
    words = re.findall(r"0*([0-9]*)([^0-9]*)", archive.version)
    return archive.name, [part for number, text in words for part in ((len(number), number), (-1, text))]


def _stem(file: str) -> str:
    return next((file[: -len(suffix)] for suffix in SUFFIXES if file.endswith(suffix)), file)


def _refuse_duplicates(archives: Sequence[StoredArchive]) -> None:
    files: dict[tuple[str, str], str] = {}
    for archive in archives:
        key = (archive.name, archive.version)
        if key in files:
            raise ServeError(
                f"{files[key]} and {archive.file} are both version {archive.version} of the model {show(archive.name)}: "
                f"choose one with --models, or rename one: --models other={archive.file}"
            )
        files[key] = archive.file


def read_archive(path: Path) -> StoredArchive:
    """Reads the manifest and the configuration of the archive at `path`; raises `ServeError` when that fails."""
    try:
        if path.is_dir():
            return _read(path.name, lambda name: _file_member(path, name))
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as tar:
                return _read(path.name, lambda name: _tar_member(tar, name))
        with zipfile.ZipFile(path) as archive:
            return _read(path.name, lambda name: _zip_member(archive, name))
    except (OSError, KeyError, ValueError, AttributeError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ServeError(f"{path.name} is not an archive that can be read: {error}") from error


def _file_member(directory: Path, name: str) -> bytes:
    path = (directory / name).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise ValueError(f"its manifest names a file outside the archive: {show(name)}")
    return _check_length(path.stat().st_size, path.read_bytes)


def _zip_member(archive: zipfile.ZipFile, name: str) -> bytes:
    return _check_length(archive.getinfo(name).file_size, lambda: archive.read(name))


def _check_length(length: int, read: Callable[[], bytes]) -> bytes:
    """Reads what is not too long: a small archive may hold a member that unpacks to gigabytes."""
    if length > MAX_TEXT:
        raise ValueError(f"its manifest or configuration has {length} bytes, and {MAX_TEXT} are the most")
    return read()


def _tar_member(tar: tarfile.TarFile, name: str) -> bytes:
    for member in tar:
        if member.name.partition("/")[2] == name:
            stream = tar.extractfile(member)
            if stream is not None:
                return _check_length(member.size, stream.read)
    raise KeyError(name)


def _read(file: str, read: Callable[[str], bytes]) -> StoredArchive:
    model = json.loads(read(MANIFEST))["model"]
    config_file = model.get("configFile")
    workers = _workers(file, config_file, read(config_file)) if config_file else 0
    return StoredArchive(file, str(model["modelName"]), str(model.get("modelVersion", "1.0")), workers)


def _workers(file: str, config_file: str, text: bytes) -> int:
    """Reads `minWorkers`, which TorchServe takes only beside a `maxWorkers` that is no less."""
    try:
        settings: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ServeError(f"{config_file} of {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        # TorchServe's frontend ends at once on an empty one
        raise ServeError(f"{config_file} of {file} is empty or no mapping: it needs at least `minWorkers: 1`")
    low, high = settings.get("minWorkers"), settings.get("maxWorkers")
    return low if isinstance(low, int) and isinstance(high, int) and 0 < low <= high else 0
