"""Compares two archives on the same pictures: do they predict the same, and look at the same places?

Heatmaps are compared for the class that the first archive predicts; the second is asked for the class of the same label, or of
the same index where one of them has no labels. Both archives run with the camserve of this tool, not with the copies that they
hold: what is compared is their models, settings and own handlers. Exit status 0 where every --max-... limit is kept, 1 where
one is not, 2 where nothing could be compared.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from camserve.tools.client.annotations import ABOUT, Annotations
from camserve.tools.client.sources import AnswerSource, load, unpack
from camserve.tools.console import TRUST, Progress, ToolError, command_of, fail
from camserve.tools.reports.comparison.classes import Classes
from camserve.tools.reports.comparison.limits import FAILED, LIMITS
from camserve.tools.reports.comparison.outcome import Outcome, PicturePair, compare_all, summarise
from camserve.tools.reports.comparison.page import draw_cards, write_page
from camserve.tools.reports.pictures import find_rows, list_pictures
from camserve.tools.watching.evidence import VERDICTS


def main(argv: Sequence[str] | None = None) -> int:
    """Compares what `argv` names; returns the exit status."""
    options = parser().parse_args(argv)
    progress = Progress()
    try:
        summary, outcome = _compare(options, progress)
    except (ToolError, OSError) as error:
        fail(error)
        return 2
    _print(summary, outcome, progress)
    for file, content in ((options.html, "the report"), (options.json, "the figures")):
        if file:
            progress.note(f"  {file}: {content}")
    return 1 if summary["exceeded"] else 0


def parser() -> argparse.ArgumentParser:
    """Makes the command line; it has a `--max-...` for each of `LIMITS`."""
    made = argparse.ArgumentParser(prog=command_of("compare"), description=__doc__, allow_abbrev=False)
    made.add_argument("first", type=Path, metavar="A.mar", help="the archive that is served today")
    made.add_argument("second", type=Path, metavar="B.mar", help="the one that is to replace it")
    text = (
        f"pictures, or folders of them; or what {command_of('explain_dataset')} wrote of them with A.mar, and perhaps after it "
        "what it wrote with B.mar (--input the first, --target-column label)"
    )
    made.add_argument("images", nargs="+", metavar="IMAGES", help=text)
    made.add_argument(
        "--inside-file",
        type=Path,
        metavar="FILE",
        help=f"areas that --max-outside is about: {ABOUT}; rows have their own (--inside-column)",
    )
    made.add_argument("--trust", action="store_true", help=TRUST)
    made.add_argument(
        *("--marked",), choices=VERDICTS, help="IMAGES is where evidence is kept (a folder or URL): its pictures that were "
        "marked so; of those marked wrong, --max-same bounds how many the second still looks at in the same way"
    )  # fmt: skip
    results = made.add_argument_group("what is written")
    results.add_argument("--html", type=Path, default=Path("out/compare.html"), metavar="FILE", help="the report (%(default)s)")
    results.add_argument("--worst", type=int, default=12, metavar="N", help="how many pictures the report shows (%(default)s)")
    results.add_argument("--json", type=Path, metavar="FILE", help="where the figures go, for a program to read")
    limits = made.add_argument_group(
        "limits, 0 to 1; beyond one of them the exit status is 1",
        "Pictures that the first does not answer count nowhere. Where only the second's heatmap says nothing (zero, constant or "
        "not finite), it counts as the worst: rank correlation 0, overlap 0, shift 1; and as one that looks at the same thing.",
    )
    for limit in LIMITS:
        default = "; 0 where it is not given and another limit is" if limit.name == FAILED else ""
        limits.add_argument(f"--max-{limit.name}", type=_share, metavar="SHARE", help=limit.meaning + default)
    return made


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def limits_of(options: argparse.Namespace) -> dict[str, float]:
    """Returns the limits that were given, by their names."""
    given = {limit.name: getattr(options, f"max_{limit.name}".replace("-", "_")) for limit in LIMITS}
    return {name: value for name, value in given.items() if value is not None}


def _compare(options: argparse.Namespace, progress: Progress) -> tuple[dict[str, Any], Outcome]:
    """Compares the archives, and writes the report and the figures."""
    folders = [] if options.marked else find_rows(options.images, most=2)
    if options.inside_file and folders:
        raise ToolError("--inside-file: rows say themselves which area was asked about; explain them with --inside-column")
    if options.max_outside is not None and not (folders or options.inside_file):
        raise ToolError("--max-outside: of which areas? Give --inside-file")
    paths = (options.first, options.second)
    with ExitStack() as stack:
        marked = Path(stack.enter_context(TemporaryDirectory())) if options.marked else Path()
        images = [] if folders else _list_images(options, marked, progress)
        archives = [stack.enter_context(unpack(path)) for path in paths]  # what is no archive is told before one loads
        first, second = (load(*each, options.trust, progress.note, checks=False) for each in zip(paths, archives, strict=True))
        classes = Classes(first.labels, second.labels)
        if folders:
            from camserve.tools.reports.comparison.rows import RowPairs  # noqa: PLC0415 only this needs pyarrow

            pairs = RowPairs(paths, folders, second)
            outcome = compare_all(pairs, pairs.count, classes)
        else:
            outcome = compare_all(_pair(images, marked, (first, second), options.inside_file), len(images), classes)
        if not outcome.rows:
            raise ToolError(f"no picture could be compared; {outcome.explain_first()}")
        summary = summarise(
            _names((first, second), paths),
            outcome,
            "; ".join(filter(None, (classes.describe(), outcome.describe_kinds()))),
            limits_of(options),
        )
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(summary, indent=2))
        worst = outcome.rank_worst()[: options.worst]
        read = pairs.read_pictures({row.file for row in worst}).get if folders else partial(_read, marked)
        write_page(options.html, summary, draw_cards((first, second), classes, worst, read))
    return summary, outcome


def _list_images(options: argparse.Namespace, marked: Path, progress: Progress) -> list[str]:
    """Lists the pictures that are named; those that were marked are copied into the folder `marked`."""
    if not options.marked:
        return [str(path) for path in list_pictures(map(Path, options.images), progress.note)]
    if len(options.images) > 1:
        raise ToolError(f"--marked: expected one place where evidence is kept, got {len(options.images)}")
    from camserve.tools.watching.evidence.sources import copy_marked  # noqa: PLC0415 only this needs it

    return copy_marked(options.images[0], options.marked, None, marked, progress.note)


def _pair(
    images: Sequence[str], folder: Path, sources: tuple[AnswerSource, AnswerSource], inside: Path | None
) -> Iterator[PicturePair]:
    """Pairs the answers for each picture, with the areas that a file names."""
    areas = Annotations(inside).match(map(Path, images)) if inside else {}
    return (PicturePair(name, folder / name, *sources, areas.get(Path(name))) for name in images)


def _read(folder: Path, file: str) -> bytes | None:
    try:
        return (folder / file).read_bytes()
    except OSError:
        return None


def _names(sources: Sequence[AnswerSource], paths: Sequence[Path]) -> list[str]:
    """Names both archives; those of one name with their files."""
    names = [source.name for source in sources]
    if names[0] != names[1]:
        return names
    return [f"{name} ({path})" for name, path in zip(names, paths, strict=True)]


def _print(summary: Mapping[str, Any], outcome: Outcome, progress: Progress) -> None:
    table = Table("figure", "value", "limit", "", box=None, padding=(0, 3, 0, 0))
    for limit in LIMITS:
        value, bound = summary["figures"][limit.name], summary["limits"].get(limit.name)
        verdict = "" if bound is None else "beyond its limit" if limit.name in summary["exceeded"] else "kept"
        table.add_row(limit.meaning, "-" if value is None else f"{value:.3f}", "" if bound is None else f"{bound:g}", verdict)
    progress.console.print(table)
    if summary["classes"]:
        progress.note(summary["classes"])
    counts = f"{len(outcome.failed)} are not answered by the second, {len(outcome.skipped)} not by the first"
    progress.note(f"{len(outcome.rows)} pictures compared; {counts}")
    if outcome.failed or outcome.skipped:
        progress.note(f"  {outcome.explain_first()}")


if __name__ == "__main__":
    raise SystemExit(main())
