"""Shows what was kept of watched predictions: the pictures behind an alert, with heatmaps, beside what is normal.

Writes one HTML file: each statistic's histogram by the reference and now, PSI and its threshold, and under each bin the pictures
that fell into it. Also exports what was kept, and deletes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camserve.core.errors import MissingPackageError, require
from camserve.core.text import find_nearest, join_names, show
from camserve.tools.console import Progress, ToolError, command_of, fail
from camserve.tools.watching.evidence.periods import AGAINST, read_period

if TYPE_CHECKING:
    from camserve.monitoring.evidence.stores import Store
    from camserve.tools.watching.evidence.sources import Evidence

IN_FILE = 300
"""Pictures in a file: about 15 kB each."""


def main(argv: Sequence[str] | None = None) -> int:
    """Does what `argv` asks for; returns the exit status."""
    options = parser().parse_args(argv)
    try:
        _run(options, Progress())
    except (ToolError, MissingPackageError, OSError) as error:
        return fail(error)
    return 0


def parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    made = argparse.ArgumentParser(prog=command_of("evidence"), description=__doc__, allow_abbrev=False)
    made.add_argument("place", metavar="DIR|URL", help="where evidence is kept: a folder, or a URL such as s3://bucket/prefix")
    made.add_argument("--model", metavar="NAME", help="of this model; needed where several have evidence")
    time = made.add_argument_group("which time", "how long ago (30m, 2h, 7d), or a time (2026-01-31T14:00Z), UTC")
    time.add_argument("--since", metavar="WHEN", help="from when on (1h)")
    time.add_argument("--until", default="now", metavar="WHEN", help="until when (%(default)s)")
    what = made.add_argument_group("what is shown first")
    what.add_argument("--stat", default="", metavar="NAME", help="a statistic (the one that drifted most)")
    what.add_argument("--class", default="", dest="label", metavar="LABEL", help="the pictures of one class (all)")
    what.add_argument("--alert", default="", metavar="NAME", help="the statistic of this alert that drifted most")
    what.add_argument(
        "--against",
        default="",
        choices=AGAINST,
        help="compare with as long before it, or a day or a week earlier (the reference)",
    )
    what.add_argument(
        *("--archive",), type=Path, action="append", default=[], metavar="FILE", dest="archives",
        help="the archive (.mar) that made the maps, for its reference and its examples",
    )  # fmt: skip
    what.add_argument(
        *("--prometheus",), default="", metavar="URL", help="count all watched predictions, as it did, in place of a sample"
    )  # fmt: skip
    results = made.add_argument_group("what is done")
    results.add_argument("--out", type=Path, metavar="FILE", help="where the page goes (out/evidence.html)")
    results.add_argument("--pictures", type=int, default=IN_FILE, metavar="N", help="most pictures in the file (%(default)s)")
    results.add_argument(
        "--parquet", type=Path, metavar="FILE", help="export all rows of the time, with maps, pictures and marks"
    )
    results.add_argument("--delete", nargs="*", metavar="ID", help="delete these, by their ids or those of their requests; "
                         "without ids all of the time, which --since then names (`ever`: from the beginning)")  # fmt: skip
    return made


def _run(options: argparse.Namespace, progress: Progress) -> None:
    from camserve.tools.watching.evidence.sources import open_evidence  # noqa: PLC0415 help does without

    evidence = open_evidence(options.place, options.archives, options.prometheus)
    if options.delete is not None:
        progress.note(_delete(evidence.store, options))
        return
    folder = choose_model(evidence, options.model)
    if options.parquet:
        require("exporting what was kept", "parquet", "pyarrow")
        from camserve.tools.watching.evidence.export import write_parquet  # noqa: PLC0415 only this needs pyarrow

        period = read_period(options.since or "1h", options.until)
        with progress.step("Export"):
            count = write_parquet(evidence.store, folder, period, options.parquet)
        progress.note(f"{options.parquet}: {count} rows, of {period}")
    if options.out or not options.parquet:
        _write_page(evidence, folder, options, progress)


def _write_page(evidence: Evidence, folder: str, options: argparse.Namespace, progress: Progress) -> None:
    from camserve.tools.watching.evidence.pages.findings import Asked  # noqa: PLC0415
    from camserve.tools.watching.evidence.pages.page import write_file  # noqa: PLC0415 brings OpenCV

    asked = Asked(read_period(options.since or "1h", options.until), options.against, options.stat, options.label, options.alert)
    asked.check()
    with progress.step("Read what was kept"):
        report = evidence.report(folder, asked, max(1, options.pictures))
    file = options.out or Path("out/evidence.html")
    write_file(report, file)
    progress.note(f"{report['model']}, {asked.period}: {report['kept']} kept, {len(report['cards'])} of them in the page")
    progress.note(f"  {say_what_drifted(report)}")
    progress.note(f"  {file}: open it in a browser")


def say_what_drifted(report: Mapping[str, Any]) -> str:
    """Says which statistics drifted, and that nothing did only where there were pictures enough to tell."""
    if drifted := [each["name"] for each in report["statistics"] if each["drifted"]]:
        return f"drifted: {', '.join(drifted)}"
    if report["why"]:
        return str(report["why"])
    if any(each["enough"] for each in report["statistics"]):
        return "nothing drifted"
    if report["counted"]:
        return "too few predictions to tell whether anything drifted"
    return "too few pictures were sampled to tell whether anything drifted; --prometheus URL counts all predictions"


def choose_model(evidence: Evidence, wanted: str | None) -> str:
    """Returns the folder of a model that has evidence.

    Raises:
        ToolError: there is none of that name, there are several and none is named, or nothing is kept here.
    """
    from camserve.monitoring.evidence.names import name_folder  # noqa: PLC0415 as above

    models = evidence.models()
    if not models:
        raise ToolError(f"{evidence.store.to}: no evidence is kept here; the key `evidence` of an archive turns it on")
    if wanted is None and len(models) == 1:
        return models[0]
    if wanted is None:
        raise ToolError(f"{evidence.store.to} has evidence of {join_names(models)}; say which with --model")
    if name_folder(wanted) not in models:
        near = find_nearest(wanted, models, 1)
        raise ToolError(f"no evidence of a model {show(wanted)}; {f'did you mean {near[0]}?' if near else join_names(models)}")
    return name_folder(wanted)


def _delete(store: Store, options: argparse.Namespace) -> str:
    from camserve.monitoring.evidence.reading import delete_entries, find_entries, list_entries  # noqa: PLC0415 as above

    if options.delete:
        found = {wanted: find_entries(store, wanted, options.model) for wanted in options.delete}
        if missing := [wanted for wanted, entries in found.items() if not entries]:
            raise ToolError(f"nothing is deleted: nothing was kept of {join_names(map(show, missing))}")
        entries = [entry for several in found.values() for entry in several]
    elif options.since is None:
        raise ToolError("nothing is deleted: --delete without ids deletes all of a time; say which with --since (`ever`: all)")
    else:
        period = read_period(options.since, options.until)
        entries = list_entries(store, options.model, period.since, period.until)
    return f"{delete_entries(store, entries)} deleted"
