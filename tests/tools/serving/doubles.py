"""Stands in for a running server where tests need none."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
from tests.support.processes.serving import CONFIG

from camserve.tools.commands.serve import Server
from camserve.tools.serving.configuration.addresses import Addresses, Settings
from camserve.tools.serving.configuration.store import select


class ScriptedManagement:
    """A management address that gives these answers, one after the other and the last again and again."""

    last_error = "ValueError: nobody knows"

    def __init__(self, *answers: list[dict[str, Any]] | None) -> None:
        self.answers = deque(answers)

    def fetch_models(self) -> list[dict[str, Any]] | None:
        """The next answer."""
        return self.answers.popleft() if len(self.answers) > 1 else self.answers[0]


class Running:
    """A process that neither ends nor has workers that could."""

    ended = False
    lines: Sequence[str] = ("its only words",)

    def children(self, recursive: bool = True) -> set[psutil.Process]:
        """None."""
        return set()


def versions(status: str) -> list[dict[str, Any]]:
    """The model `quick`, whose one worker has this status."""
    worker = {"status": status, "pid": 0}
    return [{"modelName": "quick", "modelVersion": "1.0", "minWorkers": 1, "workers": [worker]}]


def server_hearing(store: Path, management: ScriptedManagement, **limits: float) -> Server:
    """A server that hears this of its management address, without one that runs."""
    server = Server(store, ["quick"], config=CONFIG, **limits)  # type: ignore[arg-type]
    server._archives = select(store, ["quick"])
    server._addresses = Addresses(
        (("http", "127.0.0.1", 1), ("http", "127.0.0.1", 2), ("http", "127.0.0.1", 3)), "127.0.0.1", (4, 5)
    )
    server._management, server._process = management, Running()  # type: ignore[assignment]
    return server


def settings(**values: str) -> Settings:
    """A configuration of these keys."""
    return Settings("", MappingProxyType(values))
