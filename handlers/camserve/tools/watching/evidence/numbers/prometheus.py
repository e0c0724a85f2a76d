"""What Prometheus counted in a time: of all watched predictions, not of a sample."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests

from camserve.core.text import show
from camserve.monitoring.reference import BINS
from camserve.tools.console import ToolError
from camserve.tools.watching.evidence.numbers.drift import Floats
from camserve.tools.watching.evidence.periods import Period

PATIENCE = 20.0
"""Seconds that an answer may take."""


def fetch_counts(url: str, model: str, reference: str, period: Period) -> dict[str, Floats]:
    """Asks how many watched predictions of a model fell into each bin: as the alerts' rules count, by `increase`.

    Args:
        url: Prometheus's.
        reference: digest of the reference whose bins they are.

    Returns:
        By statistic, and for the class mix, `[10]`; nothing where Prometheus has nothing of this time.

    Raises:
        ToolError: it does not answer, or not as Prometheus does.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ToolError(f"--prometheus: expected http://HOST:9090, got {show(url, 200)}")
    seconds = max(1, round((period.until - period.since).total_seconds()))
    chosen = f"model_name={json.dumps(model)},reference={json.dumps(reference)}"
    query = f"sum by (stat, bin) (increase(camserve_map_bin_total{{{chosen}}}[{seconds}s]))"
    try:
        answer = requests.get(
            f"{url.rstrip('/')}/api/v1/query",
            params={"query": query, "time": str(period.until.timestamp())},
            timeout=PATIENCE,
        )
        found: dict[str, Any] = answer.json()
        counts: dict[str, Floats] = {}
        for each in found["data"]["result"]:
            table = counts.setdefault(each["metric"]["stat"], np.zeros(BINS))
            table[int(each["metric"]["bin"])] = float(each["value"][1])
    except (requests.RequestException, ValueError, KeyError, IndexError, TypeError) as error:
        raise ToolError(f"{url} does not answer as Prometheus does ({type(error).__name__})") from error
    return counts
