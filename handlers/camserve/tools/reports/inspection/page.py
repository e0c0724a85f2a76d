"""The report of what was measured, as one HTML file without scripts."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator, Mapping
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
    heads = ("layer", "method", "", "score", *(figure.title for figure in FIGURES), "x prediction")
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
        "counts": f"{counts}; in brackets 95 % intervals of the means.",
        "heads": "".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads),
        "rows": "\n".join(_row(row, report["best"], report["own"]) for row in rows),
        "rule": html.escape(report["rule"]),
        "provenance": _list_terms(_describe_provenance(report)),
        "files": _list_files(report),
        "meanings": _list_terms([(title, f"{meaning}.") for title, meaning in said]),
    }
    return fill((HERE / "page.html").read_text("utf-8"), parts)


def _list_terms(terms: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(meaning)}</dd>" for term, meaning in terms)


def _describe_provenance(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What somebody needs who wants to know whether the figures hold for an archive, or to measure anew."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    yield "made", f"{report['made']}, by camserve {report['camserve']} with {versions}"
    yield "weights", f"{report['weights']}, as the metadata of a model that is served say them"
    yield "input", report["input"]
    yield (
        "pictures",
        f"{report['pictures']} files; their digest, of the sorted SHA-256 sums one a line: {report['pictures_digest']}",
    )
    yield "seed", f"{report['seed']}, of the classes and mosaics that are drawn, the weights drawn anew, and the intervals"


def _list_files(report: Mapping[str, Any]) -> str:
    """Each file with its SHA-256, as `sha256sum` writes them; and what was left out."""
    measured = "\n".join(f"{each['sha256']}  {each['name']}" for each in report["measured_on"])
    left = "\n".join(f"{each['name']}: {each['why']}" for each in report["left_out"])
    parts = [("The files and their SHA-256 sums", measured), ("Left out", left)]
    return "\n".join(
        f"<details><summary>{title} ({text.count(chr(10)) + 1})</summary><pre>{html.escape(text)}</pre></details>"
        for title, text in parts
        if text
    )


def _row(row: Mapping[str, Any], best: Mapping[str, str], own: Mapping[str, str]) -> str:
    is_best, is_own = ((row["layer"], row["method"]) == (each["layer"], each["method"]) for each in (best, own))
    remark = "chosen" if is_best else "out" if row["out"] else "may be as good" if row["tied"] else ""
    remark = ", ".join(filter(None, (remark, "default so far" if is_own else "")))
    figures = [_cell(row["score"]), *(_cell(row["figures"][figure.name]) for figure in FIGURES)]
    cells = [html.escape(row["layer"]), html.escape(row["method"]), remark, *figures, f"{row['cost']:.2f}"]
    kind = ' class="best"' if is_best else ' class="out"' if row["out"] else ""
    return f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _cell(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['mean']:.2f} <small>({figure['low']:.2f} to {figure['high']:.2f})</small>"
