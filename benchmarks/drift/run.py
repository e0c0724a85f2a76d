"""How well drift of what a model looks at is told from chance: false alarms, and what is noticed, by kind, strength and window.

    python benchmarks/drift/run.py --archive model_store/efficientnet_lite0.mar

Measures varied crops of five photographs with the archive's own handler, each once, in a process for each core. Some of the
clean ones become references, drawn anew from pictures that no other one has; all others are divided into windows that share no
picture, and each window is judged against each reference. Writes drift.md, drift.json and drift.png into the folder --out.
About twenty minutes on two cores; `--quick` tries the procedure in two, with fewer of everything; `--redraw` makes the tables
and the plot anew from drift.json.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import numpy as np
import torch
from rich.progress import track

from benchmarks.drift import crops
from benchmarks.drift.psi import drift
from benchmarks.speed.conditions import processor
from camserve.core.messages import Call
from camserve.monitoring.measure import Measurements
from camserve.monitoring.reference import CLASS, Provenance, Reference
from camserve.monitoring.statistics import INPUT_STATISTICS, MAP_STATISTICS
from camserve.tools.archive.archive import handler_of, load_service, open_archive
from camserve.tools.watching.baseline import Collector, build_reference
from camserve.tools.watching.evidence.numbers.drift import CHI_SQUARE, LEAST_PSI

MIX = dict.fromkeys(crops.NAMES, 1.0)
OTHER = {"cat": 4.0, "coffee": 2.0, "rocket": 1.0, "china": 0.5, "flower": 0.5}
WINDOWS = (250, 500)
PART = 125
"""Pictures that a process makes and measures at a time."""
Z = 1.959964
"""The normal distribution's 97.5 % point."""

CLEAN, MIXED = "clean", "another class mix"
SPOILS: Mapping[str, tuple[Callable[[float], Mapping[str, Any]], Sequence[float]]] = {
    "blur, radius in pixels": (lambda r: {"spoil": crops.blur(r)}, (0.5, 1.0, 2.0, 3.0)),
    "moved, of the side": (lambda s: {"shift": s}, (0.05, 0.1, 0.15, 0.25)),
    "watermark, of the side": (lambda s: {"spoil": crops.watermark(s)}, (0.1, 0.2, 0.3, 0.4)),
    "darker, times": (lambda f: {"spoil": crops.dark(f)}, (0.8, 0.6, 0.4, 0.2)),
}
KINDS: Mapping[str, tuple[str, ...]] = {"attention": MAP_STATISTICS, "input": INPUT_STATISTICS, "class mix": (CLASS,)}

Case = tuple[str, float | None]
"""A kind of traffic, and how strong."""


def measured(handler: Any, pictures: Sequence[bytes]) -> Measurements:
    """The statistics of pictures."""
    collector = Collector(handler.face.scale)
    handler.face.observe(collector)
    for start in range(0, len(pictures), 8):
        handler.face.pipeline.run([Call(False, {}, {"body": picture}) for picture in pictures[start : start + 8]])
    return collector.measurements()


class Worker:
    """What each process of the pool has: the archive's handler, on one core."""

    handler: Any = None

    @classmethod
    def start(cls, directory: Path) -> None:
        torch.set_num_threads(1)
        cls.handler = handler_of(load_service(directory))

    @classmethod
    def measure(cls, case: Case, seed: Sequence[int], count: int) -> Measurements:
        """So many pictures of a case, measured; the same for the same seed."""
        kind, strength = case
        how = SPOILS[kind][0](strength) if strength is not None else {}
        return measured(cls.handler, list(crops.traffic(count, OTHER if kind == MIXED else MIX, seed, **how)))


