"""Times as people say them: how long ago, or when."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from camserve.core.text import show
from camserve.tools.console import ToolError

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
AGAINST = ("", "before", "1d", "7d")
"""What a period can be compared with: the reference, as long before it, a day or a week earlier."""


@dataclass(frozen=True)
class Period:
    """From `since`, with it, until `until`, without it; both know their time zone."""

    since: datetime
    until: datetime

    def earlier(self, against: str) -> Period:
        """Returns the period that this one is compared with: one of `AGAINST` but the first."""
        gap = self.until - self.since if against == "before" else read_duration(against)
        return Period(self.since - gap, self.until - gap)

    def __str__(self) -> str:
        begin, end = (each.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M") for each in (self.since, self.until))
        return f"{begin} to {end[11:] if end[:10] == begin[:10] else end} UTC"


def read_duration(text: str) -> timedelta:
    """Reads `30m`, `2h`, `1.5d`.

    Raises:
        ToolError: it is none, or nobody lives so long.
    """
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhdw])", text.strip())
    if match is None:
        raise ToolError(f"expected how long ago (30m, 2h, 7d) or a time (2026-01-31T14:00Z), got {show(text)}")
    return timedelta(**{UNITS[match[2]]: float(match[1])})


def read_time(text: str, now: datetime) -> datetime:
    """Reads `now`, `ever`, how long ago, or a time as ISO 8601 has it; without a time zone it is UTC. Grafana's milliseconds too.

    Raises:
        ToolError: it is none of them.
    """
    text = text.strip()
    if text in ("", "now"):
        return now
    if text == "ever":
        return datetime.min.replace(tzinfo=timezone.utc)
    if re.fullmatch(r"\d{12,13}", text):
        return datetime.fromtimestamp(int(text) / 1000, timezone.utc)
    try:
        found = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text))
    except ValueError:
        try:
            return now - read_duration(text)
        except OverflowError:
            raise ToolError(f"expected a time after the year 1, got {show(text)}") from None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def read_period(since: str, until: str, now: datetime | None = None) -> Period:
    """Reads both ends of a period.

    Raises:
        ToolError: one of them is no time, or the end is not after the beginning.
    """
    now = now or datetime.now(timezone.utc)
    period = Period(read_time(since, now), read_time(until, now))
    if period.since >= period.until:
        raise ToolError(f"expected a time that ends after it begins, got {show(since)} to {show(until)}")
    return period
