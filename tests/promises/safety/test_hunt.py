"""The hunt for requests that keep a worker busy (`benchmarks/abuse/hunt`): what it makes can be made again, and it sees what costs."""

from __future__ import annotations

import random
from typing import Any

import pytest
from benchmarks.abuse.hunt.bodies import BODIES
from benchmarks.abuse.hunt.files import FILES
from benchmarks.abuse.hunt.grammar import Recipe
from benchmarks.abuse.hunt.run import Find, Hunter, answer, hunt
from tests.support.build import archive

from camserve.pictures.files.formats import sniff
from camserve.tools.archive.archive import load_service

SMALL = {
    "pixels": 900,
    "side": 20,
    "instances": 2,
    "count": 50,
    "tags": 3,
    "filling": 99,
    "more": 0,
    "floods": 5,
    "runs": 90,
    "length": 9,
}
SMALL |= {
    "segments": 2,
    "units": 3,
    "scans": 1,
    "others": 2,
    "parts": 3,
    "blocks": 3,
    "extensions": 2,
    "junk": 0,
    "data": 3,
    "pieces": 3,
}


@pytest.mark.parametrize("kind", FILES)
def test_files_are_of_their_format_and_can_be_made_again(kind: str) -> None:
    """From the values of a recipe alone."""
    first = Recipe(random.Random(1), dict(SMALL))
    data = FILES[kind](first)

    assert sniff(data) == kind
    assert FILES[kind](Recipe(random.Random(2), dict(first.values))) == data
    assert first.varied(3).values != first.values


@pytest.mark.parametrize("kind", BODIES)
def test_each_kind_of_request_is_answered(kind: str, service: Any) -> None:
    """With what it cost, what came, and the values that make it again."""
    found = answer(kind, Recipe(random.Random(4), dict(SMALL)), service)

    assert found.seconds > 0
    assert found.said[:3] in {"200", "400", "413"}
    assert BODIES[kind](Recipe(random.Random(5), found.values)).raw == BODIES[kind](Recipe(random.Random(6), found.values)).raw


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small classifier."""
    return load_service(archive(tmp_path_factory.mktemp("one") / "small", classes=7))


def test_the_dearest_are_kept_and_varied(monkeypatch: pytest.MonkeyPatch) -> None:
    """What costs more comes to the top; a recipe that was given is part of it."""
    asked: list[dict[str, Any]] = []

    def cost(_: Hunter, kind: str, values: dict[str, Any], seed: int) -> Find:
        asked.append(values)
        return Find(float(len(asked)), kind, {"count": seed}, 1, "200")

    monkeypatch.setattr(Hunter, "ask", cost)
    found = hunt(Hunter(1), 0.001, 0, lambda *_: None)

    assert all(
        [each.seconds for each in finds] == sorted((each.seconds for each in finds), reverse=True) for finds in found.values()
    )
    assert any(asked)
    assert max(len(finds) for finds in found.values()) <= 12
