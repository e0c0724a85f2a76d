"""Makes a reference of a whole data set: of the statistics that `explain_dataset` wrote beside each picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from camserve.monitoring.measure import Measurements
from camserve.monitoring.reference import EXAMPLES, FILE, Provenance, Reference
from camserve.monitoring.statistics import STATISTICS
from camserve.tools.archive.archive import digest_archive, open_archive
from camserve.tools.console import Progress, ToolError
from camserve.tools.reports.dataset.results import Results, open_finished
from camserve.tools.reports.dataset.rows import map_of
from camserve.tools.watching.baseline import Floats, build_reference
from camserve.tools.watching.measuring import LEAST, describe_first, print_reference

MAPS = ("status", "statistics", "heatmap", "heatmap_shape", "range")


def open_rows_of(archive: Path, named: str) -> tuple[Results, dict[str, Any]]:
    """Open the folder of a job, and its manifest.

    Raises:
        ToolError: the job has not ended, or it was another archive's.
    """
    results, manifest = open_finished(named)
    with open_archive(archive) as opened:
        digest = digest_archive(opened, without=(FILE, EXAMPLES))
    if manifest["archive"] != digest:
        raise ToolError(
            f"{named}: its rows are of {manifest['model']} {manifest['version']} ({manifest['archive'][:19]}), and {archive} is "
            f"another archive ({digest[:19]}); explain the pictures with this one"
        )
    return results, manifest


def measure_rows(archive: Path, named: str, progress: Progress) -> Reference:
    """Make the reference of an archive from the rows of a data set, and print what is normal. No model runs.

    Raises:
        ToolError: the rows are not of this archive, hold no statistics, or are too few.
    """
    results, manifest = open_rows_of(archive, named)
    if not manifest["provenance"]:
        raise ToolError(
            f"{named}: its rows hold no statistics: --no-statistics was given, or the archive's camserve is too old to measure"
        )
    with progress.step("Read the rows"):
        measurements, refused, labels = _read_statistics(results)
        count = len(measurements.targets)
        if count < LEAST:
            why = describe_first(refused)
            raise ToolError(f"the model could read {count} of {manifest['pictures']} pictures, {LEAST} are needed; {why}")
        reference = build_reference(measurements, _read_shares(results), Provenance(**manifest["provenance"]))
    print_reference(measurements, reference, refused, labels, progress)
    return reference


def _read_statistics(results: Results) -> tuple[Measurements, dict[Path, str], dict[int, str]]:
    """Read the statistics of all pictures, why those without have none, and the labels of the predicted classes."""
    parts: list[Measurements] = []
    refused: dict[Path, str] = {}
    labels: dict[int, str] = {}
    for table in results.batches(["path", "status", "error", "message", "classes", "statistics"]):
        measured = compute.is_valid(table["statistics"])
        for row in table.filter(compute.invert(measured)).select(["path", "error", "message"]).to_pylist():
            known = row["error"] is not None
            refused[Path(row["path"])] = f"{row['error']}: {row['message']}" if known else "its maps could not be made"
        parts.append(_measurements_of(table.filter(measured)["statistics"].combine_chunks()))
        first = compute.list_element(table.filter(measured)["classes"].combine_chunks(), 0)
        indices, names = (compute.struct_field(first, name).to_pylist() for name in ("index", "label"))
        labels.update(zip(indices, names, strict=True))
    return (
        Measurements(
            {name: np.concatenate([part.values[name] for part in parts]) for name in STATISTICS},
            [target for part in parts for target in part.targets],
            [reason for part in parts for reason in part.reasons],
        ),
        refused,
        labels,
    )


def _measurements_of(column: pa.StructArray) -> Measurements:
    values = {name: _floats(compute.struct_field(column, name)) for name in STATISTICS}
    targets, reasons = (compute.struct_field(column, name).to_pylist() for name in ("target", "reason"))
    return Measurements(values, targets, reasons)


def _floats(column: pa.Array) -> Floats:
    values: Floats = column.to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def _read_shares(results: Results) -> Iterator[Floats | None]:
    """Read the map of each picture that was measured, divided by its sum; None where it says nothing."""
    for table in results.batches(MAPS):
        for row in table.filter(compute.is_valid(table["statistics"])).to_pylist():
            whole = map_of(row)
            yield None if whole is None else whole.astype(np.float64) / whole.astype(np.float64).sum()
