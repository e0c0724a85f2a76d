"""Opens an archive: unpacks it safely, and loads its handler into this process."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from camserve.tools.archive.fresh import worker
from camserve.tools.archive.fresh.modules import drop, place, top_modules
from camserve.tools.archive.fresh.worker import Response, Row, ask
from camserve.tools.console import ToolError

__all__ = ["Archive", "Response", "Row", "ask", "load_service", "open_archive"]

SHARED = ("camserve", "gradcam_handler")
"""Modules that this process keeps, where it has them already: the archive holds the same ones."""


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


@contextmanager
def open_archive(path: Path | str) -> Iterator[Archive]:
    """Unpacks an archive (`.mar`, `.tar.gz`) into a folder that is removed afterwards; a folder is taken as it is.

    Raises:
        ToolError: no archive, a damaged one, or one that would write outside its folder.
    """
    with ExitStack() as stack:
        directory = Path(path).resolve()
        if not directory.is_dir():
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="camserve-"))).resolve()
            directory = _unpack(Path(path), directory)
        stack.callback(_forget, directory)
        yield _opened(directory)


def load_service(directory: Path | str) -> Any:
    """The unpacked archive's handler in TorchServe's own `ts.service.Service`, in this process, on the CPU.

    `camserve` and its handler are those of this process; everything else is the archive's own, even where another archive
    had a module of that name. Ask it with `ask`.
    """
    directory = Path(directory).resolve()
    drop(top_modules(directory).difference(SHARED))
    sys.path[:] = [str(directory), *(each for each in sys.path if each != str(directory))]
    return worker.load_service(directory)


def _opened(directory: Path) -> Archive:
    try:
        manifest = json.loads((directory / "MAR-INF" / "MANIFEST.json").read_text("utf-8"))
        config_file = manifest["model"].get("configFile")
        config = yaml.safe_load((directory / config_file).read_text("utf-8")) if config_file else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ToolError(f"not an archive: its manifest or configuration cannot be read ({type(error).__name__})") from error
    if not manifest["model"].get("modelName"):
        raise ToolError("not an archive: its manifest gives the model no name (modelName)")
    return Archive(directory, manifest, config if isinstance(config, dict) else {})


def _unpack(path: Path, directory: Path) -> Path:
    """Unpacks a zip or tar file; the folder that holds the manifest: in a tar of torch-model-archiver's, the only one."""
    try:
        if not tarfile.is_tarfile(path):
            with zipfile.ZipFile(path) as zipped:
                for member in zipped.infolist():
                    _check(member.filename, path, plain=(member.external_attr >> 16) & 0o170000 != 0o120000)
                zipped.extractall(directory)  # noqa: S202 each member was checked
            return directory
        with tarfile.open(path) as tar:
            for each in tar:
                _check(each.name, path, plain=each.isfile() or each.isdir())
                _extract(tar, each, directory)
    except FileNotFoundError:
        raise ToolError(f"no archive {path}") from None
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ToolError(f"{path} is not an archive, or is damaged: {error}; accepted are .mar (zip) and .tar.gz") from error
    inside = list(directory.iterdir())
    return inside[0] if len(inside) == 1 and (inside[0] / "MAR-INF").is_dir() else directory


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    """Writes one member of a tar file, its bytes only: neither its owner nor its mode."""
    target = directory / member.name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    stream = tar.extractfile(member)
    if stream is not None:
        with stream, target.open("wb") as file:
            shutil.copyfileobj(stream, file)


def _check(member: str, path: Path, *, plain: bool) -> None:
    """Refuses names that leave the folder, and links, which could; `plain`: it is a file or a folder."""
    name = PurePosixPath(member)
    if not plain or name.is_absolute() or ".." in name.parts or "\\" in member or ":" in "".join(name.parts[:1]):
        fault = "would be written outside its folder" if plain else "is neither a file nor a folder"
        raise ToolError(f"{path} is unsafe: it holds {member!r}, which {fault}")


def _forget(directory: Path) -> None:
    """Undoes what loading from `directory` left in this process."""
    if str(directory) in sys.path:
        sys.path.remove(str(directory))
    loaded = top_modules(directory).intersection(sys.modules)
    drop({name for name in loaded if place(sys.modules[name]).is_relative_to(directory)})
