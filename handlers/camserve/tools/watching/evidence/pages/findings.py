"""What of a time is looked at: which records, which reference, what drifted, and which pictures moved it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from camserve.core.text import find_nearest, join_names, show
from camserve.monitoring.evidence.names import Entry
from camserve.monitoring.evidence.reading import list_entries
from camserve.monitoring.reference import BINS, CLASS, Reference
from camserve.monitoring.statistics import INPUT_STATISTICS, MAP_STATISTICS, SCORE_STATISTICS
from camserve.tools.console import ToolError
from camserve.tools.watching.evidence.kept import NAMES, Seen, Shelf
from camserve.tools.watching.evidence.numbers.counting import (
    Sample,
    count_sample,
    find_ratios,
    judge_sample,
    rate,
    take_as_reference,
)
from camserve.tools.watching.evidence.numbers.drift import Drift, Floats, judge
from camserve.tools.watching.evidence.periods import Period

SILENT = "CamserveDegenerateMaps"
"""The alert of maps that say nothing."""
ALERTS: Mapping[str, tuple[str, ...]] = {
    "CamserveAttentionDrift": MAP_STATISTICS,
    "CamserveAttentionDriftLarge": MAP_STATISTICS,
    "CamserveConfidenceDrift": SCORE_STATISTICS,
    "CamserveInputDrift": INPUT_STATISTICS,
    "CamserveClassMixDrift": (CLASS,),
    SILENT: (),
}
"""The statistics that an alert may be about."""
_BINS: tuple[int | None, ...] = (*range(BINS), None)

READ, LEAST_READ = 3000, 100
"""Records that are read for one report, at most and at least where there are as many; see `choose_entries`."""
READ_BYTES = 500_000_000
"""Bytes of them: some hold a camera's whole file."""


@dataclass(frozen=True)
class Asked:
    """What is to be shown.

    Attributes:
        against: one of `periods.AGAINST`.
        statistic: shown first; "": the one that drifted most.
        label: the class that is shown first; "": all.
        alert: whose statistics come first; "": none.
    """

    period: Period
    against: str = ""
    statistic: str = ""
    label: str = ""
    alert: str = ""

    def check(self) -> None:
        """Checks the names.

        Raises:
            ToolError: there is no such statistic, or no such alert that evidence tells of.
        """
        for name, what, known in ((self.statistic, "statistic", NAMES), (self.alert, "alert", tuple(ALERTS))):
            if name and name not in known:
                near = find_nearest(name, known, 1)
                raise ToolError(
                    f"no {what} {show(name)}; {f'did you mean {near[0]}?' if near else f'expected one of {join_names(known)}'}"
                )


@dataclass(frozen=True)
class Findings:
    """What a time holds.

    Attributes:
        seen: the records of the latest reference that is among them, oldest first.
        others: how many are of another reference.
        unread: how many were not read, or could not be.
        digest: of that reference; None: no record has one.
        reference: itself; None: it is not here.
        sample: of this time.
        before: of the time that it is compared with; None: it is compared with the reference.
        counted: how many predictions Prometheus counted, on which `drifts` then rest; 0: it was not asked, or knows of none.
        images: how many pictures the comparison rests on.
        drifts: by statistic.
        rates: by statistic, how likely each of `seen` is one of those that moved it; see `counting.rate`.
        first: the statistic that is shown first; "": none.
    """

    asked: Asked
    seen: Sequence[Seen]
    others: int
    unread: int
    digest: str | None
    reference: Reference | None
    sample: Sample
    before: Sample | None
    counted: int
    images: int
    drifts: Mapping[str, Drift]
    rates: Mapping[str, Sequence[float]]
    first: str


Count = Callable[[str, str, Period], Mapping[str, Floats]]
"""Counts all watched predictions of a model by bin: see `prometheus.fetch_counts`."""


