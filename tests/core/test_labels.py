"""Index and name of a class."""

from __future__ import annotations

import re

import pytest

from camserve.core.errors import ConfigError, RequestError
from camserve.core.labels import Labels, parse_labels

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


FIVE = dict(enumerate(["cat", "dog", "fox", "hen", "owl"]))

FORMS = {
    "index to name": '{"0": "cat", "1": "dog", "2": "fox", "3": "hen", "4": "owl"}',
    "as TorchServe's examples have it": '{"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["x"], "3": ["y"], "4": ["z"]}',
    "an older form of TorchServe's": '{"object_type_names": ["cat", "dog", "fox", "hen", "owl"]}',
    "a list": '["cat", "dog", "fox", "hen", "owl"]',
    "a list of lists": '[["n1", "cat"], ["n2", "dog"], ["n3", "fox"], ["n4", "hen"], ["n5", "owl"]]',
    "ImageFolder's": '{"owl": 4, "hen": 3, "fox": 2, "dog": 1, "cat": 0}',
    "a larger document": '{"epochs": 3, "class_to_idx": {"cat": 0, "dog": 1, "fox": 2, "hen": 3, "owl": 4}}',
    "a transformers configuration": (
        '{"model_type": "vit", "label2id": {"LABEL_0": 0}, "id2label": {"4": "owl", "3": "hen", "2": "fox", "1": "dog", "0": "cat"}}'
    ),
    "lines": "cat\ndog\nfox\nhen\nowl\n\n",
    "lines of Windows": "cat\r\ndog \r\nfox\r\nhen\r\nowl",
    "numbered lines": "1: dog\n0: cat\n2: fox\n3: hen\n4: owl",
    "numbered lines, tabs": "0\tcat\n1\tdog\n2\tfox\n3\then\n4\towl",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_labels_are_read_as_people_have_them(form: str, encoding: str) -> None:
    """Each class's name, whatever the form, with a byte order mark or without."""
    found = parse_labels(FORMS[form].encode(encoding))
    if form == "as TorchServe's examples have it":
        assert found == {"0": "cat", "1": "dog", "2": "x", "3": "y", "4": "z"}
    else:
        assert found == {str(index): name for index, name in FIVE.items()}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("3 wheels\ncar\nvan", ["3 wheels", "car", "van"]),
        ("class 0\nclass 1\nclass 2", ["class 0", "class 1", "class 2"]),
        ("tench, Tinca tinca\ngoldfish, Carassius auratus", ["tench, Tinca tinca", "goldfish, Carassius auratus"]),
        ('{"0": 0, "1": 1, "10": 2, "2": 3}', ["0", "1", "10", "2"]),  # as ImageFolder sorts folders
        ('{"5": 0, "7": 1, "10": 2}', ["5", "7", "10"]),
        ('{"00": "a", "01": "b"}', ["a", "b"]),
        ("age", ["age"]),
    ],
)
def test_numbers_and_commas_in_names_are_left_alone(text: str, names: list[str]) -> None:
    """Where they cannot be indices."""
    assert list(parse_labels(text.encode()).values()) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("1 cat\n2 dog\n3 fox", "these are not 0 to 2, each once, so it is not known whether"),
        ("index,name\n0,cat\n1,dog", "nearly every line begins with a number"),
        ("dog,1\ncat,0", "each line ends in a number"),
        ("cat 1\ndog 2", "each line ends in a number"),
        ("cat,dog,fox", "one line with commas"),
        ("cat\n\ndog", "line 2 is empty"),
        ('{"2": 0, "0": 1, "1": 2}', r'it maps numbers to numbers, .*: \{"0": "2", ...\}, or the other way round'),
        ('{"cat": 1, "dog": 2}', "these are not 0 to 1, each once"),
        ('{"cat": 0, "dog": 0}', "these are not 0 to 1, each once"),
        ('{"0": "cat", "0": "dog"}', 'the key "0" stands there twice'),
        ('{"0": "cat", "00": "dog"}', "the same index stands there twice"),
        ('{"0": "cat", "1": 3}', 'the entry "1": expected a name'),
        ('{"0": "cat", "one": "dog"}', 'expected an index before each name, got "one"'),
        ('["cat", 3]', "entry 1: expected a name"),
        ("{'cat': 0}", "not valid JSON"),
        ('{"classes": ["a", "b"], "class_to_idx": {"b": 0, "a": 1}}', "under class_to_idx or classes, and they differ"),
        ("[]", "names no class"),
        ("{}", "no entries"),
    ],
)
def test_labels_that_can_be_read_in_two_ways_are_refused(text: str, message: str) -> None:
    """With what to write instead."""
    with pytest.raises(ConfigError, match=message) as caught:
        parse_labels(text.encode())
    assert re.search(r"\[\"cat\", \"dog\"|one name a line|the other way round", str(caught.value))


def test_labels_in_another_encoding_are_refused() -> None:
    """Not read as other letters."""
    with pytest.raises(ConfigError, match=r"not text in UTF-8 \(byte 1\); save it as UTF-8"):
        parse_labels("Löwe\nHund".encode("latin-1"))


def test_labels_that_count_from_one_are_named_as_such() -> None:
    """The commonest reason why they do not match."""
    with pytest.raises(ConfigError, match="the labels count from 1, and the classes from 0"):
        Labels(2, {"1": "cat", "2": "dog"})
