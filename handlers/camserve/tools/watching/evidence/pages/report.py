"""What a page is told: statistics then and now, and the pictures behind them, in JSON's types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from camserve.core.version import __version__
from camserve.monitoring.evidence.names import Entry
from camserve.monitoring.reference import BINS, CLASS, UNSEEN, Reference
from camserve.monitoring.statistics import STATISTICS
from camserve.pictures.render import write_colormap
from camserve.tools.watching.evidence.kept import NAMES, Seen
from camserve.tools.watching.evidence.marks import Mark
from camserve.tools.watching.evidence.numbers.drift import Drift
from camserve.tools.watching.evidence.pages.findings import SILENT, Findings, choose_seen

MEANING_OF_CLASS = "the mix of predicted classes, in groups as the reference has them"
MOST = 600
"""Pictures that a page is given."""

Card = Mapping[str, Any]


def write_report(
    folder: str,
    found: Findings,
    marks: Callable[[Iterable[Entry]], Mapping[str, Mark]],
    picture: Callable[[Seen], str | None],
    *,
    normal: Sequence[Card] = (),
    most: int = MOST,
) -> dict[str, Any]:
    """Writes what the page shows of what was found.

    Args:
        folder: the model's, in the store.
        marks: finds the last mark of each record, by its name.
        picture: where a page finds a picture: a URL, which may hold the picture itself; None where there is none.
        normal: the reference's own examples.
        most: pictures in the report.
    """
    shown = choose_seen(found, most)
    marked = marks(each.entry for each, _ in shown)
    source = found.seen[-1].card if found.seen else {"model": folder, "scores": "softmax"}
    ordered = sorted(found.drifts.items(), key=lambda each: -each[1].psi / each[1].threshold)
    return {
        "camserve": __version__,
        **{"model": source["model"], "folder": folder, "scores": source["scores"]},
        "about": describe_about(found),
        **describe_comparison(found),
        "left_out": describe_left_out(found.others, found.unread),
        "names": list(NAMES),
        **{"first": found.first or None, "chosen": found.asked.label or None},
        "kind": "silent" if found.asked.alert == SILENT else None,
        "kept": len(found.seen),
        "colours": write_colormap("viridis"),
        "statistics": [_tell(name, drift, found) for name, drift in ordered],
        "cards": [
            {**each.card, "rates": rates, "picture": picture(each), "mark": _told(marked.get(each.entry.name))}
            for each, rates in shown
        ],
        "normal": list(normal),
        "no_examples": "The reference holds no examples, or its archive was not given.",
        **{"live": False, "inspector": None},
    }


def _told(mark: Mark | None) -> dict[str, Any] | None:
    return None if mark is None else mark.told


def _tell(name: str, drift: Drift, found: Findings) -> dict[str, Any]:
    """Tells of one statistic."""
    shares = {
        which: [round(float(each), 5) for each in values]
        for which, values in (("now", drift.now), ("expected", drift.expected), ("moved", drift.moved))
    }
    return {
        "name": name,
        "meaning": STATISTICS.get(name, MEANING_OF_CLASS),
        "images": drift.images,
        "psi": drift.psi,
        "threshold": drift.threshold,
        "drifted": drift.drifted,
        "enough": drift.enough,
        **shares,
        "labels": label_bins(name, found.reference, found.seen) if found.reference else [],
    }


def label_bins(name: str, reference: Reference, seen: Sequence[Seen]) -> list[str]:
    """Says what lies in each of a statistic's ten bins."""
    if name != CLASS:
        edges = [f"{edge:.3g}" for edge in reference.edges[name]]
        return [
            f"below {edges[0]}",
            *(f"{low} to {high}" for low, high in pairwise(edges)),
            f"from {edges[-1]}",
        ]
    common = [Counter(each.card["label"] for each in seen if each.group == group) for group in range(BINS)]
    named = [[label for label, _ in each.most_common()] for each in common]
    texts = [", ".join(each[:2]) + (f" and {len(each) - 2} more" if len(each) > 2 else "") for each in named]
    return [text or f"group {group}" for group, text in enumerate(texts[:UNSEEN])] + [
        f"never seen before{f': {texts[UNSEEN]}' if texts[UNSEEN] else ''}"
    ]


def describe_about(found: Findings) -> str:
    """Says of what and when the report is."""
    versions = ", ".join(sorted({each.version for each in found.seen if each.version}))
    parts = [found.asked.alert, f"version {versions}" if versions else "", str(found.asked.period), f"{len(found.seen)} kept"]
    return " · ".join(filter(None, parts))


def describe_comparison(found: Findings) -> dict[str, Any]:
    """Says what is compared with what, on how many pictures it rests, and why there is nothing to compare where that is so."""
    before = found.before is not None and found.asked.period.earlier(found.asked.against)
    return {
        "period": f"now: {found.asked.period}",
        "against": f"expected by {before}" if before else f"expected by the reference {found.digest}",
        "against_images": found.images,
        **{"sampled": found.sample.images, "counted": found.counted},
        "stand_for": round(found.sample.stands_for),
        "why": "" if found.drifts else explain_nothing(found),
    }


def explain_nothing(found: Findings) -> str:
    """Says why there is nothing to compare."""
    if found.digest is None:
        return "The model had no reference, or nothing was kept: pictures are shown, and nothing is compared."
    if found.reference is None:
        return f"The reference {found.digest} is not here; give the archive that holds it (--archive)."
    if not found.sample.images:
        return (
            "No picture of this time belongs to the random sample, which is written once a minute or less often: nothing can be "
            "counted. Ask again later, or have Prometheus count (--prometheus)."
        )
    return "Nothing of the earlier time was sampled." if found.before is not None else "Nothing can be compared."


def describe_left_out(others: int, unread: int) -> str:
    """Says what of this time is not in the report."""
    parts = [f"{others} of another reference are left out" if others else "", f"{unread} more were not read" if unread else ""]
    return "; ".join(filter(None, parts))
