"""A server that the tests did not start: that of CAMSERVE_URL, whose log is at CAMSERVE_LOG."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import requests
from tests.support.processes.waiting import HANG

from camserve.tools.commands.serve import Server


class ExternalServer:
    """What tests ask of a `Server`; management and metrics are, by TorchServe's habit, on the two ports above."""

    def __init__(self, url: str, log: Path | None = None) -> None:
        parts = urlsplit(url)
        self.url = url.rstrip("/")
        self._log = log or (Path(os.environ["CAMSERVE_LOG"]) if os.environ.get("CAMSERVE_LOG") else None)
        self.management_url, self.metrics_url = (f"http://{parts.hostname}:{(parts.port or 80) + step}" for step in (1, 2))

    @property
    def pids(self) -> list[int]:
        """The workers', as the server itself counts them."""
        names = [
            each["modelName"] for each in requests.get(f"{self.management_url}/models?limit=100", timeout=HANG).json()["models"]
        ]
        described = [requests.get(f"{self.management_url}/models/{name}", timeout=HANG).json()[0] for name in names]
        return sorted(worker["pid"] for each in described for worker in each["workers"])

    @property
    def lines(self) -> list[str]:
        """Its log so far, where the tests are told where it is."""
        return self._log.read_text("utf-8").splitlines() if self._log else []


def external_server(url: str) -> Server:
    """The server at `url`."""
    return cast(Server, ExternalServer(url))
