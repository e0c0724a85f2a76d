"""When a model counts as given up by TorchServe, so that its server ends and whoever supervises it starts it anew."""

from __future__ import annotations

from typing import Any

from camserve.tools.serving.health.outage_detector import BEGIN, OutageDetector


def version(status: str | None, number: str = "1.0", **settings: int) -> dict[str, Any]:
    """A version of the model `cat` whose one worker has this status; None for no worker."""
    workers = [{"status": status}] if status else []
    return {"modelName": "cat", "modelVersion": number, "workers": workers} | settings


def test_a_limit_that_is_given_counts() -> None:
    """From the moment when a worker was last seen ready; one that comes back in time starts the count anew."""
    outages = OutageDetector(10)
    assert outages.find_outage([version("READY")], 0) is None
    assert outages.find_outage([version("UNLOADING")], 10) is None
    assert outages.find_outage([version("READY")], 11) is None
    assert outages.find_outage([version("UNLOADING")], 20) is None
    assert outages.find_outage([version("UNLOADING")], 22) == ("cat", 11)


def test_without_a_limit_torchserve_has_tried_all() -> None:
    """Its own settings count: the last start comes after six tenths of `maxRetryTimeoutInSec` at the latest, and then it may load."""
    slow: dict[str, Any] = {"maxRetryTimeoutInSec": 10, "startupTimeout": 900}
    for retry, startup, settings in ((300, 120, {}), (10, 900, slow)):
        latest = 1.62 * retry + BEGIN + startup
        outages = OutageDetector()
        outages.find_outage([version("READY", **settings)], 0)
        assert outages.find_outage([version("UNLOADING", **settings)], latest) is None
        assert outages.find_outage([version("UNLOADING", **settings)], latest + 0.4 * retry + 1) is not None


def test_a_new_version_may_take_its_time() -> None:
    """A version that has never been ready does not count, however long; the old one, which is served, does."""
    outages = OutageDetector(10)
    outages.find_outage([version("READY")], 0)
    for now in (5, 50, 500):
        assert outages.find_outage([version("READY"), version("UNLOADING", "2.0")], now) is None
    outages.find_outage([version("READY"), version("READY", "2.0")], 501)
    assert outages.find_outage([version("READY"), version("UNLOADING", "2.0")], 520) == ("cat", 19)


def test_what_is_taken_away_is_no_outage() -> None:
    """Neither workers that somebody scales to none, nor a version that somebody unregisters and registers again."""
    outages = OutageDetector(10)
    outages.find_outage([version("READY")], 0)
    assert outages.find_outage([version(None)], 100) is None
    assert outages.find_outage([version("UNLOADING")], 105) is None
    assert outages.find_outage([version("UNLOADING")], 111) is not None
    assert outages.find_outage([], 112) is None
    assert outages.find_outage([version("UNLOADING")], 300) is None


def test_one_ready_worker_is_enough() -> None:
    """A model that is served by fewer workers than it should have is served."""
    outages = OutageDetector(10)
    both = version("READY") | {"workers": [{"status": "UNLOADING"}, {"status": "READY"}]}
    outages.find_outage([both], 0)
    assert outages.find_outage([both], 100) is None


def test_silence_is_no_outage() -> None:
    """While nobody tells, models are taken to be well: the count starts when somebody tells again."""
    outages = OutageDetector(10)
    outages.find_outage([version("READY")], 0)
    assert outages.find_outage(None, 100) is None
    assert outages.find_outage([version("UNLOADING")], 105) is None
    assert outages.find_outage([version("UNLOADING")], 111) is not None
