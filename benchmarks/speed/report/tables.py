"""Results as JSON, and from those the tables and plots of `benchmarks/README.md`, between two markers."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2]
README = FOLDER / "README.md"
RESULTS = FOLDER / "results"
BEGIN, END = "<!-- speed: begin; benchmarks/run.py writes this -->", "<!-- speed: end -->"


def save(part: str, found: Mapping[str, Any], folder: Path) -> None:
    """Keeps what one part found."""
    folder.mkdir(exist_ok=True)
    (folder / f"{part}.json").write_text(json.dumps(found, indent=1, default=str) + "\n", "utf-8")


def load(folder: Path) -> dict[str, Any]:
    """What all parts found, by their names."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}


def write(found: Mapping[str, Any], readme: Path, plots: Sequence[str]) -> None:
    """Puts the tables where the markers are, or at the end."""
    text = readme.read_text("utf-8") if readme.is_file() else "# Benchmarks\n"
    section = f"{BEGIN}\n{page(found, plots)}\n{END}"
    if BEGIN in text:
        before, rest = text.split(BEGIN, 1)
        text = before + section + rest.split(END, 1)[1]
    else:
        text = f"{text.rstrip()}\n\n## Speed\n\n{section}\n"
    readme.write_text(text, "utf-8")


def page(found: Mapping[str, Any], plots: Sequence[str]) -> str:
    """All tables as Markdown: goals, rates, profiles, tensors saved, memory, curves, and under which conditions."""
    blocks: list[str] = []
    for title, names in PARTS:
        present = [(name, found[name]) for name in found if name.startswith(names)]
        if present:
            blocks.append(f"### {title}")
            blocks += [block for name, part in present for block in _blocks(name, part)]
    blocks += [f"![{Path(plot).stem}]({plot})" for plot in plots]
    return "\n\n".join(blocks)


PARTS = (
    ("The engine, without a server", ("engine",)),
    ("The forward pass alone", ("forward",)),
    ("Runtimes", ("runtimes",)),
    ("Loading a worker", ("loading",)),
    ("A live server", ("live",)),
    ("TorchServe, the ASGI host and Ray", ("hosts",)),
    ("Where a picture's time goes", ("profile",)),
    ("Memory of a worker", ("memory",)),
    ("Scaling", ("scaling",)),
)


def _blocks(name: str, part: Mapping[str, Any]) -> Iterable[str]:
    for key, show in SHOWN.items():
        if part.get(key):
            yield show(part)
    summary = f"<summary>Conditions of <code>{name}</code>, {part['conditions']['date']}</summary>"
    yield f"<details>{summary}\n\n{told(part['conditions'])}\n\n</details>"


def told(conditions: Mapping[str, Any]) -> str:
    """Conditions as a paragraph, in lines as long as those of all our pages."""
    text = "; ".join(f"{key}: {value}" for key, value in conditions.items())
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def _goals(part: Mapping[str, Any]) -> str:
    model = str(part["conditions"].get("model", "")).split(",")[0]
    formats = any("format" in row for row in part["rows"])
    head = [model, *(["plain model's format"] if formats else []), "median (quartiles)", "goal", "met"]
    return table(
        head,
        [
            [row["what"], *([row["format"]] if formats else []), spread(row, 3 if row["side"] == "most" else 2), *goal(row)]
            for row in part["rows"]
        ],
    )


def goal(row: Mapping[str, Any]) -> list[str]:
    """The goal in words, and whether the median meets it."""
    if row["goal"] is None:
        return ["", ""]
    met = row["median"] <= row["goal"] if row["side"] == "most" else row["median"] >= row["goal"]
    return [f"{'≤' if row['side'] == 'most' else '≥'} {row['goal']:g}", "yes" if met else "no"]


def _rates(part: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            spread({key: 1000 * value for key, value in row.items()}, 1) + " ms" if name.startswith("lone") else spread(row, 1),
        ]
        for name, row in part["rates"].items()
    ]
    return table(["answers a second; lone: median latency", "median (quartiles)"], rows)


def _profile(part: Mapping[str, Any]) -> str:
    there = dict.fromkeys(key for row in part["rows_ms"] for key in row if key != "what")
    keys = [key for key in STAGES if key in there] + [key for key in there if key not in STAGES]
    rows = [[row["what"], *(f"{row[key]:.1f}" if key in row else "" for key in keys)] for row in part["rows_ms"]]
    columns = table(["", *(key.removeprefix("stage ") for key in keys)], rows)
    return f"{part['conditions']['model']}, ms a picture:\n\n{columns}"


STAGES = ("clock", "stage batch", "stage decode", "stage forward", "stage backward", "stage render")
"""Columns in the order of every profile: the clock, the workers' stages, and then what the processes used."""


def _forward(part: Mapping[str, Any]) -> str:
    rows = [[row["model"], row["what"], spread(row["ms"], 1), spread(row["over"], 2)] for row in part["forward"]]
    return table(["model", "called", "ms a picture", "over as served"], rows)


def _saved(part: Mapping[str, Any]) -> str:
    return table(["saved for backward", "MiB a picture"], [[name, f"{value:.2f}"] for name, value in part["saved"].items()])


def _curves(part: Mapping[str, Any]) -> str:
    tables = []
    for name, rows in part["curves"].items():
        kinds = [key for key in rows[0] if key not in ("at", "plain")]
        shown = [[str(row["at"]), f"{1000 * row['plain']:.0f}", *(spread(row[kind], 3) for kind in kinds)] for row in rows]
        tables.append(table([name, "plain forward, ms", *(f"{kind}, over plain" for kind in kinds)], shown))
    return "\n\n".join(tables)


def _shares(part: Mapping[str, Any]) -> str:
    rows = [[f"{row['at']:.0%}", spread(row, 1)] for row in part["shares"]]
    workers = [[str(row["at"]), spread(row["predictions"], 1), spread(row["explanations"], 1)] for row in part["workers"]]
    first = table(["share of explanations", "answers/s"], rows)
    return f"{first}\n\n{table(['workers', 'predictions/s', 'explanations/s'], workers)}"


SHOWN: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "rows": _goals,
    "rates": _rates,
    "forward": _forward,
    "rows_ms": _profile,
    "saved": _saved,
    "curves": _curves,
    "shares": _shares,
}


def spread(row: Mapping[str, float], digits: int) -> str:
    """`1.04 (1.03 to 1.06)`; a single number where there was one measurement."""
    median, low, high = (f"{row[key]:.{digits}f}" for key in ("median", "low", "high"))
    return median if row["low"] == row["high"] else f"{median} ({low} to {high})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
