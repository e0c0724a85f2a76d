"""Times as people say them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from camserve.tools.console import ToolError
from camserve.tools.watching.evidence.periods import Period, read_period, read_time

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("30m", NOW - timedelta(minutes=30)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("2w", NOW - timedelta(days=14)),
        ("2026-02-28T10:00Z", datetime(2026, 2, 28, 10, tzinfo=timezone.utc)),
        ("2026-02-28T10:00+02:00", datetime(2026, 2, 28, 8, tzinfo=timezone.utc)),
        ("2026-02-28", datetime(2026, 2, 28, tzinfo=timezone.utc)),
        ("1772368200000", NOW),
        ("ever", datetime.min.replace(tzinfo=timezone.utc)),
    ],
)
def test_a_time_is_how_long_ago_or_when(text: str, expected: datetime) -> None:
    """Without a zone it is UTC, on every machine."""
    assert read_time(text, NOW) == expected


@pytest.mark.parametrize("text", ["yesterday", "1y", "-1h", "1h30m", "999999w", "2026-13-01", "<b>"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """With what came, and what would do."""
    with pytest.raises(ToolError, match="expected"):
        read_time(text, NOW)


def test_a_period_begins_before_it_ends() -> None:
    """And can be moved back by itself, or by a day."""
    with pytest.raises(ToolError, match="ends after it begins"):
        read_period("1h", "2h", NOW)
    period = read_period("2h", "1h", NOW)
    assert period.earlier("before") == Period(NOW - timedelta(hours=3), NOW - timedelta(hours=2))
    assert period.earlier("7d") == Period(NOW - timedelta(days=7, hours=2), NOW - timedelta(days=7, hours=1))
    assert str(period) == "2026-03-01 10:30 to 11:30 UTC"
    assert str(read_period("2026-02-28T23:00Z", "2026-03-01T01:00Z", NOW)) == "2026-02-28 23:00 to 2026-03-01 01:00 UTC"
