"""Says what is in an archive before any of it runs, and whether code of its own would."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from camserve.core.errors import ArchiveError
from camserve.core.text import join_names, show
from camserve.pipeline.archive import Archive
from camserve.pipeline.loading import STOCK, digest_file, read_labels
from camserve.tools.console import ToolError
from camserve.tools.packaging.models.libraries.generated import is_generated

OURS = Path(__file__).resolve().parents[3] / "gradcam_handler.py"
"""Camserve's handler; importing it would need TorchServe."""
CODE = (".py", ".pyc", ".pyw", ".so", ".pyd", ".dll", ".dylib")
"""Files that importing a module may run."""
PROGRAM = ".pt"
PACKAGE = "camserve-runtime.pt2"
"""`runtimes.packages.PACKAGE`, without torch."""
GRAPH = ".onnx"
"""A graph runs nothing of its own: its operators are those of the runtime, and of camserve."""

Say = Callable[[str], None]


def review(path: Path, archive: Archive, trusted: bool, say: Say, *, runs_copies: bool = False) -> None:
    """Says what an unpacked archive holds, by reading alone, and what of its own would run.

    Args:
        runs_copies: its own copies of camserve and of our handler run, as in a worker, not this process's.

    Raises:
        ToolError: there is code of its own, and it is not trusted; none of it has run.
    """
    weights = read_weights(archive)
    say(describe_archive(path, archive, weights))
    code = find_code(archive, weights, runs_copies=runs_copies)
    if not code:
        return
    named = join_names(code, 6).replace(" or ", " and ")
    if not trusted:
        raise ToolError(
            f"{path} brings code of its own, which would run with your rights: {named}. Nothing of it has run. "
            "Look at it, and say --trust where you trust whom it comes from"
        )
    say(f"  its own code runs now, as --trust says: {named}")


def describe_archive(path: Path, archive: Archive, weights: Mapping[str, Any] | None) -> str:
    """Describes an archive in one line: name, handler, model, weights, labels and configuration."""
    model = archive.manifest["model"]
    file = archive.file("serializedFile")
    parts = [f"{path}: {show(archive.name)} {show(archive.version)}", f"handler {show(str(model.get('handler')))}"]
    if model.get("modelFile"):
        parts.append(f"model {show(str(model['modelFile']))}")
    if file is not None and file.is_file():
        held = "" if weights is None else f", {len(weights)} tensors, {sum(map(_count, weights.values())):,} numbers"
        digest = digest_file(file)[:12]
        parts.append(f"weights {show(file.name)} ({file.stat().st_size / 1e6:.1f} MB, sha256:{digest}{held})")
    try:
        labels = read_labels(archive.directory)
    except ArchiveError as error:
        parts.append(str(error))
    else:
        parts.append(f"{len(labels)} labels" if labels else "no labels")
    explain = archive.config.get("explain")
    if explain:
        text = json.dumps(explain, default=str)
        parts.append(f"explain {text if len(text) <= 300 else text[:297] + '...'}")
    return "; ".join(parts)


def find_code(archive: Archive, weights: Mapping[str, Any] | None, *, runs_copies: bool = False) -> list[str]:
    """Finds what would run of an archive beside camserve's own handler and what packaging writes for torchvision's names.

    Args:
        weights: as `read_weights` returns them.
        runs_copies: as `review` takes it; then copies that differ from this release's are code of its own too.

    Returns:
        What each is, in words; empty: loading the archive runs nothing of its own.
    """
    model = archive.manifest["model"]
    handler, source, program = str(model.get("handler") or ""), model.get("modelFile"), model.get("serializedFile")
    found = _find_differing(archive.directory) if runs_copies else []
    for path in sorted(archive.directory.rglob("*")):
        name = path.relative_to(archive.directory)
        if path.suffix.lower() not in CODE or not path.is_file() or name.parts[0] == "camserve":
            continue  # what is loaded here has this process's own camserve
        role = "the model's file" if name.as_posix() == source else "the handler" if name.as_posix() == handler else ""
        if not _is_ours(path, name.as_posix(), role):
            found.append(f"{show(name.as_posix())}{f' ({role})' if role else ''}")
    place = handler.partition(":")[0]
    if handler != STOCK and not (archive.directory / place).is_file():
        found.append(f"{show(handler)} (the handler, a module that is installed here)")
    if (archive.directory / PACKAGE).is_file():
        found.append(f"{PACKAGE} (compiled code, which runs the model)")
    if program and not source and Path(str(program)).suffix == PROGRAM:
        found.append(f"{show(str(program))} (a program)")
    elif program and weights is None and Path(str(program)).suffix != GRAPH:
        found.append(f"{show(str(program))} (weights that are pickled objects, not tensors alone)")
    return found


def _find_differing(directory: Path) -> list[str]:
    """Says which of an archive's copies of camserve and of our handler are not this release's, byte for byte."""
    ours = OURS.parent
    copies = [path for path in sorted((directory / "camserve").rglob("*")) if path.suffix.lower() in CODE]
    copies += [path for path in (directory / OURS.name,) if path.is_file()]
    names = [path.relative_to(directory) for path in copies if path.is_file() and "__pycache__" not in path.parts]
    differ = [name for name in names if not _is_same(directory / name, ours / name)]
    if not differ:
        return []
    return [f"{show(differ[0].as_posix())} (its copy of camserve, of another release than this: {len(differ)} files differ)"]


def _is_same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def read_weights(archive: Archive) -> Mapping[str, Any] | None:
    """Reads the weights of a model's file without running anything: only tensors; None where they are something else."""
    import torch  # noqa: PLC0415 takes seconds, and a command's help does without it

    file = archive.file("serializedFile")
    if file is None or not archive.manifest["model"].get("modelFile"):
        return None
    for mapped in (True, False):  # the older format cannot be mapped
        try:
            read = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception:  # noqa: BLE001, S112 a damaged file raises many things
            continue
        return read if isinstance(read, Mapping) else None
    return None


def _is_ours(path: Path, name: str, role: str) -> bool:
    """Tells whether a file is camserve's handler, in whose place this process's own runs, or written by packaging."""
    if name == OURS.name:
        return True
    digest = hashlib.sha256(path.read_bytes()).digest()
    if role == "the handler" and digest == hashlib.sha256(OURS.read_bytes()).digest():
        return True
    return role == "the model's file" and is_generated(path.read_text("utf-8", "replace"))


def _count(tensor: Any) -> int:
    return int(tensor.numel()) if hasattr(tensor, "numel") else 0
