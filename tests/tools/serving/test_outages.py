"""When a model counts as given up by TorchServe, so that its server ends and whoever supervises it starts it anew."""

from __future__ import annotations

from typing import Any

from camserve.tools.serving.health.outages import BEGIN, Outages


def version(status: str | None, number: str = "1.0", **settings: int) -> dict[str, Any]:
    """A version of the model `cat` whose one worker has this status; None for no worker."""
    workers = [{"status": status}] if status else []
    return {"modelName": "cat", "modelVersion": number, "workers": workers} | settings


def test_a_limit_that_is_given_counts() -> None:
    """From the moment when a worker was last seen ready; one that comes back in time starts the count anew."""
    outages = Outages(10)
    assert outages.longest([version("READY")], 0) is None
    assert outages.longest([version("UNLOADING")], 10) is None
    assert outages.longest([version("READY")], 11) is None
    assert outages.longest([version("UNLOADING")], 20) is None
    assert outages.longest([version("UNLOADING")], 22) == ("cat", 11)


def test_without_a_limit_torchserve_has_tried_all() -> None:
    """Its own settings count: the last start comes after six tenths of `maxRetryTimeoutInSec` at the latest, and then it may load."""
    for retry, startup, settings in ((300, 120, {}), (10, 900, {"maxRetryTimeoutInSec": 10, "startupTimeout": 900})):
        latest = 1.62 * retry + BEGIN + startup
        outages = Outages()
        outages.longest([version("READY", **settings)], 0)
        assert outages.longest([version("UNLOADING", **settings)], latest) is None
        assert outages.longest([version("UNLOADING", **settings)], latest + 0.4 * retry + 1) is not None


def test_a_new_version_may_take_its_time() -> None:
    """A version that has never been ready does not count, however long; the old one, which is served, does."""
    outages = Outages(10)
    outages.longest([version("READY")], 0)
    for now in (5, 50, 500):
        assert outages.longest([version("READY"), version("UNLOADING", "2.0")], now) is None
    outages.longest([version("READY"), version("READY", "2.0")], 501)
    assert outages.longest([version("READY"), version("UNLOADING", "2.0")], 520) == ("cat", 19)


def test_what_is_taken_away_is_no_outage() -> None:
    """Neither workers that somebody scales to none, nor a version that somebody unregisters and registers again."""
    outages = Outages(10)
    outages.longest([version("READY")], 0)
    assert outages.longest([version(None)], 100) is None
    assert outages.longest([version("UNLOADING")], 105) is None
    assert outages.longest([version("UNLOADING")], 111) is not None
    assert outages.longest([], 112) is None
    assert outages.longest([version("UNLOADING")], 300) is None


def test_one_ready_worker_is_enough() -> None:
    """A model that is served by fewer workers than it should have is served."""
    outages = Outages(10)
    both = version("READY") | {"workers": [{"status": "UNLOADING"}, {"status": "READY"}]}
    outages.longest([both], 0)
    assert outages.longest([both], 100) is None


def test_silence_is_no_outage() -> None:
    """While nobody tells, models are taken to be well: the count starts when somebody tells again."""
    outages = Outages(10)
    outages.longest([version("READY")], 0)
    assert outages.longest(None, 100) is None
    assert outages.longest([version("UNLOADING")], 105) is None
    assert outages.longest([version("UNLOADING")], 111) is not None
