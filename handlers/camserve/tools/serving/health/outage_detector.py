"""Detects models that TorchServe has given up: it starts no worker of theirs any more, and requests to them wait without end.

When a worker ends, TorchServe starts another, after waits that grow like Fibonacci's numbers, until the first failure is
`maxRetryTimeoutInSec` ago. The last start may come six tenths of that time later, and takes at most two minutes to begin and
`startupTimeout` to load. A model without a ready worker for longer than all that gets none until the server is restarted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

BEGIN = 120
"""Seconds that TorchServe waits for a new worker to connect."""


class OutageDetector:
    """Keeps when each version of each model last had a ready worker, and finds one for which that is more than `limit` seconds
    ago (None: longer than TorchServe tries)."""

    def __init__(self, limit: float | None = None) -> None:
        self._limit = limit
        self._last_ready: dict[tuple[str, str], float] = {}

    def find_outage(self, models: Iterable[Mapping[str, Any]] | None, now: float) -> tuple[str, float] | None:
        """Returns a model beyond the limit, and its seconds without a ready worker; None where there is none.

        A version counts once it has had a ready worker (before that it is being registered), and unless somebody scaled it to no
        workers. While `models` is None (management does not answer) all count as ready.
        """
        if models is None:
            self._last_ready = dict.fromkeys(self._last_ready, now)
            return None
        last_ready, outage = {}, None
        for model in models:
            key = (model["modelName"], model["modelVersion"])
            workers = model["workers"]
            if any(worker["status"] == "READY" for worker in workers) or (key in self._last_ready and not workers):
                last_ready[key] = now
            elif key in self._last_ready:
                last_ready[key] = self._last_ready[key]
                if now - last_ready[key] > self._limit_of(model):
                    outage = (key[0], now - last_ready[key])
        self._last_ready = last_ready
        return outage

    def _limit_of(self, model: Mapping[str, Any]) -> float:
        if self._limit is not None:
            return self._limit
        return 2 * int(model.get("maxRetryTimeoutInSec", 300)) + BEGIN + int(model.get("startupTimeout", 120))
