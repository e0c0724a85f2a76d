"""Checks what a host of our own counts: workers that were started again, and requests that got no answer of theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from camserve.tools.watching.finding import Finding

HOST = "camserve"
"""What the management address of a host of ours calls it."""
MISSED = 0.01
"""The share of requests without an answer from which it is advised, as the alert CamserveRefused does."""

WORDS = {
    "full": ("found the queue full", "it is asked for more than it can answer: another server, or fewer requests"),
    "late": ("were not answered within responseTimeout", "lower jobQueueSize, so that they are refused at once, or add a server"),
    "lost": ("were with a worker that ended", "the log says why; a kill without a word is a lack of memory"),
    "no_worker": ("found no worker", "the log says why the model does not load again"),
}
"""What became of requests by the reason that the server counts, and what to do. Who goes away has no need of an answer."""


def check_host(name: str, description: Mapping[str, Any], exposition: str) -> Iterator[Finding]:
    """Checks the counts of one version, where a host of ours serves it and tells them.

    Args:
        name: the model and its version, as findings call it.
        description: the management address's.
        exposition: the text of the metrics address.
    """
    if description.get("host") != HOST:
        return
    wanted = {"model_name": str(description.get("modelName")), "model_version": str(description.get("modelVersion"))}

    def total(metric: str, **labels: str) -> float:
        samples = re.findall(rf"^{metric}\{{([^}}]*)\}} (\S+)", exposition, re.MULTILINE)
        series = [(dict(re.findall(r'(\w+)="([^"]*)"', given)), float(value)) for given, value in samples]
        return sum(value for given, value in series if given.items() >= {**wanted, **labels}.items())

    came = total("ts_inference_requests_total")
    restarts = total("camserve_host_worker_restarts_total")
    if restarts:
        remedy = "the log says why each ended; one that is killed without a word lacked memory"
        yield Finding("advice", f"{name}: its workers were started again {restarts:.0f} times", remedy)
    for reason, (what, remedy) in WORDS.items():
        count = total("camserve_host_unanswered_total", reason=reason)
        if count > MISSED * max(came, 1):
            yield Finding("advice", f"{name}: {count:.0f} of {came:.0f} requests {what}", remedy)
