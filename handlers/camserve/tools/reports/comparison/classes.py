"""Finds the class of one model that is a class of another."""

from __future__ import annotations

from collections import Counter

from camserve.core.labels import Labels
from camserve.core.text import join_names
from camserve.tools.client.client import CamserveError
from camserve.tools.console import ToolError


class Classes:
    """Matches the classes of two models: by label where both have labels, otherwise by index.

    Raises:
        ToolError: one model has no labels, and the numbers of classes differ.
    """

    def __init__(self, first: Labels, second: Labels) -> None:
        self._first = first
        self._second = second
        self._counts = Counter(first.names)
        self._places: dict[str, list[int]] = {}
        for index, name in enumerate(second.names):
            self._places.setdefault(name, []).append(index)
        self.by_label = first.given and second.given
        if not self.by_label and len(first) != len(second):
            raise ToolError(
                f"the first has {len(first)} classes and the second {len(second)}: without labels in both, nobody can tell which "
                "of them are the same"
            )

    def match(self, index: int) -> int:
        """Finds the second model's index of a class of the first.

        Raises:
            CamserveError: it has no such class, or several of that label.
        """
        label = self._first[index]
        if not self.by_label or (index < len(self._second) and self._second[index] == label):
            return index
        places = self._places.get(label, [])
        if not places:
            raise CamserveError(None, "UnknownLabel", f"the second has no class {label!r}")
        if len(places) > 1 or self._counts[label] > 1:
            raise CamserveError(
                None, "UnknownLabel", f"several classes have the label {label!r}, and the two order them differently"
            )
        return places[0]

    def describe(self) -> str:
        """Says how the classes of the two differ; "" where they do not."""
        if self._first.given != self._second.given:
            return "One of them has no labels: classes are compared by their index"
        if not self.by_label or self._first.names == self._second.names:
            return ""
        moved, lacking = 0, []
        for index, label in enumerate(self._first.names):
            try:
                moved += self.match(index) != index
            except CamserveError:
                lacking.append(label)
        words = f"Classes are compared by their label; {moved} of {len(self._first)} have another index in the second"
        without = f"; pictures of these are not compared, and count as failed: {join_names(lacking)}" if lacking else ""
        return f"{words}, {len(lacking)} no counterpart{without}"
