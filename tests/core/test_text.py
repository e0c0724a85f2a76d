"""Text of messages: values shown, names listed, the nearest names."""

from __future__ import annotations

import difflib
from typing import Any

import pytest

from camserve.core.text import find_nearest, join_names, show


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        ('a "b"\r\n\x1b[31m', '"a \\"b\\"\\r\\n\\u001b[31m"'),
        ("Weiß", '"Wei\\u00df"'),
        (b"\xffx", '"\\ufffdx"'),
        ([1, 2], "a list of 2"),
        ({"a": 1}, "an object of 1"),
        ("x" * 1000, '"' + "x" * 56 + "..."),
        (object, "type"),
    ],
)
def test_what_came_is_shown_on_one_short_line_in_ascii(value: Any, text: str) -> None:
    """Never a line of its own, never longer than asked for, never an address."""
    assert show(value) == text
    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= 60


def test_names_are_listed_with_or() -> None:
    """The rest is counted."""
    assert join_names([]) == ""
    assert join_names(["a"]) == "a"
    assert join_names("abc") == "a, b or c"
    assert join_names(range(20), 3) == "0, 1, 2 or 17 more"


def test_the_nearest_names_come_best_first_whatever_their_case() -> None:
    """As they are spelt in the list; nothing at all where nothing is like it."""
    assert find_nearest("TABBI", ["tabby", "Tabby cat", "dog"]) == ["tabby", "Tabby cat"]
    assert find_nearest("taby", ["dog", "crane"]) == []
    assert find_nearest("x", []) == []


class Counting(difflib.SequenceMatcher[str]):
    """Counts the names that are compared, and their letters."""

    names = 0
    letters = 0

    def set_seq1(self, a: Any) -> None:
        """A name to compare."""
        Counting.names += bool(a)
        Counting.letters += len(a)
        super().set_seq1(a)


@pytest.mark.parametrize("asked", ["spotted sandpipr 12345 of the nrth", "s" * 1_000_000])
def test_a_name_is_compared_with_few_of_very_many(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    """22,000 names that are all alike: at most a hundred are compared in full, 80 letters of each."""
    names = tuple(f"spotted sandpiper {number:05d} of the north " + "and the south " * 9 for number in range(22_000))
    monkeypatch.setattr(difflib, "SequenceMatcher", Counting)
    Counting.names = Counting.letters = 0

    find_nearest(asked, names)

    assert 0 < Counting.names <= 100
    assert Counting.letters <= 100 * 80


def test_the_right_name_is_among_the_few() -> None:
    """In a list of 22,000 a slip of the pen still finds its name."""
    names = tuple(f"{colour} {bird} {number}" for number in range(440) for colour in COLOURS for bird in BIRDS)

    assert find_nearest("gren sandpiper 217", names, 1) == ["green sandpiper 217"]
    assert find_nearest("BLACK TERN42", names, 1) == ["black tern 42"]
    assert find_nearest("whtie storck 7", names, 1) == ["white stork 7"]


COLOURS = ("green", "black", "white", "grey", "red", "blue", "little", "great", "common", "northern")
BIRDS = ("sandpiper", "tern", "stork", "heron", "egret")


def test_names_beyond_the_limit_are_not_spelled() -> None:
    """A body may hold millions of keys, and spelling each takes a microsecond."""
    spelled: list[object] = []

    def spell(name: object) -> str:
        spelled.append(name)
        return f"<{name}>"

    assert join_names(range(10**6), 3, spell) == "<0>, <1>, <2> or 999997 more"
    assert spelled == [0, 1, 2]
