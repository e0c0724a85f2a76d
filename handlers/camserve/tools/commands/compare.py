"""Compares two archives on the same pictures: do they predict the same, and look at the same places?

Heatmaps are compared for the class that the first archive predicts; the second is asked for the class of the same label, or of
the same index where one of them has no labels. Both archives run with the camserve of this tool, not with the copies that they
hold: what is compared is their models, settings and own handlers. Exit status 0 where every --max-... limit is kept, 1 where
one is not, 2 where nothing could be compared.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track
from rich.table import Table

from camserve.inspector.html import fill, write_policy, write_script_json
from camserve.tools.client.client import CamserveError
from camserve.tools.client.result import read_result
from camserve.tools.client.sources import AnswerSource, load, unpack
from camserve.tools.console import Progress, ToolError, command_of, fail
from camserve.tools.reports.agreement import FAILED, LIMITS, Agreement, Classes, Run, compared
from camserve.tools.reports.pictures import list_pictures, thumbnail

HERE = Path(__file__).resolve().parents[1] / "reports"
THUMB = 420
"""Longest side of the overlays in the report, in pixels."""


@dataclass(frozen=True)
class Outcome:
    """What came of the pictures: the agreement on each, or why the second archive (`failed`) or the first does not answer."""

    rows: list[Agreement] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    """Compares what `argv` names; the exit status."""
    options = parser().parse_args(argv)
    progress = Progress()
    try:
        images = list(list_pictures(options.images))
        with ExitStack() as stack:
            paths = (options.first, options.second)
            opened = [stack.enter_context(unpack(path)) for path in paths]  # what is no archive is told before one loads
            importlib.import_module("gradcam_handler")  # ours is kept; otherwise the first archive's would serve both
            sources = [load(*each) for each in zip(paths, opened, strict=True)]
            classes = Classes(*(source.labels for source in sources))
            outcome = _asked(sources, classes, images)
            if not outcome.rows:
                raise ToolError(f"no picture could be compared; {_first(outcome)}")
            told = report(options, sources, outcome, classes.told())
            _write(options, told, _overlays(sources, classes, _worst(outcome.rows)[: options.worst]))
    except (ToolError, OSError) as error:
        fail(error)
        return 2
    _say(told, outcome, progress)
    for file, what in ((options.html, "the report"), (options.json, "the figures")):
        if file:
            progress.note(f"  {file}: {what}")
    return 1 if told["exceeded"] else 0


def _first(outcome: Outcome) -> str:
    """The first picture that has no row, and why."""
    for who, those in (("second", outcome.failed), ("first", outcome.skipped)):
        for file, why in those.items():
            return f"for {file} the {who} says: {why}"
    return "there are none"


def parser() -> argparse.ArgumentParser:
    """The command line; a `--max-...` for each of `agreement.LIMITS`."""
    made = argparse.ArgumentParser(prog=command_of("compare"), description=__doc__, allow_abbrev=False)
    made.add_argument("first", type=Path, metavar="A.mar", help="the archive that is served today")
    made.add_argument("second", type=Path, metavar="B.mar", help="the one that is to replace it")
    made.add_argument("images", nargs="+", type=Path, metavar="IMAGES", help="pictures, or folders of them")
    made.add_argument("--json", type=Path, metavar="FILE", help="where the figures go, for a program to read")
    made.add_argument("--html", type=Path, default=Path("out/compare.html"), metavar="FILE", help="the report (%(default)s)")
    made.add_argument("--worst", type=int, default=12, metavar="N", help="how many pictures the report shows (%(default)s)")
    limits = made.add_argument_group(
        "limits, 0 to 1; beyond one of them the exit status is 1",
        "Pictures that the first does not answer count nowhere. Where only the second's heatmap says nothing (zero, constant or "
        "not finite), it counts as the worst: rank correlation 0, overlap 0, shift 1.",
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


def _asked(sources: Sequence[AnswerSource], classes: Classes, paths: Sequence[Path]) -> Outcome:
    """Asks both for every picture."""
    outcome = Outcome()
    first, second = sources
    for path in track(paths, description="comparing", transient=True):
        try:
            picture = path.read_bytes()
            one = read_result(first.ask(picture, {}))
        except (CamserveError, OSError) as error:
            outcome.skipped[str(path)] = str(error)
            continue
        try:
            other = read_result(second.ask(picture, {"target": classes.second(one.explanations[0].target)}))
        except CamserveError as error:
            outcome.failed[str(path)] = str(error)
        else:
            outcome.rows.append(compared(str(path), one, other))
    return outcome


def _worst(rows: Sequence[Agreement]) -> list[Agreement]:
    """Those first on which the classes differ, then those on which only the second's heatmap says nothing."""
    return sorted(rows, key=lambda row: (not row.changed, not row.silent, 1 if row.overlap is None else row.overlap))


