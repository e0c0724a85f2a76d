"""What tests of evidence share: a folder in which a camera was moved, and a browser that looks at it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from tests.support.browser import Visitor, visiting
from tests.support.monitoring import evidence
from tests.support.monitoring.evidence import keep, look_at, make_reference, now

from camserve.monitoring.evidence.records import Reason
from camserve.monitoring.reference import Reference
from camserve.tools.commands.inspector import Proxy, proxy
from camserve.tools.watching.evidence import periods
from camserve.tools.watching.evidence.pages.server import Pages
from camserve.tools.watching.evidence.sources import open_evidence

RARE = Reason("rare", {"statistic": "centroid_x", "bin": 9, "share": 0.004, "side": "high"})


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Of three classes."""
    return make_reference()


@pytest.fixture(scope="module", autouse=True)
def moment() -> Iterator[datetime]:
    """When all of a module's tests are run, for those who look an hour back, however long they take."""
    stopped = now()

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return stopped.astimezone(tz)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "STOPPED", stopped)
        patch.setattr(periods, "datetime", Stopped)
        yield stopped


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory, reference: Reference, moment: datetime) -> Path:
    """An hour in which a third of the pictures of one class were looked at further to the right; and some that are unusual."""
    to = tmp_path_factory.mktemp("evidence")
    begin = moment - timedelta(minutes=50)
    keep(to, look_at([place % 3 for place in range(300)], seed=2), reference, begin=begin)
    keep(to, look_at([0] * 60, seed=3, shift=0.25), reference, begin=begin + timedelta(minutes=10))
    keep(to, look_at([0, 3, 1, 2], seed=4, shift=0.4), reference, begin=begin + timedelta(minutes=30), reasons=[RARE])
    return to


@pytest.fixture
def look(chromium: Browser) -> Iterator[Visitor]:  # of the browser that runs
    """Opens visits to any address."""
    with visiting("file://", reduced_motion="reduce") as make:
        yield make


@pytest.fixture
def serve_pages() -> Iterator[Callable[..., Proxy]]:
    """Serves what was kept in a folder, as `scripts/inspector.py --evidence` does."""
    servers: list[Proxy] = []

    def start(to: Path, url: str = "http://127.0.0.1:9/explanations/cats", **options: Any) -> Proxy:
        server = proxy(url)
        model = url.rpartition("/")[2]
        server.pages = Pages(open_evidence(str(to)), model, f"/explanations/{model}", **options)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
