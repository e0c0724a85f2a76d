"""Index and name of a class."""

from __future__ import annotations

import pytest

from camserve.core.errors import ConfigError, RequestError
from camserve.core.labels import Labels

BIRDS = Labels(5, {"0": "crane", "1": "Tabby cat", "2": "tabby", "3": "crane", "4": "Weiß"})


def test_without_a_mapping_the_index_is_the_name() -> None:
    """As the stock handler answers without `index_to_name.json`."""
    labels = Labels(3)

    assert labels.names == ("0", "1", "2")
    assert not labels.given
    assert labels.index("2") == 2


@pytest.mark.parametrize(
    ("target", "index"), [(0, 0), (4, 4), ("Tabby cat", 1), ("tabby", 2), ("TABBY", 2), ("tabby CAT", 1), ("WEISS", 4)]
)
def test_a_label_matches_exactly_then_whatever_its_case(target: int | str, index: int) -> None:
    """Exact matches come first; case folding is Unicode's."""
    assert BIRDS.index(target) == index


@pytest.mark.parametrize("target", [-1, 5, 10**30])
def test_an_index_out_of_range_says_the_range(target: int) -> None:
    """Never class -1, which Python would take for the last."""
    with pytest.raises(RequestError, match="from 0 to 4") as caught:
        BIRDS.index(target)
    assert (caught.value.status, caught.value.kind) == (400, "InvalidOption")


def test_an_unknown_label_names_the_nearest() -> None:
    """A typing mistake is mended by reading the error."""
    with pytest.raises(RequestError, match=r'no class has the label "taby".*"tabby"') as caught:
        BIRDS.index("taby")
    assert (caught.value.status, caught.value.kind) == (400, "UnknownLabel")


@pytest.mark.parametrize("target", ["zzzzqqq", ""])
def test_what_is_like_no_label_is_told_what_is_accepted(target: str) -> None:
    """The range of indices, and a label for an example."""
    with pytest.raises(RequestError, match=r'; give a class index from 0 to 4, or a label such as "crane"'):
        BIRDS.index(target)


@pytest.mark.parametrize(("target", "helped"), [("4", True), ("04", True), ("5", False), ("-1", False), ("9" * 5000, False)])
def test_an_index_in_quotes_is_told_to_be_a_number(target: str, helped: bool) -> None:
    """In JSON a string is always a label."""
    with pytest.raises(RequestError) as caught:
        BIRDS.index(target)
    assert caught.value.kind == "UnknownLabel"
    assert ("send the number 4, not a string" in caught.value.message) == helped


SEVERAL = 'give several as a list: ["crane", "Tabby cat"] (in headers and form fields too, as JSON)'


@pytest.mark.parametrize(
    ("target", "helped"),
    [
        ("1,2", True),
        ("tabby, WEISS", True),
        ("3,crane", True),
        ("[1,2", True),
        (" [tabby]", True),
        ("taby", False),
        ("zzzz[q", False),
        ("tabby, a catt", False),
        ("1,9", False),
        ("tabby,", False),
    ],
)
def test_several_in_one_string_are_told_to_be_a_list(target: str, helped: bool) -> None:
    """Classes between commas, or a bracket, say that several are meant; a comma may be a label's own. The nearest labels stay the end, where the inspector reads them."""
    with pytest.raises(RequestError) as caught:
        BIRDS.index(target)
    assert caught.value.kind == "UnknownLabel"
    assert (SEVERAL in caught.value.message) == helped
    assert SEVERAL not in caught.value.message.partition("the nearest are ")[2]
    assert "; the nearest are" in caught.value.message or "; give a class index from 0 to 4" in caught.value.message


def test_a_label_with_a_comma_is_a_label() -> None:
    """As ImageNet's own are."""
    assert Labels(2, {"0": "tench, Tinca tinca", "1": "[1,2"}).index("Tench, Tinca tinca") == 0


def test_an_ambiguous_label_names_its_indices() -> None:
    """ImageNet has two cranes."""
    with pytest.raises(RequestError, match="ambiguous; give its index: 0 or 3"):
        BIRDS.index("crane")


def test_a_hostile_label_is_repeated_escaped_and_short() -> None:
    """What came is shown, never as a line of its own."""
    with pytest.raises(RequestError) as caught:
        BIRDS.index("x\r\n" * 5000)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("mapping", [{"0": "a"}, {"0": "a", "1": "b", "2": "c"}, {"0": "a", "one": "b"}])
def test_labels_that_do_not_match_the_outputs_are_refused(mapping: dict[str, str]) -> None:
    """Both counts are named, and what is missing or too much."""
    with pytest.raises(ConfigError, match=f"2 outputs and the labels file {len(mapping)} entries; no (label|output) for"):
        Labels(2, mapping)
