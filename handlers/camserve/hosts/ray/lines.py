"""The last lines of a replica's log, for whoever watches the cluster; Serve's own file of the replica gets them too."""

from __future__ import annotations

import logging
from collections import deque

SERVE = logging.getLogger("ray.serve")
"""Writes the file that Serve keeps for each replica."""
MOST = 2000


class Lines(logging.Handler):
    """Keeps lines, and takes what this process's camserve has to say.

    Args:
        replica: Serve's name for it, which stands before each line.
    """

    def __init__(self, replica: str) -> None:
        super().__init__(logging.INFO)
        self._replica = replica
        self._kept: deque[str] = deque(maxlen=MOST)
        self._count = 0
        ours = logging.getLogger("camserve")
        ours.addHandler(self)
        ours.setLevel(logging.INFO)
        ours.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record of the logging module, whose text may have several lines."""
        for line in self.format(record).splitlines():
            self.add(f"{record.levelname} {line}")

    def add(self, line: str) -> None:
        """Take a line."""
        self._kept.append(f"[{self._replica}] {line}")
        self._count += 1
        SERVE.info(line)

    def since(self, position: int) -> tuple[tuple[str, ...], int]:
        """Return the lines after a position, and the position after them; positions start with 0."""
        new = max(0, min(len(self._kept), self._count - position))
        return tuple(self._kept)[len(self._kept) - new :], self._count
