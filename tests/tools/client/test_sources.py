"""Archives that are loaded here and asked as servers are."""

from __future__ import annotations

from pathlib import Path

from tests.support.build import PLAIN, encoded, mar, noise

from camserve.tools.client.sources import load, unpack


def test_whoever_needs_no_checks_leaves_out_those_that_an_archive_makes_by_itself(tmp_path: Path) -> None:
    """One that is asked for is made all the same."""
    archive = mar(tmp_path, "checked", explain={**PLAIN, "checks": True})
    picture = bytes(encoded(noise(64, 64)))
    with unpack(archive) as opened:
        usual, bare = (load(archive, opened, True, lambda _line: None, checks=checks) for checks in (True, False))

        assert "check" in usual.ask(picture, {})["explanations"][0]
        assert "check" not in bare.ask(picture, {})["explanations"][0]
        assert "check" in bare.ask(picture, {"check": True})["explanations"][0]
