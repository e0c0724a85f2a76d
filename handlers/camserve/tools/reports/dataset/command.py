"""Explains a whole data set into Parquet: one row for each picture, by as many workers as a machine or a cluster of Ray has.

A picture that cannot be read or explained is a row with its error. Killed at whatever moment and run again, the job goes on
where it stopped: no picture is lost, and none is there twice. Rows that failed for no fault of the picture (unreadable files,
500, 503, 507) are tried again; while there are any, the exit status is 1. It is refused where the archive, the options or the
list of pictures changed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from camserve.core.errors import ConfigError, require
from camserve.tools.commands.explain import add_options, read_options
from camserve.tools.console import TRUST, Progress, ToolError, command_of, fail

if TYPE_CHECKING:  # torch takes seconds, and the command's help does without it
    from camserve.tools.reports.dataset.job import Asked, Outcome

EVERY = 60
"""Seconds between two lines of progress where there is no terminal."""


def main(argv: Sequence[str] | None = None) -> int:
    """Explains what `argv` names; 0 where every picture has its verdict, 1 where some are to be tried again, or it stopped."""
    options = parser().parse_args(argv)
    progress = Progress()
    if not options.without_ray:
        require("a job on Ray", "ray", "ray")
    from camserve.tools.reports.dataset.job import run  # noqa: PLC0415
    from camserve.tools.reports.dataset.rows import is_final  # noqa: PLC0415

    try:
        with Shown(progress) as shown:
            outcome = run(_asked(options), progress, shown.tell)
    except (ToolError, ConfigError, OSError) as error:
        return fail(error)
    report(outcome, options.output, progress)
    return 1 if any(not is_final(status) for status, _ in outcome.tally.faults) else 0


def parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    made = argparse.ArgumentParser(prog=command_of("explain_dataset"), description=__doc__, allow_abbrev=False)
    made.add_argument("--archive", type=Path, required=True, metavar="FILE", help="the archive (.mar)")
    made.add_argument("--trust", action="store_true", help=TRUST)
    given = made.add_argument_group("what is explained")
    given.add_argument(
        "--input",
        required=True,
        metavar="WHAT",
        help="a folder (with all below it), a glob, or Parquet files with a column of paths or of pictures; on this machine, "
        "or as s3://, gs://, abfs://, hdfs://, or what else fsspec opens",
    )
    given.add_argument("--path-column", metavar="NAME", help="of a Parquet input: the pictures' paths, or names (path)")
    given.add_argument(
        "--picture-column", metavar="NAME", help="of a Parquet input: the pictures themselves, as files (bytes, image)"
    )
    given.add_argument(
        "--target-column", metavar="NAME", help="of a Parquet input: what each picture is explained for, labels or indices"
    )
    given.add_argument(
        "--inside-column",
        metavar="NAME",
        help="of a Parquet input: the area that each picture is asked about, [left, top, right, bottom] in its pixels, or masks "
        "(PNG files); what of each map lies inside is the column inside",
    )
    add_options(made.add_argument_group("what is asked"))
    written = made.add_argument_group("what is written")
    written.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="a folder, or a URI as above; a cluster's nodes must all reach it by this name",
    )
    written.add_argument(
        "--no-statistics", action="store_true", help="do not measure what monitoring measures: no reference then"
    )
    where = made.add_argument_group("who does it")
    where.add_argument("--workers", type=_count, metavar="N", help="each loads the model once (as many as there are cores for)")
    where.add_argument("--cores", type=_count, default=1, metavar="N", help="of each worker (%(default)s)")
    where.add_argument("--gpu", action="store_true", help="a GPU for each worker")
    where.add_argument("--address", metavar="ADDRESS", help="of a cluster of Ray, or auto; else Ray is started on this machine")
    where.add_argument("--without-ray", action="store_true", help="on this machine, without Ray")
    _add_limits(made.add_argument_group("limits"))
    return made


def _add_limits(limits: Any) -> None:
    limits.add_argument(
        "--chunk",
        type=_count,
        default=256,
        metavar="N",
        help="pictures that are written at once, and lost at most when killed (%(default)s)",
    )
    limits.add_argument(
        "--batch", type=_count, metavar="N", help="pictures that the model gets at once (the archive's batchSize)"
    )
    limits.add_argument(
        "--max-request-size", type=_count, default=32 * 2**20, metavar="BYTES", help="of a picture's file (%(default)s)"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _asked(options: argparse.Namespace) -> Asked:
    """Reads the command line.

    Raises:
        ToolError: flags that exclude each other.
    """
    from camserve.tools.reports.dataset.engine import Workers  # noqa: PLC0415
    from camserve.tools.reports.dataset.inputs import Columns  # noqa: PLC0415
    from camserve.tools.reports.dataset.job import Asked  # noqa: PLC0415

    if options.without_ray and options.address:
        raise ToolError("--without-ray: no cluster is asked; leave --address out")
    request = read_options(options)
    if options.target_column and {"target", "top_k"} & request.keys():
        raise ToolError("--target-column says what each picture is explained for; leave --target and --top-k out")
    if options.inside_column and options.inside:
        raise ToolError("--inside-column says which area each picture is asked about; leave --inside out")
    return Asked(
        archive=options.archive,
        trust=options.trust,
        input=options.input,
        columns=Columns(options.path_column, options.picture_column, options.target_column, options.inside_column),
        output=options.output,
        options=request,
        chunk=options.chunk,
        batch=options.batch,
        most=options.max_request_size,
        statistics=not options.no_statistics,
        workers=Workers(options.workers, options.cores, options.gpu, options.address, not options.without_ray),
    )


class Shown:
    """Shows how far the job is: a bar on a terminal, else a line now and then."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        columns = (TextColumn("Explain"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=progress.console, disable=not progress.console.is_terminal)
        self._told = time.monotonic()

    def __enter__(self) -> Shown:
        self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tell(self, done: int, pictures: int) -> None:
        """Shows how many pictures are done; once all are, the terminal is the next step's."""
        self._bar.start()
        self._bar.update(self._task, completed=done, total=pictures)
        if done == pictures:
            self._bar.stop()
        if self._bar.disable and time.monotonic() - self._told > EVERY:
            self._told = time.monotonic()
            self._progress.note(f"{done} of {pictures} pictures")


def report(outcome: Outcome, output: str, progress: Progress) -> None:
    """Says how many were explained, how fast, why others failed, and where the rows are."""
    tally = outcome.tally
    progress.note(f"{tally.explained} explained, {outcome.before} done before, {tally.failed} failed")
    if outcome.seconds:
        progress.note(
            f"  {(tally.explained + tally.failed) / outcome.seconds:.1f} pictures a second, with the start of the workers"
        )
    for (status, kind), (times, first, message) in sorted(tally.faults.items(), key=lambda each: -each[1][0]):
        named = f"{kind}: {message}" if status is None else f"{status} {kind}: {message}"
        progress.note(f"  failed, {times} times, first {first}: {named}")
    progress.note(f"  {output}: one row a picture")
