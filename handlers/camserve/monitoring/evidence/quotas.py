"""How many predictions may be kept: in an hour of each reason, of each class and by chance; and all together."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Generic, TypeVar

from camserve.core.config.watching import Evidence
from camserve.monitoring.evidence.names import Entry
from camserve.monitoring.evidence.reading import delete_entries, list_day
from camserve.monitoring.evidence.stores import Folder, Store

HOUR = 3600.0
BURST = 4
"""What an hour has room for may come in no less than a quarter of it: what happens later in the hour finds room too."""
SAMPLE = "sample"

LOOK_AGAIN, FEW = 60.0, 2000
"""Seconds between two looks at a folder as a whole; one that holds fewer records is looked at before each writing."""
LOOK_FAR = 300.0
"""Seconds between two looks at an object store, which are paid for."""
ROOM = 0.95
"""Share of the bounds down to which the oldest are deleted: several workers may write between two looks."""

Kept = tuple[float, tuple[str, ...], int]
"""When a prediction came (seconds since 1970), for which reasons it was kept, and its class."""

T = TypeVar("T")


class Quotas:
    """Counts what was kept in the last hour, by whichever process, and says whether there is room for more.

    A prediction is kept where one of its reasons has room, and counts for all of them. Of what a reason has room for, half is
    left to classes of which none was kept for it yet: so no flood of one kind, or of one class, hides another.
    """

    def __init__(self, settings: Evidence) -> None:
        self._settings = settings
        self._kept: list[Kept] = []
        self._counted_at = -math.inf
        self._tags: dict[float, Counter[str]] = {}
        self._classes: dict[float, Counter[tuple[str, int]]] = {}

    def learn(self, kept: Iterable[Kept], now: float) -> None:
        """Take what a store holds in place of what is known."""
        self._kept = list(kept)
        self._recount(now)

    def has_room(self, tags: Sequence[str], target: int, now: float) -> bool:
        """Return whether an unusual prediction of a class may be kept, for one of these reasons at least."""
        if now - self._counted_at >= 1:
            self._recount(now)
        return any(self._fits(tag, target) for tag in tags)

    def count(self, tags: Sequence[str], target: int, time: float) -> None:
        """Take note of one that is kept."""
        self._kept.append((time, tuple(tags), target))
        for window in self._tags:
            self._add(window, tags, target)

    def count_samples(self, since: float) -> int:
        """Count those drawn by chance since a time."""
        return sum(time > since and SAMPLE in tags for time, tags, _ in self._kept)

    def _fits(self, tag: str, target: int) -> bool:
        for window, tags in self._tags.items():
            share = window / HOUR
            most, of_class = (math.ceil(each * share) for each in (self._settings.per_reason, self._settings.per_class))
            classes = self._classes[window]
            if tags[tag] >= most or classes[tag, target] >= of_class:
                return False
            repeated = sum(count - 1 for (each, _), count in classes.items() if each == tag)
            if classes[tag, target] and repeated >= max(1, most // 2):
                return False
        return True

    def _recount(self, now: float) -> None:
        self._counted_at = now
        self._kept = [each for each in self._kept if now - HOUR < each[0]]
        self._tags = {HOUR: Counter(), HOUR / BURST: Counter()}
        self._classes = {window: Counter() for window in self._tags}
        for time, tags, target in self._kept:
            for window in self._tags:
                if now - window < time:
                    self._add(window, tags, target)

    def _add(self, window: float, tags: Sequence[str], target: int) -> None:
        for tag in tags:
            self._tags[window][tag] += 1
            self._classes[window][tag, target] += 1


class Reservoir(Generic[T]):
    """Draws so many of all that come, each with the same chance (algorithm R: J. S. Vitter, "Random sampling with a reservoir",
    ACM Transactions on Mathematical Software 11, 1985)."""

    def __init__(self, size: int, draw: random.Random | None = None) -> None:
        self._size = size
        self._draw = draw or random.Random()  # noqa: S311 no secret
        self._seen = 0
        self._items: list[T] = []

    def add(self, item: T) -> T | None:
        """Let an item take part; return the one that does so no more, itself perhaps."""
        self._seen += 1
        if len(self._items) < self._size:
            self._items.append(item)
            return None
        place = self._draw.randrange(self._seen)
        if place >= self._size:
            return item
        dropped, self._items[place] = self._items[place], item
        return dropped

    def __len__(self) -> int:
        return len(self._items)

    def take(self, most: int) -> tuple[list[T], list[T], float]:
        """Return up to so many of the drawn ones, the others, and for how many of all each drawn one stands; begin anew.

        With none to be taken, nothing changes: those that come later join those that came.
        """
        if most <= 0 or not self._items:
            return [], [], 0.0
        self._draw.shuffle(self._items)
        chosen, others, seen = self._items[:most], self._items[most:], self._seen
        self._items, self._seen = [], 0
        return chosen, others, seen / len(chosen)


def plan_sample(sample: int, shortest: float) -> tuple[int, float]:
    """Return how many are drawn at a time, and every how many seconds, for so many an hour; no more often than `shortest`."""
    period = max(shortest, HOUR / max(1, sample))
    return max(1, math.floor(sample * period / HOUR)), period


class Bounds:
    """What all records of a model may take: bytes, number and age. The oldest go first.

    Attributes:
        size: bytes of all records, with what lies beside them, as far as is known.
        due: when the store is to be looked at next, in seconds since 1970.
    """

    def __init__(self, store: Store, settings: Evidence, folder: str) -> None:
        self._store = store
        self._settings = settings
        self._folder = folder
        self._near = isinstance(store, Folder)
        self._known: list[tuple[Entry, int]] = []
        self.size = 0
        self.due = 0.0

    @property
    def count(self) -> int:
        """How many records there are, as far as is known."""
        return len(self._known)

    @property
    def entries(self) -> list[Entry]:
        """The records, as far as is known, oldest first."""
        return [entry for entry, _ in self._known]

    def wants_look(self, now: float) -> bool:
        """Return whether the store is to be looked at as a whole before anything is written."""
        return now >= self.due or (self._near and self.count < FEW)

    def look(self, now: float) -> None:
        """Look at the whole store, and delete what is too old or too much."""
        self.due = now + (LOOK_AGAIN if self._near else LOOK_FAR)
        days = self._store.list_folders(self._folder)
        found = [each for day in days for each in list_day(self._store, f"{self._folder}/{day}")]
        self._known = sorted(found, key=lambda each: (each[0].time, each[0].id))
        self.size = sum(entry.size + beside for entry, beside in self._known)
        oldest = datetime.fromtimestamp(now, timezone.utc) - timedelta(days=self._settings.max_days)
        self._cut(sum(entry.time < oldest for entry, _ in self._known))
        self.make_room(0)

    def make_room(self, size: int) -> bool:
        """Delete the oldest where so many bytes more would be too many; return False where they are too many by themselves."""
        settings = self._settings
        most, many = int(ROOM * settings.max_bytes) - size, int(ROOM * settings.max_records)
        if most < 0:
            return False
        if self.size + size > settings.max_bytes or self.count + (size > 0) > settings.max_records:
            left, cut = self.size, 0
            while cut < self.count and (left > most or self.count - cut > many):
                left -= sum((self._known[cut][0].size, self._known[cut][1]))
                cut += 1
            self._cut(cut)
        return True

    def add(self, entry: Entry) -> None:
        """Take note of a record that was written."""
        self._known.append((entry, 0))
        self.size += entry.size

    def remove(self, path: str) -> None:
        """Delete a record in whose place another one was written."""
        self._delete([each for each in self._known if each[0].path == path])
        self._known = [each for each in self._known if each[0].path != path]

    def _cut(self, count: int) -> None:
        self._delete(self._known[:count])
        self._known = self._known[count:]

    def _delete(self, known: Sequence[tuple[Entry, int]]) -> None:
        delete_entries(self._store, [entry for entry, _ in known])
        self.size -= sum(entry.size + beside for entry, beside in known)
