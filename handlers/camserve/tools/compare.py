"""Compares two archives on the same pictures: do they predict the same, and look at the same places?

Heatmaps are compared for the class that the first archive predicts. Exit status 0 where every --max-... limit is kept, 1 where
one is not, 2 where nothing could be compared.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track
from rich.table import Table

from camserve.document import fill, policy, script_json
from camserve.tools.agreement import LIMITS, Agreement, compared
from camserve.tools.askers import Asker, in_process
from camserve.tools.client import CamserveError
from camserve.tools.console import Progress, ToolError, command_of, fail
from camserve.tools.reference import pictures
from camserve.tools.result import result_of

HERE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    """Compares what `argv` names; the exit status."""
    options = parser().parse_args(argv)
    progress = Progress()
    try:
        paths = list(pictures(options.images))
        with ExitStack() as stack:
            askers = [stack.enter_context(in_process(archive)) for archive in (options.first, options.second)]
            rows, failed = _rows(askers[0], askers[1], paths)
            if not rows:
                raise ToolError(f"no picture could be compared; the first said: {next(iter(failed.values()), 'nothing')}")
            told = report(options, askers, rows, failed)
            worst = sorted(rows, key=lambda row: (not row.changed, row.overlap if row.overlap is not None else -1))
            _write(options, told, worst[: options.worst], askers, {str(path): path for path in paths})
    except (ToolError, OSError) as error:
        fail(error)
        return 2
    _say(told, progress)
    return 1 if told["exceeded"] else 0


def parser() -> argparse.ArgumentParser:
    """The command line; a `--max-...` for each of `agreement.LIMITS`."""
    made = argparse.ArgumentParser(prog=command_of("compare"), description=__doc__, allow_abbrev=False)
    made.add_argument("first", type=Path, metavar="A.mar", help="the archive that is served today")
    made.add_argument("second", type=Path, metavar="B.mar", help="the one that is to replace it")
    made.add_argument("images", nargs="+", type=Path, metavar="IMAGES", help="pictures, or folders of them")
    made.add_argument("--json", type=Path, metavar="FILE", help="where the figures go, for a program to read")
    made.add_argument("--html", type=Path, default=Path("out/compare.html"), metavar="FILE", help="the report (%(default)s)")
    made.add_argument("--worst", type=int, default=12, metavar="N", help="how many pictures the report shows (%(default)s)")
    limits = made.add_argument_group("limits, 0 to 1; beyond one of them the exit status is 1")
    for limit in LIMITS:
        limits.add_argument(f"--max-{limit.name}", type=_share, metavar="SHARE", help=limit.meaning)
    return made


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def _rows(first: Asker, second: Asker, paths: Sequence[Path]) -> tuple[list[Agreement], dict[str, str]]:
    """The agreement on each picture, and for each that has none why."""
    rows, failed = [], {}
    for path in track(paths, description="comparing", transient=True):
        picture = path.read_bytes()
        try:
            one = result_of(first.ask(picture, {}))
            other = result_of(second.ask(picture, {"target": one.explanations[0].target}))
        except CamserveError as error:
            failed[str(path)] = str(error)
        else:
            rows.append(compared(str(path), one, other))
    return rows, failed


def report(
    options: argparse.Namespace, askers: Sequence[Asker], rows: Sequence[Agreement], failed: Mapping[str, str]
) -> dict[str, Any]:
    """The run's figures: `figures` by limit's name, `limits` as asked for, and the names of those that are `exceeded`."""
    figures = {limit.name: limit.value(rows) for limit in LIMITS}
    limits = {limit.name: getattr(options, f"max_{limit.name}".replace("-", "_")) for limit in LIMITS}
    names = [asker.name for asker in askers]
    if names[0] == names[1]:
        names = [f"{name} ({path})" for name, path in zip(names, (options.first, options.second), strict=True)]
    return {
        "first": names[0],
        "second": names[1],
        "pictures": len(rows),
        "failed": dict(failed),
        "figures": figures,
        "limits": {name: value for name, value in limits.items() if value is not None},
        # A figure that cannot be measured does not keep its limit.
        "exceeded": [name for name, value in limits.items() if value is not None and not _kept(figures[name], value)],
        "rows": [asdict(row) for row in rows],
    }


def _kept(figure: float | None, limit: float) -> bool:
    return figure is not None and figure <= limit


def _write(
    options: argparse.Namespace,
    told: Mapping[str, Any],
    worst: Sequence[Agreement],
    askers: Sequence[Asker],
    paths: Mapping[str, Path],
) -> None:
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(told, indent=2))
    cards = [{**asdict(row), "pictures": _overlays(askers, paths[row.file].read_bytes())} for row in worst]
    style = "".join((HERE / name).read_text("utf-8") for name in ("gallery.css", "compare.css"))
    script = (HERE / "compare.js").read_text("utf-8")
    summary = {name: value for name, value in told.items() if name != "rows"}
    summary["meanings"] = {limit.name: limit.meaning for limit in LIMITS}
    parts = {
        "policy": policy(style, [script]),
        "style": style,
        "told": script_json({**summary, "cards": cards}),
        "script": script,
    }
    options.html.parent.mkdir(parents=True, exist_ok=True)
    options.html.write_text(fill((HERE / "compare.html").read_text("utf-8"), parts), "utf-8")


def _overlays(askers: Sequence[Asker], picture: bytes) -> list[str]:
    """Both archives' overlays of the compared class, as data URLs."""
    first = askers[0].ask(picture, {"overlay": True})
    second = askers[1].ask(picture, {"overlay": True, "target": first["explanations"][0]["target"]})
    return [_smaller(answer["explanations"][0]["overlay"]) for answer in (first, second)]


def _smaller(url: str, side: int = 420) -> str:
    """The PNG in a data URL as a small WebP."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as opened:
        opened.thumbnail((side, side))
        opened.convert("RGB").save(file, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _say(told: Mapping[str, Any], progress: Progress) -> None:
    table = Table("figure", "value", "limit", "", box=None, padding=(0, 3, 0, 0))
    for limit in LIMITS:
        value, bound = told["figures"][limit.name], told["limits"].get(limit.name)
        verdict = "" if bound is None else "beyond its limit" if limit.name in told["exceeded"] else "kept"
        table.add_row(limit.meaning, "-" if value is None else f"{value:.3f}", "" if bound is None else f"{bound:g}", verdict)
    progress.console.print(table)
    progress.note(f"{told['pictures']} pictures compared, {len(told['failed'])} could not be")


if __name__ == "__main__":
    raise SystemExit(main())
