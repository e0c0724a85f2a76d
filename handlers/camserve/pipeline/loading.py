"""Loads the model of an unpacked archive without TorchServe: its own code, weights and labels, as TorchServe's handler would.

Tries the layers of any loaded model before the first request.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from camserve.capture import is_exported, load_exported
from camserve.capture.models.programs.exported import COMPILED, is_package
from camserve.capture.models.programs.graphs.module import load_graph
from camserve.capture.models.programs.operators import register_operators
from camserve.capture.runtimes.graph import GRAPH
from camserve.capture.runtimes.packages import PACKAGE
from camserve.core.errors import ArchiveError, ConfigError
from camserve.core.labels import parse_labels
from camserve.core.text import in_one_line
from camserve.pipeline.archive import Archive

logger = logging.getLogger(__name__)

LABELS = "index_to_name.json"
HANDLER = "GradCAMHandler"
STOCK = "image_classifier"
STEPS = frozenset({"image_processing", "preprocess", "inference", "postprocess"})
"""The stock steps, which our handler leaves as they are."""

SHARED = ("camserve", "gradcam_handler")
"""Modules that stay this process's own: the archive holds the same ones."""

TIMEOUT = 120.0
"""TorchServe's `default_response_timeout`, in seconds."""


def load_module(archive: Archive, device: torch.device) -> Any:
    """Load the archive's model, in evaluation mode: an eager module, or a program of any kind.

    Raises:
        ArchiveError: the archive brings a handler of its own, has no model, or its model does not load.
        ConfigError: the model was to be compiled, and cannot be.
    """
    check_handler(archive)
    weights, source = archive.file("serializedFile"), archive.file("modelFile")
    try:
        if source is not None:
            with isolate_modules(archive.directory):
                module = _find_class(source)()
            if weights is not None:
                module.load_state_dict(torch.load(weights, map_location=device, weights_only=True))
            module.to(device)
        elif weights is not None and weights.suffix == ".pt":
            exported = is_exported(str(weights))
            module = load_exported(str(weights), device) if exported else _load_script(weights, device)
        elif weights is not None and weights.suffix == ".onnx":
            module = load_graph(weights, device)
        elif weights is not None and (weights.suffix == ".so" or is_package(weights)):
            raise ArchiveError(f"{weights.name} {COMPILED}")
        else:
            raise ArchiveError(
                "the archive has neither a model file nor a program (.pt, .onnx) that can be loaded without TorchServe"
            )
        module.eval()
    except (ArchiveError, ConfigError):
        raise
    except Exception as error:
        raise ArchiveError(f"the archive's model does not load: {in_one_line(error)}") from error
    return _compile(module, archive.config.get("pt2"))


def load_served_graph(model: Mapping[str, Any], directory: Path | str) -> torch.nn.Module | None:
    """Load an archive's model where it is an ONNX graph, for which TorchServe makes a session that shows no layers.

    Args:
        model: the manifest's part of that name.
        directory: the unpacked archive.
    """
    weights = str(model.get("serializedFile") or "")
    return load_graph(Path(directory) / weights) if weights.endswith(".onnx") and not model.get("modelFile") else None


def read_labels(directory: Path) -> dict[str, str] | None:
    """Read `index_to_name.json` in any form that `parse_labels` takes, TorchServe's among them; None where there is none.

    Raises:
        ArchiveError: it cannot be read, or can be read in two ways.
    """
    path = directory / LABELS
    if not path.is_file():
        return None
    try:
        return parse_labels(path.read_bytes())
    except ConfigError as error:
        raise ArchiveError(f"{LABELS}: {error}") from error


def digest_file(path: Path | None) -> str:
    """Return the SHA-256 of a file in hexadecimal, or "" where there is no file."""
    digest = hashlib.sha256()
    if path is None:
        return ""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def isolate_modules(directory: Path) -> Iterator[None]:
    """Find the modules in `directory` first; those of the same names that are loaded already are set aside meanwhile."""
    names = {path.stem for path in directory.glob("*.py")} | {path.parent.name for path in directory.glob("*/*.py")}
    own = names.difference(SHARED)

    def take_out() -> dict[str, Any]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in own}

    aside = take_out()
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(directory))
        take_out()
        sys.modules.update(aside)


def is_compiled(pt2: object) -> bool:
    """Return True if `pt2` asks to compile: `{compile: {enable: true}}`, or in its older form a backend or options."""
    if not isinstance(pt2, Mapping):
        return isinstance(pt2, str)
    return pt2["compile"].get("enable") is True if "compile" in pt2 else "export" not in pt2


def _load_script(path: Path, device: torch.device) -> Any:
    register_operators()
    return torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]


def _compile(module: Any, pt2: object) -> Any:
    if not is_compiled(pt2):
        return module
    options: dict[str, Any] = {"backend": pt2} if isinstance(pt2, str) else dict(pt2.get("compile", pt2))  # type: ignore[attr-defined]
    options.pop("enable", None)
    try:
        return torch.compile(module, **options)
    except Exception as error:
        raise ConfigError(f"pt2: the model cannot be compiled with {pt2!r}: {in_one_line(error)}") from error


def _find_class(source: Path) -> Any:
    """Import the model's file, and return the one class that it defines."""
    module = importlib.import_module(source.name.split(".")[0])
    classes = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__]
    if len(classes) != 1:
        names = ", ".join(each.__name__ for each in classes) or "none"
        raise ArchiveError(f"the model's file must define exactly one class, got {names}")
    return classes[0]


def check_handler(archive: Archive) -> None:
    """Refuse a handler with steps of its own: without TorchServe they would be left out without a word.

    Raises:
        ArchiveError: it is neither ours, nor TorchServe's image classifier.
    """
    name = str(archive.manifest["model"].get("handler", "")).partition(":")[0]
    if name == STOCK:
        return
    source = archive.directory / name
    if not source.is_file():
        raise ArchiveError(
            f"the archive's handler {name!r} is TorchServe's own and no image classifier; only {STOCK} can be opened"
        )
    classes = [node for node in ast.parse(source.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
    if len(classes) != 1 or not _is_ours(classes[0]):
        names = ", ".join(node.name for node in classes) or "no class"
        raise ArchiveError(
            f"the archive's handler {name} brings steps of its own ({names}), which need TorchServe: "
            "serve the archive, or give its module to camserve.Model with preprocess=..."
        )


def _is_ours(node: ast.ClassDef) -> bool:
    """Return True for our handler of any release: its name alone says nothing, for a user's class may have the same."""
    bases = [ast.unparse(base) for base in node.bases]
    defined = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
    defined |= {ast.unparse(target) for each in node.body if isinstance(each, ast.Assign) for target in each.targets}
    return node.name == HANDLER and bases == ["ImageClassifier"] and "describe_handle" in defined and not defined & STEPS


def half_timeout(settings: Mapping[str, Any]) -> float:
    """Return half the seconds after which TorchServe ends a worker that has not answered; the rest is for what is under way.

    The archive's `responseTimeout`, or TorchServe's own default.
    """
    given = settings.get("responseTimeout")
    return (float(given) if isinstance(given, (int, float)) and given > 0 else TIMEOUT) / 2


def find_graph(directory: Path | str | None) -> Path | None:
    """Return where an unpacked archive has its graph for a runtime, or what stands in for that; None: it holds neither."""
    path = Path(directory or "") / GRAPH
    return path if directory and (path.is_file() or path.with_name(PACKAGE).is_file()) else None
