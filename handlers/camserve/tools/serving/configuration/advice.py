"""Warns of settings that may do harm: who reaches the server, and what its memory holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from camserve.core.text import show
from camserve.tools.serving.configuration.addresses import OURS, Addresses, Settings, is_loopback

PROXY = f"{OURS}proxy_authenticates"
UPLOAD = 3_000_000
"""Bytes of a photograph as telephones take it."""
BESIDES = 200_000_000
"""Bytes of Java's heap for all but waiting requests: itself, and the batches that go to workers."""
QUEUE = ("pendingRequests", "remainingCapacity")


def warn_of_exposure(settings: Settings, addresses: Addresses) -> list[str]:
    """Warns where anybody may use the models."""
    hosts = dict.fromkeys([addresses.http[0][1], addresses.grpc_host])
    public = [host for host in hosts if not is_loopback(host)]
    if not public or not settings.is_set("disable_token_authorization") or settings.is_set(PROXY):
        return []
    return [
        f"whoever reaches {' or '.join(public)} uses the models, because no token is wanted: write "
        f"disable_token_authorization=false, or {PROXY}=true where a proxy in front asks who it is"
    ]


def required_heap(requests: int) -> int:
    """Returns the bytes of heap that hold so many waiting photographs: twice their size, since each needs contiguous room, and
    `BESIDES` (measured by `benchmarks/survival/run.py --only crammed`)."""
    return 2 * requests * UPLOAD + BESIDES


def warn_of_memory(models: Iterable[Mapping[str, Any]], heap: int) -> list[str]:
    """Warns where queues full of photographs do not fit into Java's `heap` (bytes; 0 where it is not known)."""
    queues = [(sum(model["jobQueueStatus"][key] for key in QUEUE), str(model["modelName"])) for model in models]
    together = sum(length for length, _ in queues)
    if not heap or required_heap(together) <= heap:
        return []
    longest, name = max(queues)
    return [
        f"{together} requests may wait, {longest} of them for {show(name)}. As photographs of {UPLOAD / 1e6:g} MB they "
        f"need {required_heap(together) / 1e9:.1f} GB of Java's heap, which ends at {heap / 1e9:.1f} GB, and the server with it: "
        "lower job_queue_size, or the archives' jobQueueSize, or give Java more (vmargs=-Xmx...)"
    ]
