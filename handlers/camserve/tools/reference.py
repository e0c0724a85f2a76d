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
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from camserve.errors import ConfigError
from camserve.looks import Measured
from camserve.mapstats import STATISTICS
from camserve.reference import FILE, Reference
from camserve.request import Call
from camserve.tools.archive import load_service, open_archive
from camserve.tools.baseline import Collector, build
from camserve.tools.console import Progress, ToolError, command_of, fail

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp")
LEAST = 100
ENOUGH = 1000
"""Of how many pictures a reference is hardly better for having more: windows of 1,000 predictions then tell PSI 0.1."""
BATCH = 8
SHADES = " ░▒▓█"


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the reference that `argv` asks for; the exit status."""
    options = parser().parse_args(argv)
    try:
        make(options.archive, options.images, Progress())
    except (ToolError, ConfigError) as error:
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
        ToolError: no archive, too few pictures that the model can read, or an archive that does not load.
    """
    paths = list(pictures(images))
    if len(paths) < LEAST:
        raise ToolError(f"expected at least {LEAST} pictures ({', '.join(SUFFIXES)}), found {len(paths)}")
    with open_archive(archive) as opened:
        with progress.step("Load the archive"):
            handler = _handler_of(opened.directory)
        collector = Collector(handler.scale)
        handler.pipeline.watcher = collector
        refused = _ask_all(handler.pipeline, paths, progress)
        found = collector.found()
        if len(found.targets) < LEAST:
            raise ToolError(
                f"the model could read {len(found.targets)} of {len(paths)} pictures, {LEAST} are needed; {_first(refused)}"
            )
        reference = build(found, collector.shares, handler.made)
        _say(found, reference, refused, handler, progress)
    with progress.step(f"Write {FILE} into the archive"):
        put(archive, FILE, reference.to_json())
    progress.note(f"{archive} now holds the reference; serve it anew for Prometheus to see it")
    return reference


def _handler_of(directory: Path) -> Any:
    logging.getLogger("ts").setLevel(logging.ERROR)  # it warns of accelerators that nobody asked for
    handler = load_service(directory)._entry_point.__self__
    if not hasattr(handler, "made"):
        raise ToolError(f"the archive's handler is not camserve's, or an older one's; make it with {command_of('package')}")
    return handler


def pictures(given: Sequence[Path]) -> Iterator[Path]:
    """The files given, and the pictures in the folders given, by name.

    Raises:
        ToolError: nothing there of a name.
    """
    for path in given:
        if path.is_dir():
            yield from sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
        elif path.is_file():
            yield path
        else:
            raise ToolError(f"there is no picture and no folder {path}")


def put(archive: Path, name: str, text: str) -> None:
    """Writes one file into an archive, in place of one of that name; everything else stays as it is, byte for byte.

    No server and no interruption ever sees half of it: it is written beside the archive and then takes its place.
    """
    target = archive / name if archive.is_dir() else archive
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
            part = paths[start : start + BATCH]
            replies = pipeline.run([Call(False, {}, {"body": path.read_bytes()}) for path in part])
            refused.update(
                {path: str(reply.body, "utf-8") for path, reply in zip(part, replies, strict=True) if reply.status != 200}
            )
            bar.advance(task, len(part))
    return refused


def _first(refused: dict[Path, str]) -> str:
    for path, message in refused.items():
        return f"for {path} it answers {message}"
    return "the maps of the others could not be made"


def _say(found: Measured, reference: Reference, refused: dict[Path, str], handler: Any, progress: Progress) -> None:
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
    named = ", ".join(f"{handler.labels[index]} ({count})" for index, count in classes[:5])
    groups = len(set(reference.groups.values()))
    progress.note(f"{reference.images} pictures of {len(classes)} classes, in {groups} groups; most often {named}")
    for index, attention in list(reference.attention.items())[:3]:
        progress.note(f"Where it looks for {handler.labels[index]}, mean of {attention.images}:")
        for row in attention.grid / attention.grid.max():
            progress.note("  " + "".join(2 * SHADES[round(float(cell) * (len(SHADES) - 1))] for cell in row))
    if reference.images < ENOUGH:
        progress.note(f"With {ENOUGH} pictures, smaller drifts could be told from chance")