def find(
    shelf: Shelf, folder: str, asked: Asked, references: Callable[[str], Reference | None], count: Count | None = None
) -> Findings:
    """Reads what was kept of a model in a time, and compares it.

    Args:
        folder: the model's, in the store.
        references: finds a reference by its digest.
        count: None: the sample stands for all.
    """
    entries = list_entries(shelf.store, folder, asked.period.since, asked.period.until)
    everything, thinned = _read(shelf, entries, asked.statistic)
    digest = next((each.reference for each in reversed(everything) if each.reference), None)
    seen = [each for each in everything if each.reference == digest]
    reference = references(digest) if digest else None
    sample = count_sample(seen, thinned)
    base, before = reference, None
    if reference is not None and asked.against:
        earlier = asked.period.earlier(asked.against)
        then, thinned = _read(shelf, list_entries(shelf.store, folder, earlier.since, earlier.until), asked.statistic)
        before = count_sample([each for each in then if each.reference == digest], thinned)
        base = take_as_reference(before, reference) if before.images else None
    counts = count(seen[-1].card["model"], digest, asked.period) if count and seen and digest else {}
    drifts = {} if base is None else judge(counts, base) if CLASS in counts else judge_sample(sample, base)
    ratios = {} if base is None else find_ratios(drifts, base)
    rates = {name: [rate(each, name, drifts, ratios) for each in seen] for name in NAMES}
    unseen = (len(everything) - len(seen), len(entries) - len(everything))
    counted = round(float(counts[CLASS].sum())) if CLASS in counts else 0
    images = base.images if base is not None else 0
    first = choose_statistic(asked, drifts)
    return Findings(asked, seen, *unseen, digest, reference, sample, before, counted, images, drifts, rates, first)


def _read(shelf: Shelf, entries: Sequence[Entry], statistic: str) -> tuple[list[Seen], float]:
    """Reads the records that are chosen; returns also how many times fewer of the sample they are."""
    chosen = choose_entries(entries, statistic)
    all_, some = (sum("sample" in entry.reasons for entry in each) for each in (entries, chosen))
    return shelf.read(chosen), all_ / some if some else 1.0


def choose_entries(entries: Sequence[Entry], statistic: str) -> list[Entry]:
    """Chooses at most `READ` records, in the order of their times: half of them of the random sample, where there are as many.

    Of a larger sample every second, third and so on is taken, which is again one. Of the others those come first that are
    unusual in the statistic, then the newest. Of large records fewer are taken.
    """
    mean = max(1.0, sum(entry.size for entry in entries) / max(1, len(entries)))
    most = min(READ, max(LEAST_READ, int(READ_BYTES / mean)))
    sample = [entry for entry in entries if "sample" in entry.reasons]
    others = [entry for entry in entries if "sample" not in entry.reasons]
    room = max(most // 2, most - len(others))
    sample = sample[:: -(-len(sample) // room)] if len(sample) > room else sample
    others.sort(key=lambda entry: (f"rare.{statistic}" in entry.reasons, entry.time))
    kept = others[max(0, len(others) - most + len(sample)) :]
    return sorted([*sample, *kept], key=lambda entry: (entry.time, entry.name))


def choose_statistic(asked: Asked, drifts: Mapping[str, Drift]) -> str:
    """Returns the statistic that is shown first: the one asked for, else the alert's, else any, that drifted most."""
    if asked.statistic in drifts:
        return asked.statistic
    about = [name for name in ALERTS.get(asked.alert, ()) if name in drifts] or list(drifts)
    return max(about, key=lambda name: drifts[name].psi / drifts[name].threshold, default="")


def choose_seen(found: Findings, most: int) -> list[tuple[Seen, list[float]]]:
    """Chooses the pictures that a page is given, each with its rates in the order of `NAMES`.

    Half of them are those that moved the first statistic most, and of the class asked for; the rest is taken from all bins in
    turn, the newest first, so that each bin has some.
    """
    seen, first, rates = found.seen, found.first, found.rates
    taken = dict.fromkeys(range(len(seen)))
    if len(seen) > most:
        of_class = [place for place in taken if seen[place].card["label"] == found.asked.label]
        bins = [each.bins.get(first) for each in seen]
        moved = found.drifts[first].moved if first else ()
        upward = [place for place, bin_ in enumerate(bins) if bin_ is not None and moved[bin_] > 0]
        upward.sort(key=lambda place: (rates[first][place], seen[place].entry.time), reverse=True)
        queues = [[place for place in taken if bins[place] == wanted] for wanted in _BINS]
        taken = dict.fromkeys([*of_class[-most // 2 :], *upward[: most // 2]][:most])
        while len(taken) < most and any(queues):
            for queue in queues:
                if queue and len(taken) < most:
                    taken.setdefault(queue.pop())
    return [(seen[place], [rates[name][place] for name in NAMES]) for place in sorted(taken)]
