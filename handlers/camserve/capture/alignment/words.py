"""What is said of where a layer's cells lie."""

from __future__ import annotations

from camserve.capture.alignment.sight import Sight
from camserve.capture.survey.layout import Layout

DIFFUSE = (
    "no trial shows where its cells lie, as each depends on all of the picture, or on several places; they are taken as they come"
)
TWOFOLD = "each of its cells looks at two places of the picture, mirror images of each other, and a map shows it at one of them"
UNSEEN = "no patch of the picture changes it by itself, so no trial shows where its cells lie; they are taken as they come"
WAVERING = (
    "no trial shows where its cells lie: what each depends on seems to lie over a part of the picture, and over another one in "
    "each picture; they are taken as they come"
)
SHUFFLED = (
    "its cells lie in another order than any that is known (in windows, or shuffled), or elsewhere in each picture (where the "
    "model warps it); take a layer before or behind, whose order is the picture's"
)
HIDES = (
    "{} of {} patches of the picture, changed, change nothing of it, and nothing tells which part it sees: a map over all of the "
    "picture would be out of place; take the cropping out of the model's forward, and give --resize and --crop instead"
)
UNTOLD = (
    "it runs {} times, each time on another view of the picture, and no trial tells what call {} sees; take the views out of the "
    "model's forward"
)
PARTLY = "the model crops, cuts or pads inside, or its convolutions leave a border out"
TRIED = "as a trial with a changed patch shows"


def ask_for_grid(layout: Layout) -> str:
    """Say which of a layer's tokens no trial places, and which option does."""
    return (
        f"its output has {layout.height * layout.width + layout.others} tokens, of which {layout.height}x{layout.width} could be "
        "cells of a map, and no trial tells which; --token-grid ROWS COLUMNS BEFORE says it"
    )


def describe_part(sight: Sight) -> str:
    """Say in words what part of the picture is seen."""
    return " and ".join(
        f"{round(low, 2) + 0:.0%} to {round(high, 2) + 0:.0%} of its {word}"
        for (low, high), word in ((sight.rows, "height"), (sight.columns, "width"))
    )


def without_doubt(note: str) -> str:
    """Return a note without what it says of cells that no trial places."""
    for doubt in (DIFFUSE, UNSEEN):
        note = note.removesuffix(doubt).removesuffix("; ")
    return note


def describe_order(read: Layout, found: Layout) -> str:
    """Say where cells lie, where that is not as a picture's rows behind the other tokens."""
    parts = []
    if found.behind:
        cells = found.height * found.width
        parts.append(f"its cells are tokens {found.extra} to {found.extra + cells - 1} of {cells + found.others}")
    if found.turn != read.turn:
        parts.append(f"its grid is {found.turn}, and is turned back")
    return f"{', '.join(parts)}, {TRIED}" if parts else ""
