"""Which imports of a model's file count as its needs."""

from __future__ import annotations

from importlib.machinery import PathFinder

from camserve.tools.archive.fresh.needs import Needs


def test_only_what_the_model_imports_is_needed() -> None:
    """A module that torch tries for its own use stays hidden; one that the model's file imports is found, and what that imports."""
    needs = Needs({"model"}, frozenset({"torch"}), PathFinder.find_spec)
    for importer, seen in (("torch.utils", False), ("model", True), ("sortedcontainers.sortedlist", True)):
        asked = "iniconfig" if importer.startswith("sorted") else "sortedcontainers"
        assert eval(f"visible('{asked}')", {"__name__": importer, "visible": needs.visible}) is seen
    assert needs.modules == {"sortedcontainers": "model", "iniconfig": "sortedcontainers"}
