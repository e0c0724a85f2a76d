"""Numbers and choices by name, drawn once and then varied: what the search changes, and what makes a find repeatable."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Recipe:
    """What a file or a body is made of, by name. A name that is asked for the first time is drawn."""

    draw: random.Random
    values: dict[str, Any] = field(default_factory=dict)

    def number(self, name: str, low: int, high: int) -> int:
        """A whole number from `low` to `high`, every order of magnitude as often as the others; a third of them `low`."""
        if name not in self.values:
            span = math.log((high + 1) / max(1, low))
            self.values[name] = low if self.draw.random() < 1 / 3 else int(max(1, low) * math.exp(self.draw.random() * span))
        return int(min(high, max(low, self.values[name])))

    def choice(self, name: str, options: Sequence[T]) -> T:
        """One of several."""
        if name not in self.values:
            self.values[name] = self.draw.randrange(len(options))
        return options[self.values[name] % len(options)]

    def flag(self, name: str) -> bool:
        """True every second time."""
        return self.choice(name, (False, True))

    def varied(self, seed: int) -> Recipe:
        """Another recipe, in which some of the values are other ones."""
        draw = random.Random(seed)
        values = dict(self.values)
        for name in draw.sample(sorted(values), min(len(values), draw.choice((1, 1, 2, 3)))):
            if draw.random() < 0.3:
                del values[name]
            else:
                values[name] = max(0, int(values[name] * draw.choice((0.5, 0.8, 1.3, 2, 4))) + draw.choice((-1, 0, 1)))
        return Recipe(draw, values)
