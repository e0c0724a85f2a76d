"""Measures good pictures with an archive, and writes into it what is normal, so that drift from it can be seen."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from camserve.core.errors import ConfigError
from camserve.core.messages import Call
from camserve.core.text import in_one_line
from camserve.monitoring.measure import Measurements
from camserve.monitoring.reference import FILE, UNSEEN, Reference
from camserve.monitoring.statistics import STATISTICS
from camserve.pipeline.model import Model
from camserve.tools.archive.archive import face_of, load_service, open_archive
from camserve.tools.console import Progress, ToolError, command_of, fail
from camserve.tools.reports.pictures import SUFFIXES, list_pictures
from camserve.tools.watching.baseline import Collector, build_reference

LEAST = 100
ENOUGH = 1000
"""Of how many pictures a reference is hardly better for having more: windows of 1,000 predictions then tell PSI 0.1."""
BATCH = 8
ROOM = 4_000_000
"""Bytes that a reference hardly exceeds."""
SHADES = " ░▒▓█"


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the reference that `argv` asks for; the exit status."""
    options = parser().parse_args(argv)
    try:
        make(options.archive, options.images, Progress())
    except (ToolError, ConfigError, OSError) as error:
        return fail(error)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog=command_of("reference"), description=__doc__, allow_abbrev=False)
    made.add_argument(
        "--archive", type=Path, required=True, metavar="FILE", help="the archive (.mar); it is rewritten in one step"
    )
    text = "pictures as the model is to see them in service, in their usual mixture: files, or folders with all in them"
    made.add_argument("images", type=Path, nargs="+", metavar="IMAGES", help=f"{text}; {LEAST} at least, better {ENOUGH}")
    return made


def make(archive: Path, images: Sequence[Path], progress: Progress) -> Reference:
    """Measures the pictures, writes the reference into the archive, and says what was found.

    Raises:
        ToolError: no archive, one that does not load or cannot be rewritten, or too few pictures that the model can read.
    """
    paths = list(list_pictures(images))
    if len(paths) < LEAST:
        raise ToolError(f"expected at least {LEAST} pictures ({', '.join(SUFFIXES)}), found {len(paths)}")
    _check_writable(archive)
    with _loaded(archive, progress) as face:
        collector = Collector(face.scale)
        face.observe(collector)
        refused = _ask_all(face.pipeline, paths, progress)
        found = collector.measurements()
        if len(found.targets) < LEAST:
            raise ToolError(
                f"the model could read {len(found.targets)} of {len(paths)} pictures, {LEAST} are needed; {_first(refused)}"
            )
        reference = build_reference(found, collector.shares, face.provenance)
        _say(found, reference, refused, face, progress)
    with progress.step(f"Write {FILE} into the archive"):
        try:
            put(archive, FILE, reference.to_json())
        except (OSError, zipfile.BadZipFile) as error:
            raise ToolError(f"{archive} cannot be rewritten, and is as it was: {_why(error)}") from error
    progress.note(f"{archive} now holds the reference; serve it anew for Prometheus to see it")
    return reference


def _check_writable(archive: Path) -> None:
    """Finds out, before anything is measured, what would keep an archive from being rewritten.

    Raises:
        ToolError: it is of a kind that cannot be changed, nothing can be written beside it, or there is no room for a second one.
    """
    if not archive.exists():
        return
    if archive.is_file() and not zipfile.is_zipfile(archive):
        raise ToolError(f"{archive} cannot be rewritten: expected a .mar (a zip archive) or a folder, got a file of another kind")
    target = _target(archive, FILE)
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{target.name}.", suffix=".part", dir=target.parent):
            free = shutil.disk_usage(target.parent).free
    except OSError as error:
        raise ToolError(f"{archive} cannot be rewritten: in {target.parent}: {_why(error)}") from error
    needed = (0 if archive.is_dir() else target.stat().st_size) + ROOM
    if free < needed:
        raise ToolError(f"{archive} cannot be rewritten: {needed} bytes are needed in {target.parent}, and {free} are free")


def _why(error: Exception) -> str:
    """The system's own words, without the name of a temporary file."""
    return (isinstance(error, OSError) and error.strerror) or in_one_line(error)


@contextmanager
def _loaded(archive: Path, progress: Progress) -> Iterator[Model]:
    """The archive's model, loaded in this process, and forgotten afterwards; raises `ToolError` where that cannot be done."""
    logging.getLogger("ts").setLevel(logging.ERROR)  # it warns of accelerators that nobody asked for
    with ExitStack() as stack:
        with progress.step("Load the archive"):
            try:
                opened = stack.enter_context(open_archive(archive))
                face = face_of(load_service(opened.directory))
            except (ToolError, ConfigError):
                raise
            except Exception as error:  # its model and its handler may raise anything
                raise ToolError(f"{archive} does not load: {in_one_line(error)}") from error
        if face is None:
            raise ToolError(f"the archive's handler is not camserve's, or an older one's; make it with {command_of('package')}")
        yield face