def report(options: argparse.Namespace, sources: Sequence[AnswerSource], outcome: Outcome, classes: str) -> dict[str, Any]:
    """The run's figures: `figures` by limit's name, `limits` as asked for, and the names of those that are `exceeded`.

    `failed` are the pictures that the second does not answer, and `skipped` those that the first does not, with the reason.
    """
    run = Run(outcome.rows, len(outcome.failed))
    figures = {limit.name: limit.value(run) for limit in LIMITS}
    given = {limit.name: getattr(options, f"max_{limit.name}".replace("-", "_")) for limit in LIMITS}
    limits = {name: value for name, value in given.items() if value is not None}
    if limits:
        limits = {FAILED: 0.0, **limits}
    names = [source.name for source in sources]
    if names[0] == names[1]:
        names = [f"{name} ({path})" for name, path in zip(names, (options.first, options.second), strict=True)]
    return {
        "first": names[0],
        "second": names[1],
        "classes": classes,
        "pictures": len(outcome.rows),
        "failed": outcome.failed,
        "skipped": outcome.skipped,
        "figures": figures,
        "limits": limits,
        # A figure that cannot be measured does not keep its limit.
        "exceeded": [name for name, value in limits.items() if not _kept(figures[name], value)],
        "rows": [asdict(row) for row in outcome.rows],
    }


def _kept(figure: float | None, limit: float) -> bool:
    return figure is not None and figure <= limit


def _write(options: argparse.Namespace, told: Mapping[str, Any], cards: Sequence[Mapping[str, Any]]) -> None:
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(told, indent=2))
    style = "".join((HERE / name).read_text("utf-8") for name in ("gallery.css", "compare.css"))
    script = (HERE / "compare.js").read_text("utf-8")
    summary = {name: value for name, value in told.items() if name != "rows"}
    summary["meanings"] = {limit.name: limit.meaning for limit in LIMITS}
    parts = {
        "policy": write_policy(style, [script]),
        "style": style,
        "told": write_script_json({**summary, "cards": cards}),
        "script": script,
    }
    options.html.parent.mkdir(parents=True, exist_ok=True)
    options.html.write_text(fill((HERE / "compare.html").read_text("utf-8"), parts), "utf-8")


def _overlays(sources: Sequence[AnswerSource], classes: Classes, rows: Sequence[Agreement]) -> list[dict[str, Any]]:
    """The rows, each with both archives' overlays of the compared class as data URLs; None where one cannot be drawn."""
    cards = []
    for row in rows:
        picture = Path(row.file).read_bytes()
        targets = (row.index, classes.second(row.index))
        drawn = [_overlay(source, picture, target) for source, target in zip(sources, targets, strict=True)]
        cards.append({**asdict(row), "pictures": drawn})
    return cards


def _overlay(source: AnswerSource, picture: bytes, target: int) -> str | None:
    try:
        url = source.ask(picture, {"overlay": True, "target": target})["explanations"][0]["overlay"]
    except CamserveError:  # the whole picture may be more than an answer may hold
        return None
    return thumbnail(io.BytesIO(base64.b64decode(url.partition(",")[2])), THUMB)


def _say(told: Mapping[str, Any], outcome: Outcome, progress: Progress) -> None:
    table = Table("figure", "value", "limit", "", box=None, padding=(0, 3, 0, 0))
    for limit in LIMITS:
        value, bound = told["figures"][limit.name], told["limits"].get(limit.name)
        verdict = "" if bound is None else "beyond its limit" if limit.name in told["exceeded"] else "kept"
        table.add_row(limit.meaning, "-" if value is None else f"{value:.3f}", "" if bound is None else f"{bound:g}", verdict)
    progress.console.print(table)
    if told["classes"]:
        progress.note(told["classes"])
    counts = f"{len(outcome.failed)} are not answered by the second, {len(outcome.skipped)} not by the first"
    progress.note(f"{len(outcome.rows)} pictures compared; {counts}")
    if outcome.failed or outcome.skipped:
        progress.note(f"  {_first(outcome)}")


if __name__ == "__main__":
    raise SystemExit(main())
