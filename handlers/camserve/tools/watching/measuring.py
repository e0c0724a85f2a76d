"""Measures good pictures with an archive's model, and prints what is normal."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from camserve.core.errors import ConfigError
from camserve.core.labels import Labels
from camserve.core.messages import Call
from camserve.core.text import in_one_line
from camserve.monitoring.measure import Measurements
from camserve.monitoring.reference import UNSEEN, Reference
from camserve.monitoring.statistics import STATISTICS
from camserve.tools.archive.archive import face_of, load_service, open_archive
from camserve.tools.archive.rewriting import name_fault
from camserve.tools.console import Progress, ToolError, command_of
from camserve.tools.watching.baseline import Collector, build_reference

if TYPE_CHECKING:  # torch takes seconds, and the command's help does without it
    from camserve.pipeline.model import Model

LEAST = 100
"""Least pictures of a reference."""
ENOUGH = 1000
"""With more pictures a reference is hardly better: windows of 1,000 predictions then tell PSI 0.1 from chance."""
BATCH = 8
"""Pictures that are asked for at once."""
SHADES = " ░▒▓█"


def measure_archive(
    archive: Path, paths: Sequence[Path], progress: Progress, trusted: bool, examples: int = 0
) -> tuple[Reference, str]:
    """Measures the pictures with an archive's model, and prints what is normal.

    The archive's handler is loaded as a worker loads it, so a subclass's own steps are measured too.

    Args:
        trusted: code of the archive's own may run; what it holds is said before.
        examples: how many pictures of each bin and class group are kept.

    Returns:
        The reference, and its examples as `examples.make_examples` writes them; "" without any.

    Raises:
        ToolError: the archive has code of its own and is not trusted, it does not load, or its model could read too few of
            the pictures.
    """
    with _load(archive, progress, trusted) as model:
        collector = Collector(model.scale)
        model.observe(collector)
        refused, measured = _predict_all(model, paths, collector, progress)
        measurements = collector.measurements()
        count = len(measurements.targets)
        if count < LEAST:
            raise ToolError(
                f"the model could read {count} of {len(paths)} pictures, {LEAST} are needed; {describe_first(refused)}"
            )
        reference = build_reference(measurements, collector.shares, model.provenance)
        print_reference(measurements, reference, refused, model.served.labels, progress)
        if not examples:
            return reference, ""
        from camserve.tools.watching.evidence.normal.examples import choose_examples, make_examples  # noqa: PLC0415 as above

        with progress.step("Keep examples"):
            chosen = choose_examples(measurements, reference, examples)
            return reference, make_examples(model, measured, measurements, reference, chosen)


@contextmanager
def _load(archive: Path, progress: Progress, trusted: bool) -> Iterator[Model]:
    """Loads the archive's model for the block; raises `ToolError` where that cannot be done."""
    logging.getLogger("ts").setLevel(logging.ERROR)  # it warns of accelerators that nobody asked for
    with ExitStack() as stack:
        with progress.step("Load the archive"):
            try:
                opened = stack.enter_context(open_archive(archive))
                from camserve.tools.archive.trust import review  # noqa: PLC0415 brings torch, which --help does without

                review(archive, opened, trusted, progress.note)
                model = face_of(load_service(opened.directory))
            except (ToolError, ConfigError):
                raise
            except Exception as error:  # its model and its handler may raise anything
                raise ToolError(f"{archive} does not load: {in_one_line(error)}") from error
        if model is None:
            raise ToolError(f"the archive's handler is not camserve's, or an older one's; make it with {command_of('package')}")
        yield model


def _predict_all(
    model: Model, paths: Sequence[Path], collector: Collector, progress: Progress
) -> tuple[dict[Path, str], list[Path]]:
    """Predicts every picture; returns the error's message for each that was refused, and those that were measured, in order."""
    refused: dict[Path, str] = {}
    measured: list[Path] = []
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=progress.console, transient=True, disable=not progress.console.is_terminal) as bar:
        task = bar.add_task("", total=len(paths))
        for start in range(0, len(paths), BATCH):
            contents = {path: _read(path) for path in paths[start : start + BATCH]}
            refused.update(
                {path: f"cannot be read: {name_fault(read)}" for path, read in contents.items() if isinstance(read, OSError)}
            )
            given = {path: read for path, read in contents.items() if isinstance(read, bytes)}
            replies = model.run([Call(False, {}, {"body": body}) for body in given.values()])
            calls = list(given)
            measured += [calls[call] for call in collector.take_calls()]
            refused.update(
                {path: str(reply.body, "utf-8") for path, reply in zip(given, replies, strict=True) if reply.status != 200}
            )
            bar.advance(task, len(contents))
    return refused, measured


def _read(path: Path) -> bytes | OSError:
    try:
        return path.read_bytes()
    except OSError as error:
        return error


def describe_first(refused: Mapping[Path, str]) -> str:
    """Says which picture was refused first, and why."""
    for path, message in refused.items():
        return f"{path}: {message}"
    return "the maps of the others could not be made"


def print_reference(
    measurements: Measurements,
    reference: Reference,
    refused: Mapping[Path, str],
    labels: Labels | Mapping[int, str],
    progress: Progress,
) -> None:
    """Prints the statistics, the classes, and where the model looks for the most frequent ones."""
    if refused:
        progress.note(f"{len(refused)} pictures were refused and do not count: {describe_first(refused)}")
    silent = Counter(filter(None, measurements.reasons))
    if silent:
        progress.note("Maps that say nothing: " + ", ".join(f"{count} {reason}" for reason, count in silent.most_common()))
    table = Table("statistic", "5 %", "median", "95 %", "meaning", box=None)
    for name, meaning in STATISTICS.items():
        values = measurements.values[name][~np.isnan(measurements.values[name])]
        if len(values):
            table.add_row(name, *(f"{each:.4g}" for each in np.quantile(values, (0.05, 0.5, 0.95))), meaning)
    progress.console.print(table)
    classes = Counter(measurements.targets).most_common()
    named = ", ".join(f"{labels[index]} ({count})" for index, count in classes[:5])
    groups = len(set(reference.groups.values()))
    progress.note(f"{reference.images} pictures of {len(classes)} classes, in {groups} groups; most often {named}")
    once = int(reference.group_images[UNSEEN])
    if once:
        share = f"{once} of them ({once / reference.images:.1%}) are of classes that came up once"
        progress.note(f"{share}: expect as many of classes that this reference never saw; more pictures make them fewer")
    for index, attention in list(reference.attention.items())[:3]:
        progress.note(f"Where it looks for {labels[index]}, mean of {attention.images}:")
        for row in attention.grid / attention.grid.max():
            progress.note("  " + "".join(2 * SHADES[round(float(cell) * (len(SHADES) - 1))] for cell in row))
    if reference.images < ENOUGH:
        progress.note(f"With {ENOUGH} pictures, smaller drifts could be told from chance")