def all_measured(directory: Path, cases: Sequence[tuple[Case, int]]) -> Iterator[tuple[Case, Measurements]]:
    """Each case with as many pictures as it asks for, measured."""
    parts = [
        (case, [place, start], min(PART, count - start))
        for place, (case, count) in enumerate(cases)
        for start in range(0, count, PART)
    ]
    with multiprocessing.get_context("fork").Pool(os.cpu_count(), Worker.start, (directory,)) as pool:
        done = iter(track(pool.imap(_measure, parts), description="measuring", total=len(parts)))
        for case, count in cases:
            yield case, joined([next(done) for _ in range(-(-count // PART))])


def _measure(part: tuple[Case, Sequence[int], int]) -> Measurements:
    return Worker.measure(*part)


def joined(parts: Sequence[Measurements]) -> Measurements:
    """All parts one after another."""
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
    targets = [target for part in parts for target in part.targets]
    return Measurements(values, targets, [reason for part in parts for reason in part.reasons])


def divided(found: Measurements, size: int) -> list[Measurements]:
    """Windows of `size` pictures that share none; what is left over is in no window."""
    places = [slice(start, start + size) for start in range(0, len(found.targets) - size + 1, size)]
    return [
        Measurements({name: each[part] for name, each in found.values.items()}, found.targets[part], found.reasons[part])
        for part in places
    ]


def wilson(share: float, trials: int) -> tuple[float, float]:
    """The 95 % interval of a probability, 0 to 1, of which `share` was seen in so many trials (E. B. Wilson, JASA 22, 1927)."""
    middle = share + Z**2 / (2 * trials)
    half = Z * math.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    low, high = ((middle + side * half) / (1 + Z**2 / trials) for side in (-1, 1))
    return max(0.0, low), min(1.0, high)


def judged(windows: Sequence[Measurements], references: Sequence[Reference]) -> dict[str, float]:
    """Of all windows against all references: in which share an alarm of each kind is raised, and each statistic's median PSI."""
    told = [drift(window, reference) for reference in references for window in windows]
    found = {kind: float(np.mean([any(name in names for name in each.alarms) for each in told])) for kind, names in KINDS.items()}
    plain = [[(each.unadjusted[name], each.threshold[name]) for name in MAP_STATISTICS if name in each.psi] for each in told]
    found["unadjusted"] = float(np.mean([any(psi > threshold for psi, threshold in each) for each in plain]))
    found["naive"] = float(np.mean([any(psi > LEAST_PSI for psi, _ in each) for each in plain]))
    for name in MAP_STATISTICS:
        found[name] = float(np.median([each.psi[name] for each in told if name in each.psi] or [math.nan]))
    return found


Row = dict[str, Any]


def table(directory: Path, options: argparse.Namespace) -> list[Row]:
    """A row for each kind of traffic, strength and window size of which there is a window."""
    made = Provenance("", "", "")
    spoiled = [
        (kind, strength) for kind, (_, strengths) in SPOILS.items() for strength in strengths[:: 3 if options.quick else 1]
    ]
    cases: list[tuple[Case, int]] = [
        (("reference", None), options.references * options.reference),
        ((CLEAN, None), options.clean),
    ]
    cases += [(case, options.spoiled) for case in [(MIXED, None), *spoiled]]
    found = all_measured(directory, cases)
    drawn = divided(next(found)[1], options.reference)
    references = [build_reference(each, [None] * options.reference, made) for each in drawn]
    rows = []
    for (kind, strength), pool in found:
        for size in WINDOWS:
            windows = divided(pool, size)
            if windows:
                told = judged(windows, references)
                shown = "" if strength is None else str(strength)
                rows.append({"kind": kind, "strength": shown, "window": size, "windows": len(windows), **told})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, metavar="FILE", help="the archive (.mar) whose model is watched")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the results go (%(default)s)")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: draw what drift.json holds")
    parser.add_argument(
        "--quick", action="store_true", help="two minutes: the weakest and the strongest of each kind, small pools"
    )
    parser.add_argument("--references", type=int, help="how many references (10)")
    parser.add_argument("--reference", type=int, help="pictures of each (800)")
    parser.add_argument("--clean", type=int, help="clean pictures to divide into windows (30000)")
    parser.add_argument("--spoiled", type=int, help="pictures of each kind and strength (3000)")
    options = parser.parse_args()
    sizes = {"references": (10, 2), "reference": (800, 300), "clean": (30000, 1500), "spoiled": (3000, 250)}
    for name, (whole, quick) in sizes.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else whole)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.redraw:
        if options.archive is None:
            parser.error("--archive is missing")
        with open_archive(options.archive) as opened:
            rows = table(opened.directory, options)
        conditions = {name: getattr(options, name) for name in sizes} | {"archive": options.archive.stem}
        conditions |= {"torch": torch.__version__, "processor": processor(), "python": platform.python_version()}
        (options.out / "drift.json").write_text(json.dumps({"conditions": conditions, "rows": rows}))
    told = json.loads((options.out / "drift.json").read_text())
    (options.out / "drift.md").write_text(as_markdown(told["rows"], told["conditions"]))
    plot(told["rows"], options.out / "drift.png")
    print((options.out / "drift.md").read_text())


def as_markdown(rows: Sequence[Row], what: Mapping[str, Any]) -> str:
    """The rows as tables; `what` was measured."""
    lines = [
        f"{what['archive']}, crops of five photographs; Python {what['python']}, torch {what['torch']}, {what['processor']}.",
        f"{what['references']} references of {what['reference']} pictures, none of which is in two of them;",
        f"{what['clean']} other clean ones and {what['spoiled']} of each other kind, divided into windows that share no picture,",
        "each judged against each reference. Shares are per cent; in brackets their 95 % interval: Wilson's, for as many",
        "independent windows.",
        "",
        f"An alarm is PSI above its threshold, `max({LEAST_PSI}, {CHI_SQUARE} (1/N + 1/M))`, for any of the statistics of that",
        "kind. Columns: attention (seven statistics of the map, at the window's class mix, of classes that the reference knows),",
        "input (brightness, contrast, sharpness, size), class mix; and what attention's would be without the adjustment to the",
        "class mix, and then with PSI > 0.1 alone.",
        "",
        "| traffic | strength | window | windows | attention | input | class mix | not adjusted | PSI > 0.1 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = " | ".join(
            _cell(row[name], row["windows"]) for name in ("attention", "input", "class mix", "unadjusted", "naive")
        )
        lines.append(f"| {row['kind']} | {row['strength']} | {row['window']} | {row['windows']} | {cells} |")
    largest = max(row["window"] for row in rows if row["kind"] in SPOILS)
    lines += [
        "",
        f"Median PSI of each statistic, windows of {largest}:",
        "",
        "| traffic | strength | " + " | ".join(MAP_STATISTICS) + " |",
        "| --- | --- |" + " ---: |" * len(MAP_STATISTICS),
    ]
    for row in rows:
        if row["window"] == largest:
            cells = " | ".join(f"{row[name]:.2f}" for name in MAP_STATISTICS)
            lines.append(f"| {row['kind']} | {row['strength']} | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(share: float, windows: int) -> str:
    low, high = wilson(share, windows)
    return f"{100 * share:.1f}".removesuffix(".0") + f" ({100 * low:.0f}–{100 * high:.0f})"


def plot(rows: Sequence[Row], path: Path) -> None:
    """What is noticed by strength, a panel a kind, with 95 % intervals; the clean windows' false alarms stand at the left."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, len(SPOILS), figsize=(13, 3.4), sharey=True, layout="constrained")
    smallest = min(WINDOWS)
    for axis, kind in zip(axes, SPOILS, strict=True):
        for window, shade, aside in zip(WINDOWS, ("#6baed6", "#084594"), (-0.06, 0.06), strict=True):
            _draw(axis, _points(rows, kind, window), "attention", aside, fmt="o-", color=shade, label=f"{window} pictures")
        worst = _points(rows, kind, smallest)
        _draw(axis, worst, "input", 0.0, fmt="s:", color="#d94801", label=f"input, {smallest} pictures")
        axis.set_xticks(range(len(worst)), [row["strength"] or "clean" for row in worst])
        axis.set_xlabel(kind)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("windows with an alarm")
    axes[0].yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside upper right")
    figure.suptitle("Alarms about attention, by kind and strength of what is wrong with the pictures", x=0.01, ha="left")
    figure.savefig(path, dpi=130)


def _points(rows: Sequence[Row], kind: str, window: int) -> list[Row]:
    """The clean windows, and those of a kind, by strength."""
    return [row for row in rows if row["kind"] in (CLEAN, kind) and row["window"] == window]


def _draw(axis: Any, points: Sequence[Row], name: str, aside: float, **how: Any) -> None:
    shares = np.array([row[name] for row in points])
    ends = np.array([wilson(row[name], row["windows"]) for row in points]).reshape(-1, 2)
    bars = np.abs(ends.T - shares)
    axis.errorbar(np.arange(len(points)) + aside, shares, yerr=bars, capsize=2, elinewidth=0.8, **how)


if __name__ == "__main__":
    main()
