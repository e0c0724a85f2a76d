"""Opens an archive: unpacks it safely, and loads its handler into this process."""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from camserve.tools.console import ToolError
from camserve.tools.fresh import worker
from camserve.tools.fresh.modules import drop, place, top_modules
from camserve.tools.fresh.worker import Response, Row, ask

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
        """The model's version."""
        return str(self.manifest["model"]["modelVersion"])


@contextmanager
def open_archive(path: Path | str) -> Iterator[Archive]:
    """Unpacks an archive (`.mar`) into a folder that is removed afterwards; a folder is taken as it is.

    Raises:
        ToolError: no archive, a damaged one, or one that would write outside its folder.
    """
    with ExitStack() as stack:
        directory = Path(path).resolve()
        if not directory.is_dir():
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="camserve-"))).resolve()
            _unpack(Path(path), directory)
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
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ToolError(f"not an archive: its manifest or configuration cannot be read ({type(error).__name__})") from error
    return Archive(directory, manifest, config if isinstance(config, dict) else {})


def _unpack(path: Path, directory: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check(member, path)
            archive.extractall(directory)
    except FileNotFoundError:
        raise ToolError(f"no archive {path}") from None
    except zipfile.BadZipFile as error:
        raise ToolError(f"{path} is not an archive, or is damaged: {error}") from error


def _check(member: zipfile.ZipInfo, path: Path) -> None:
    """Refuses names that leave the folder, and links, which could."""
    name = PurePosixPath(member.filename)
    is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
    if name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in "".join(name.parts[:1]) or is_link:
        raise ToolError(f"{path} is unsafe: it holds {member.filename!r}, which would be written outside its folder")


def _forget(directory: Path) -> None:
    """Undoes what loading from `directory` left in this process."""
    if str(directory) in sys.path:
        sys.path.remove(str(directory))
    loaded = top_modules(directory).intersection(sys.modules)
    drop({name for name in loaded if place(sys.modules[name]).is_relative_to(directory)})
