"""Opens an archive (`.mar`, `.tar.gz`): unpacks it within limits, reads its manifest and configuration, and runs nothing."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from camserve.core.errors import ArchiveError

MAX_BYTES = 64 * 2**30
"""Bytes that an archive may unpack to."""

MAX_RATIO = 200
"""How many times its own size an archive may unpack to; weights hardly shrink, and zip stops at about 1000."""

FREE_BYTES = 256 * 2**20
"""What an archive may unpack to whatever its own size: a small model of zeros is no attack."""

FILES = ("configFile", "handler", "modelFile", "requirementsFile", "serializedFile")
"""Keys of the manifest's `model` that name files of the archive."""


@dataclass(frozen=True)
class Archive:
    """An unpacked archive; `config` is its `model-config.yaml`."""

    directory: Path
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.manifest["model"]["modelName"])

    @property
    def version(self) -> str:
        """The model's version; empty where the manifest has none."""
        return str(self.manifest["model"].get("modelVersion") or "")

    def file(self, key: str) -> Path | None:
        """Return the file that the manifest names under one of `FILES`, or None where it names none."""
        name = self.manifest["model"].get(key)
        return self.directory / name if name else None


@contextmanager
def unpack(path: Path | str) -> Iterator[Archive]:
    """Unpack an archive into a folder that is removed afterwards; a folder is taken as it is.

    Raises:
        ArchiveError: no archive, a damaged one, one that would write or read outside its folder, or one beyond the limits.
    """
    path = Path(path)
    if path.is_dir():
        yield read_archive(path.resolve())
        return
    with tempfile.TemporaryDirectory(prefix="camserve-") as folder:
        yield read_archive(extract(path, Path(folder).resolve()))


def read_archive(directory: Path) -> Archive:
    """Read the manifest and the configuration of an unpacked archive.

    Raises:
        ArchiveError: they cannot be read, or name a file outside the archive.
    """
    try:
        manifest = json.loads((directory / "MAR-INF" / "MANIFEST.json").read_text("utf-8"))
        model = manifest["model"]
        for key in FILES:
            _check_inside(directory, key, str(model.get(key) or "").partition(":")[0] if key == "handler" else model.get(key))
        config_file = model.get("configFile")
        config = yaml.safe_load((directory / config_file).read_text("utf-8")) if config_file else None
    except ArchiveError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ArchiveError(f"not an archive: its manifest or configuration cannot be read ({type(error).__name__})") from error
    if not model.get("modelName"):
        raise ArchiveError("not an archive: its manifest gives the model no name (modelName)")
    return Archive(directory, manifest, config if isinstance(config, dict) else {})


def _check_inside(directory: Path, key: str, name: object) -> None:
    if name and not (directory / str(name)).resolve().is_relative_to(directory.resolve()):
        raise ArchiveError(f"not a safe archive: its manifest's {key} names a file outside the archive: {name!r}")


def extract(path: Path, directory: Path) -> Path:
    """Unpack a zip or tar file; return the folder that holds the manifest: in a tar of torch-model-archiver's, the only one.

    Args:
        directory: an empty folder, resolved.

    Raises:
        ArchiveError: as `unpack`.
    """
    try:
        limit = max(FREE_BYTES, min(MAX_BYTES, MAX_RATIO * path.stat().st_size))
        if not tarfile.is_tarfile(path):
            with zipfile.ZipFile(path) as zipped:
                members = zipped.infolist()
                for member in members:
                    _check_name(member.filename, path, plain=(member.external_attr >> 16) & 0o170000 != 0o120000)
                _check_size(sum(member.file_size for member in members), limit, path)
                zipped.extractall(directory)  # noqa: S202 each member was checked; zipfile writes no more than file_size
            return directory
        size = 0
        with tarfile.open(path) as tar:
            for each in tar:
                _check_name(each.name, path, plain=each.isfile() or each.isdir())
                size += each.size
                _check_size(size, limit, path)
                _extract(tar, each, directory)
    except FileNotFoundError:
        raise ArchiveError(f"no archive {path}") from None
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ArchiveError(f"{path} is not an archive, or is damaged: {error}; accepted are .mar (zip) and .tar.gz") from error
    inside = list(directory.iterdir())
    return inside[0] if len(inside) == 1 and (inside[0] / "MAR-INF").is_dir() else directory


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    """Write one member of a tar file, its bytes only: neither its owner nor its mode."""
    target = directory / member.name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    stream = tar.extractfile(member)
    if stream is not None:
        with stream, target.open("wb") as file:
            shutil.copyfileobj(stream, file)


def _check_name(member: str, path: Path, *, plain: bool) -> None:
    """Refuse names that leave the folder, and links, which could; `plain`: it is a file or a folder."""
    name = PurePosixPath(member)
    if not plain or name.is_absolute() or ".." in name.parts or "\\" in member or ":" in "".join(name.parts[:1]):
        fault = "would be written outside its folder" if plain else "is neither a file nor a folder"
        raise ArchiveError(f"{path} is unsafe: it holds {member!r}, which {fault}")


def _check_size(size: int, limit: int, path: Path) -> None:
    if size > limit:
        raise ArchiveError(
            f"{path} would unpack to more than {limit} bytes, which is {MAX_RATIO} times its size, or the limit of {MAX_BYTES}; "
            "unpack it yourself and give the folder where you trust it"
        )
