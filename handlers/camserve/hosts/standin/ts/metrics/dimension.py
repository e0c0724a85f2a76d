"""A label of a metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Dimension:
    """A label's name and value."""

    name: str
    value: Any

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"
