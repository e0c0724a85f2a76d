"""The report of what was measured, as one HTML file without scripts."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camserve.inspector.html import fill, write_policy
from camserve.pipeline.metadata import MEASURED
from camserve.tools.reports.inspection.choice import FIGURES

HERE = Path(__file__).parent
JSON, PAGE = MEASURED, "fidelity.html"
"""The report's names in an archive."""


def write_report(report: Mapping[str, Any], model: str, folder: Path) -> tuple[Path, Path]:
    """Write the JSON and the page into a folder, and return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON).write_text(json.dumps(report, indent=1, allow_nan=False), "utf-8")
    (folder / PAGE).write_text(write_page(report, model), "utf-8")
    return folder / JSON, folder / PAGE


def write_page(report: Mapping[str, Any], model: str) -> str:
    """Write the page of a report of `choice.choose`; `model` is its title."""
    style = "".join(path.read_text("utf-8") for path in (HERE.parent / "gallery.css", HERE / "page.css"))
    heads = ("layer", "method", "score", *(figure.title for figure in FIGURES), "x prediction", "")
    rows = sorted(report["rows"], key=lambda row: (row["out"], -row["score"]["mean"]))
    counts = f"{report['pictures']} pictures"
    counts += f", {report['quarters']} quarters of mosaics" if report["quarters"] else "; no mosaics: fewer than four classes"
    said = [("x prediction", "the time of an explanation over that of a prediction, one picture, processor time")]
    said = [("score", "see above"), *((figure.title, figure.meaning) for figure in FIGURES), *said]
    parts = {
        "policy": write_policy(style, []),
        "style": style,
        "model": html.escape(model),
        "why": html.escape(report["why"]),
        "counts": f"{counts}; in brackets 95 % intervals of the means; camserve {html.escape(report['camserve'])}.",
        "heads": "".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads),
        "rows": "\n".join(_row(row, report["best"]) for row in rows),
        "rule": html.escape(report["rule"]),
        "meanings": "\n".join(f"<dt>{html.escape(title)}</dt><dd>{html.escape(meaning)}.</dd>" for title, meaning in said),
    }
    return fill((HERE / "page.html").read_text("utf-8"), parts)


def _row(row: Mapping[str, Any], best: Mapping[str, str]) -> str:
    is_best = (row["layer"], row["method"]) == (best["layer"], best["method"])
    remark = "chosen" if is_best else "out" if row["out"] else "may be as good" if row["tied"] else ""
    figures = [_cell(row["score"]), *(_cell(row["figures"][figure.name]) for figure in FIGURES)]
    cells = [html.escape(row["layer"]), html.escape(row["method"]), *figures, f"{row['cost']:.2f}", remark]
    kind = ' class="best"' if is_best else ' class="out"' if row["out"] else ""
    return f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _cell(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['mean']:.2f} <small>({figure['low']:.2f} to {figure['high']:.2f})</small>"
