"""The scaling curves as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "camserve"  # the same file for the same figures

from matplotlib import pyplot as plt

TITLES = {
    "batch": "pictures in the batch",
    "picture": "side of the picture, pixels (batch of 2)",
    "targets": "targets of each picture (batch of 8)",
    "layer": "layer (batch of 8)",
}

COLOURS = {"closed form": "C0", "autograd": "C1"}


def draw(found: Mapping[str, Any], folder: Path) -> list[str]:
    """Writes the plots that there are figures for; their paths from `folder`'s parent."""
    folder.mkdir(exist_ok=True)
    made = []
    if "scaling-engine" in found:
        made.append(_engine(found["scaling-engine"], folder / "cost.svg"))
    if "scaling-server" in found:
        made.append(_server(found["scaling-server"], folder / "server.svg"))
    memory = [name for name in found if name.startswith("memory")]
    if memory:
        made.append(_memory({name: found[name] for name in memory}, folder / "memory.svg"))
    return [path.relative_to(folder.parent).as_posix() for path in made]


def _engine(part: Mapping[str, Any], path: Path) -> Path:
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), sharey=True, layout="constrained")
    for axis, (name, rows) in zip(axes, part["curves"].items(), strict=True):
        places = [str(row["at"]) for row in rows]
        for kind in (key for key in rows[0] if key not in ("at", "plain")):
            values = [row[kind]["median"] for row in rows]
            errors = [
                [row[kind]["median"] - row[kind]["low"] for row in rows],
                [row[kind]["high"] - row[kind]["median"] for row in rows],
            ]
            axis.errorbar(places, values, errors, marker="o", markersize=4, capsize=2, label=kind, color=COLOURS[kind])
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_xlabel(TITLES[name])
    axes[0].set_ylabel("explaining over the plain forward")
    axes[0].legend(frameon=False)
    return _saved(figure, path)


def _server(part: Mapping[str, Any], path: Path) -> Path:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    left.plot([100 * row["at"] for row in part["shares"]], [row["median"] for row in part["shares"]], marker="o")
    left.set(xlabel="share of explanations, %", ylabel="answers a second", ylim=_from_zero(left))
    for kind in ("predictions", "explanations"):
        right.plot(
            [str(row["at"]) for row in part["workers"]], [row[kind]["median"] for row in part["workers"]], marker="o", label=kind
        )
    right.set(xlabel="workers", ylim=_from_zero(right))
    right.legend(frameon=False)
    return _saved(figure, path)


def _memory(parts: Mapping[str, Any], path: Path) -> Path:
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for part in parts.values():
        places = [row["explanations"] for row in part["curve"]]
        axis.plot(places, [row["MiB"] for row in part["curve"]], label=part["conditions"]["model"])
    axis.set(xlabel="explanations", ylabel="resident memory of the worker, MiB", ylim=_from_zero(axis))
    axis.legend(frameon=False)
    return _saved(figure, path)


def _from_zero(axis: Any) -> tuple[float, float]:
    return 0, 1.1 * max(float(value) for line in axis.lines for value in line.get_ydata())


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path