def put(archive: Path, name: str, text: str) -> None:
    """Writes one file into an archive, in place of one of that name; everything else stays as it is, byte for byte.

    No server and no interruption ever sees half of it: it is written beside the archive and then takes its place. Where the
    archive is a link, what it points to is rewritten, and the link stays.
    """
    target = _target(archive, name)
    handle, part = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    try:
        if archive.is_dir():
            Path(part).write_text(text, "utf-8")
        else:
            _copy(archive, Path(part), name, text)
        if target.exists():
            shutil.copymode(target, part)
        else:
            Path(part).chmod(0o644)
        Path(part).replace(target)
    finally:
        Path(part).unlink(missing_ok=True)


def _target(archive: Path, name: str) -> Path:
    """The file that is replaced: the archive, or one in the folder that it is; never a link."""
    return (archive / name if archive.is_dir() else archive).resolve()


def _copy(archive: Path, part: Path, name: str, text: str) -> None:
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(part, "w") as target:
        target.comment = source.comment
        for member in source.infolist():
            if member.filename == name:
                continue
            with source.open(member) as reader, target.open(member, "w", force_zip64=member.file_size > 1 << 30) as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)
        target.writestr(name, text, zipfile.ZIP_DEFLATED)


def _ask_all(pipeline: Any, paths: Sequence[Path], progress: Progress) -> dict[Path, str]:
    """Predicts every picture; those that were refused, with the error's message."""
    refused = {}
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=progress.console, transient=True, disable=not progress.console.is_terminal) as bar:
        task = bar.add_task("", total=len(paths))
        for start in range(0, len(paths), BATCH):
            part = {path: _read(path) for path in paths[start : start + BATCH]}
            refused.update({path: f"cannot be read: {_why(read)}" for path, read in part.items() if isinstance(read, OSError)})
            given = {path: read for path, read in part.items() if isinstance(read, bytes)}
            replies = pipeline.run([Call(False, {}, {"body": body}) for body in given.values()])
            refused.update(
                {path: str(reply.body, "utf-8") for path, reply in zip(given, replies, strict=True) if reply.status != 200}
            )
            bar.advance(task, len(part))
    return refused


def _read(path: Path) -> bytes | OSError:
    try:
        return path.read_bytes()
    except OSError as error:
        return error


def _first(refused: dict[Path, str]) -> str:
    for path, message in refused.items():
        return f"{path}: {message}"
    return "the maps of the others could not be made"


def _say(found: Measurements, reference: Reference, refused: dict[Path, str], face: Model, progress: Progress) -> None:
    if refused:
        progress.note(f"{len(refused)} pictures were refused and do not count: {_first(refused)}")
    silent = Counter(filter(None, found.reasons))
    if silent:
        progress.note("Maps that say nothing: " + ", ".join(f"{count} {reason}" for reason, count in silent.most_common()))
    table = Table("statistic", "5 %", "median", "95 %", "meaning", box=None)
    for name, meaning in STATISTICS.items():
        values = found.values[name][~np.isnan(found.values[name])]
        if len(values):
            table.add_row(name, *(f"{each:.4g}" for each in np.quantile(values, (0.05, 0.5, 0.95))), meaning)
    progress.console.print(table)
    classes = Counter(found.targets).most_common()
    named = ", ".join(f"{face.served.labels[index]} ({count})" for index, count in classes[:5])
    groups = len(set(reference.groups.values()))
    progress.note(f"{reference.images} pictures of {len(classes)} classes, in {groups} groups; most often {named}")
    once = int(reference.group_images[UNSEEN])
    if once:
        share = f"{once} of them ({once / reference.images:.1%}) are of classes that came up once"
        progress.note(f"{share}: expect as many of classes that this reference never saw; more pictures make them fewer")
    for index, attention in list(reference.attention.items())[:3]:
        progress.note(f"Where it looks for {face.served.labels[index]}, mean of {attention.images}:")
        for row in attention.grid / attention.grid.max():
            progress.note("  " + "".join(2 * SHADES[round(float(cell) * (len(SHADES) - 1))] for cell in row))
    if reference.images < ENOUGH:
        progress.note(f"With {ENOUGH} pictures, smaller drifts could be told from chance")
