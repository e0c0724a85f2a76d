"""How well drift of what a model looks at is told from chance: false alarms, and what is noticed, by kind, strength and window.

    python benchmarks/drift.py --archive model_store/efficientnet_lite0.mar

Measures varied crops of five photographs with the archive's own handler in this process, makes a reference of some of them, and
draws windows from the others and from spoiled ones. Writes drift.md, drift.json and drift.png into the folder --out. About
fifteen minutes on two cores; `--redraw` makes the tables and the plot anew from drift.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from benchmarks import crops  # noqa: E402
from benchmarks.psi import drift  # noqa: E402
from rich.progress import track  # noqa: E402

from camserve.looks import Measured  # noqa: E402
from camserve.mapstats import INPUT_STATISTICS, MAP_STATISTICS  # noqa: E402
from camserve.reference import CLASS, Reference  # noqa: E402
from camserve.request import Call  # noqa: E402
from camserve.tools.archive import load_service, open_archive  # noqa: E402
from camserve.tools.baseline import Collector, build  # noqa: E402

MIX = dict.fromkeys(crops.NAMES, 1.0)
OTHER = {"cat": 4.0, "coffee": 2.0, "rocket": 1.0, "china": 0.5, "flower": 0.5}
WINDOWS = (250, 350, 500)
ROUNDS = 200

Strengths = Sequence[tuple[str, dict[str, Any]]]
SPOILS: Mapping[str, Strengths] = {
    "blur, radius in pixels": [(str(r), {"spoil": crops.blur(r)}) for r in (0.5, 1.0, 2.0, 3.0)],
    "moved, share of the side": [(str(s), {"shift": s}) for s in (0.05, 0.1, 0.15, 0.25)],
    "watermark, share of the side": [(str(s), {"spoil": crops.watermark(s)}) for s in (0.1, 0.2, 0.3, 0.4)],
    "darker, times": [(str(f), {"spoil": crops.dark(f)}) for f in (0.8, 0.6, 0.4, 0.2)],
}


def measured(handler: Any, pictures: Sequence[bytes]) -> tuple[Measured, list[Any]]:
    """The statistics of pictures, and their maps as shares."""
    collector = Collector(handler.scale)
    handler.pipeline.watcher = collector
    for start in range(0, len(pictures), 8):
        handler.pipeline.run([Call(False, {}, {"body": picture}) for picture in pictures[start : start + 8]])
    return collector.found(), collector.shares


def some(found: Measured, places: np.ndarray) -> Measured:
    """A part of what was measured."""
    values = {name: each[places] for name, each in found.values.items()}
    return Measured(values, [found.targets[place] for place in places], [found.reasons[place] for place in places])


KINDS: Mapping[str, tuple[str, ...]] = {"attention": MAP_STATISTICS, "input": INPUT_STATISTICS, "class mix": (CLASS,)}


def rates(pool: Measured, reference: Reference, window: int, random: np.random.Generator) -> dict[str, float]:
    """In which share of windows drawn from the pool an alarm of each kind is raised, and each statistic's median PSI."""
    found = dict.fromkeys([*KINDS, "naive", "unadjusted"], 0.0)
    psis: dict[str, list[float]] = {name: [] for name in MAP_STATISTICS}
    for _ in range(ROUNDS):
        seen = drift(some(pool, random.permutation(len(pool.targets))[:window]), reference)
        for kind, names in KINDS.items():
            found[kind] += any(name in names for name in seen.alarms) / ROUNDS
        found["naive"] += any(seen.unadjusted[name] > 0.1 for name in MAP_STATISTICS) / ROUNDS
        found["unadjusted"] += any(seen.unadjusted[name] > seen.threshold[name] for name in MAP_STATISTICS) / ROUNDS
        for name in MAP_STATISTICS:
            psis[name].append(seen.psi[name])
    return found | {name: float(np.median(each)) for name, each in psis.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the results go (%(default)s)")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: draw what drift.json holds")
    parser.add_argument("--reference", type=int, default=800, help="pictures of the reference (%(default)s)")
    parser.add_argument("--clean", type=int, default=2000, help="clean pictures to draw windows from (%(default)s)")
    parser.add_argument("--spoiled", type=int, default=600, help="pictures of each kind and strength (%(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.redraw:
        with open_archive(options.archive) as opened:
            handler = load_service(opened.directory)._entry_point.__self__
            (options.out / "drift.json").write_text(json.dumps(table(handler, options)))
    rows = json.loads((options.out / "drift.json").read_text())
    (options.out / "drift.md").write_text(as_markdown(rows, options))
    plot(rows, options.out / "drift.png")
    print((options.out / "drift.md").read_text())


Row = tuple[str, str, int, dict[str, float]]


def table(handler: Any, options: argparse.Namespace) -> list[Row]:
    """A row for each kind of traffic, strength and window."""
    seeds = iter(range(1, 1000))

    def seen(count: int, **how: Any) -> Measured:
        mix = how.pop("mix", MIX)
        return measured(handler, list(crops.traffic(count, mix, next(seeds), **how)))[0]

    found, shares = measured(handler, list(crops.traffic(options.reference, MIX, 0)))
    reference = build(found, shares, handler.made)
    random = np.random.default_rng(0)
    cases: list[tuple[str, str, Callable[[], Measured]]] = [
        ("clean", "", lambda: seen(options.clean)),
        ("another class mix", "", lambda: seen(options.spoiled, mix=OTHER)),
    ]
    for kind, strengths in SPOILS.items():
        cases += [(kind, strength, lambda how=how: seen(options.spoiled, **how)) for strength, how in strengths]
    rows: list[Row] = []
    for kind, strength, make in track(cases, description="measuring"):
        pool = make()
        rows += [(kind, strength, window, rates(pool, reference, window, random)) for window in WINDOWS]
    return rows


def as_markdown(rows: Sequence[Row], options: argparse.Namespace) -> str:
    """The rows as tables."""
    lines = [
        f"EfficientNet-Lite0, varied crops of five photographs (torch {torch.__version__}, {platform.machine()}): a reference of",
        f"{options.reference} pictures, {options.clean} other clean ones, {options.spoiled} of each spoiled kind; {ROUNDS}",
        "windows drawn from each, without repeating a picture in a window.",
        "",
        "An alarm is PSI above its threshold, `max(0.1, 27.877 (1/N + 1/M))`, for any of the statistics of that kind. Columns:",
        "attention (seven statistics of the map, at the window's class mix), input (brightness, contrast, sharpness, size),",
        "class mix; and what attention's would be without the adjustment to the class mix, and then with PSI > 0.1 alone.",
        "",
        "| traffic | strength | window | attention | input | class mix | not adjusted | PSI > 0.1 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind, strength, window, found in rows:
        cells = " | ".join(f"{found[name]:.1%}" for name in ("attention", "input", "class mix", "unadjusted", "naive"))
        lines.append(f"| {kind} | {strength} | {window} | {cells} |")
    largest = max(WINDOWS)
    lines += [
        "",
        f"Median PSI of each statistic, windows of {largest}:",
        "",
        "| traffic | strength | " + " | ".join(MAP_STATISTICS) + " |",
    ]
    lines.append("| --- | --- |" + " ---: |" * len(MAP_STATISTICS))
    for kind, strength, window, found in rows:
        if window == largest:
            lines.append(f"| {kind} | {strength} | " + " | ".join(f"{found[name]:.2f}" for name in MAP_STATISTICS) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """What is noticed by strength, a panel a kind; and the clean windows' false alarms as a dotted line."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, len(SPOILS), figsize=(13, 3.4), sharey=True, layout="constrained")
    clean = {window: found["attention"] for kind, _, window, found in rows if kind == "clean"}
    for axis, kind in zip(axes, SPOILS, strict=True):
        for window, shade in zip(WINDOWS, ("#9ecae1", "#4292c6", "#084594"), strict=True):
            points = [(strength, found) for name, strength, size, found in rows if (name, size) == (kind, window)]
            places = range(1, len(points) + 1)
            axis.plot(places, [found["attention"] for _, found in points], "o-", color=shade, label=f"{window} pictures")
            axis.plot([0], [clean[window]], "o", color=shade, mfc="none")
        worst = [(s, f) for name, s, size, f in rows if (name, size) == (kind, WINDOWS[0])]
        axis.plot(
            range(1, len(worst) + 1), [found["input"] for _, found in worst], "s:", color="#d94801", label="input, 250 pictures"
        )
        axis.set_xticks(range(len(worst) + 1), ["clean", *(strength for strength, _ in worst)])
        axis.set_xlabel(kind)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("windows with an alarm")
    axes[0].yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    axes[-1].legend(frameon=False, fontsize=8, loc="center right")
    figure.suptitle("Alarms about attention, by kind and strength of what is wrong with the pictures", x=0.01, ha="left")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
