"""Measures good pictures with an archive, and writes into it what is normal, so that drift from it can be seen."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Sequence
from pathlib import Path

from camserve.core.errors import ConfigError
from camserve.monitoring.reference import EXAMPLES, FILE, Reference
from camserve.tools.archive.rewriting import check_rewritable, name_fault, put_file
from camserve.tools.console import TRUST, Progress, ToolError, command_of, fail
from camserve.tools.reports.pictures import SUFFIXES, find_rows, list_pictures
from camserve.tools.watching.measuring import ENOUGH, LEAST, measure_archive

ROOM = 4_000_000
"""Bytes that a reference hardly exceeds."""
EXAMPLES_ROOM = 30_000_000
"""Bytes that its examples hardly exceed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the reference that `argv` asks for; returns the exit status."""
    options = parser().parse_args(argv)
    try:
        images, rows = [Path(each) for each in options.images], find_rows(options.images)
        if rows and options.examples:
            raise ToolError("--examples needs the pictures themselves, not rows of a data set")
        make(options.archive, images, Progress(), options.trust, *rows, examples=options.examples)
    except (ToolError, ConfigError, OSError) as error:
        return fail(error)
    return 0


def parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    made = argparse.ArgumentParser(prog=command_of("reference"), description=__doc__, allow_abbrev=False)
    made.add_argument(
        "--archive", type=Path, required=True, metavar="FILE", help="the archive (.mar); it is rewritten in one step"
    )
    made.add_argument("--trust", action="store_true", help=TRUST)
    made.add_argument(
        *("--examples",), type=int, default=0, metavar="N", choices=range(11),
        help="also keep small copies of up to N of the pictures in each bin of each class group, to be looked at beside what is "
        "kept in service (evidence): in the archive, 300 at most",
    )  # fmt: skip
    text = (
        "pictures as the model is to see them in service, in their usual mixture: files, or folders with all in them; or what "
        f"{command_of('explain_dataset')} wrote of them with this archive"
    )
    made.add_argument("images", nargs="+", metavar="IMAGES", help=f"{text}; {LEAST} at least, better {ENOUGH}")
    return made


def make(
    archive: Path,
    images: Sequence[Path],
    progress: Progress,
    trusted: bool = False,
    rows: str | None = None,
    *,
    examples: int = 0,
) -> Reference:
    """Measures the pictures, writes the reference into the archive, and prints what is normal.

    Args:
        rows: a folder of `explain_dataset`, whose rows are taken in place of pictures.
        examples: how many pictures of each bin and class group are kept beside it.

    Raises:
        ToolError: no archive, one that does not load or cannot be rewritten, or too few pictures that the model can read.
    """
    paths = list(list_pictures(images, progress.note)) if rows is None else []
    if rows is None and len(paths) < LEAST:
        raise ToolError(f"expected at least {LEAST} pictures ({', '.join(SUFFIXES)}), found {len(paths)}")
    check_rewritable(archive, FILE, ROOM + (EXAMPLES_ROOM if examples else 0))
    kept = ""
    if rows is None:
        reference, kept = measure_archive(archive, paths, progress, trusted, examples)
    else:
        from camserve.tools.watching.rows import measure_rows  # noqa: PLC0415 only this needs pyarrow

        reference = measure_rows(archive, rows, progress)
    with progress.step(f"Write {FILE} into the archive"):
        try:
            put_file(archive, FILE, reference.to_json())
            if kept:
                put_file(archive, EXAMPLES, kept)
        except (OSError, zipfile.BadZipFile) as error:
            raise ToolError(f"{archive} cannot be rewritten, and is as it was: {name_fault(error)}") from error
    progress.note(f"{archive} now holds the reference; serve it anew for Prometheus to see it")
    return reference
