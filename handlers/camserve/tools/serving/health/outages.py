"""Notices models that TorchServe has given up: it starts no worker of theirs any more, and requests to them wait without end.

When a worker ends, TorchServe starts another, after waits that grow like Fibonacci's numbers, until the first failure is
`maxRetryTimeoutInSec` ago. The last start may come six tenths of that time later, and takes at most two minutes to begin and
`startupTimeout` to load. A model that is without a ready worker for longer than all that will have none until somebody starts
the server anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

BEGIN = 120
"""Seconds that TorchServe waits for a worker's first word."""


class Outages:
    """When each version of each model had a ready worker, and whether that is more than `limit` seconds ago (None: longer than
    TorchServe tries)."""

    def __init__(self, limit: float | None = None) -> None:
        self._limit = limit
        self._served: dict[tuple[str, str], float] = {}

    def longest(self, models: Iterable[Mapping[str, Any]] | None, now: float) -> tuple[str, float] | None:
        """A model that is beyond the limit, and its seconds without a ready worker.

        Versions that have had none yet do not count (one that is being registered), nor do those whose workers somebody took
        away. `models` is None where nobody tells: then all are taken to be well.
        """
        if models is None:
            self._served = dict.fromkeys(self._served, now)
            return None
        served, over = {}, None
        for model in models:
            key = (model["modelName"], model["modelVersion"])
            workers = model["workers"]
            if any(worker["status"] == "READY" for worker in workers) or (key in self._served and not workers):
                served[key] = now
            elif key in self._served:
                served[key] = self._served[key]
                if now - served[key] > self._limit_of(model):
                    over = (key[0], now - served[key])
        self._served = served
        return over

    def _limit_of(self, model: Mapping[str, Any]) -> float:
        if self._limit is not None:
            return self._limit
        return 2 * int(model.get("maxRetryTimeoutInSec", 300)) + BEGIN + int(model.get("startupTimeout", 120))
