"""Classes of two models matched."""

from __future__ import annotations

import pytest

from camserve.core.labels import Labels
from camserve.tools.client.client import CamserveError
from camserve.tools.console import ToolError
from camserve.tools.reports.comparison.classes import Classes


def labels(*names: str) -> Labels:
    """Classes of these names; none: numbers."""
    return Labels(len(names), {str(index): name for index, name in enumerate(names)})


def test_classes_are_found_by_their_label() -> None:
    """Wherever they stand."""
    classes = Classes(labels("cat", "dog", "cow"), labels("cow", "cat", "horse", "dog"))

    assert [classes.match(index) for index in range(3)] == [1, 3, 0]
    assert "3 of 3 have another index in the second, 0 no counterpart" in classes.describe()


def test_a_class_that_the_second_lacks_is_told() -> None:
    """Pictures of it count as failed."""
    classes = Classes(labels("cat", "dog"), labels("dog", "horse"))

    with pytest.raises(CamserveError, match="the second has no class 'cat'"):
        classes.match(0)
    assert classes.describe().endswith("1 no counterpart; pictures of these are not compared, and count as failed: cat")


def test_of_several_classes_with_one_label_none_is_guessed() -> None:
    """ImageNet has two cranes. Where both have them at the same places they are the same; anywhere else nobody knows."""
    cranes = labels("crane", "cat", "crane")
    same, longer = Classes(cranes, labels("crane", "cat", "crane")), Classes(cranes, labels("crane", "tabby", "crane", "cat"))
    assert [same.match(index) for index in range(3)] == [0, 1, 2]
    assert same.describe() == ""
    assert [longer.match(index) for index in range(3)] == [0, 3, 2]

    for first, second in ((cranes, labels("cat", "crane", "dog")), (labels("crane", "cat"), labels("cat", "crane", "crane"))):
        with pytest.raises(CamserveError, match="several classes have the label 'crane'"):
            Classes(first, second).match(0)


def test_without_labels_classes_are_found_by_their_index() -> None:
    """If there are as many; otherwise they are not the same ones, and nothing is compared."""
    bare, named = Labels(3), labels("cat", "dog", "cow")

    assert [Classes(bare, named).match(index) for index in range(3)] == [0, 1, 2]
    assert "One of them has no labels" in Classes(named, bare).describe()
    assert Classes(bare, Labels(3)).describe() == ""
    for first, second in ((Labels(2), Labels(3)), (bare, labels("cat", "dog")), (labels("cat", "dog"), bare)):
        with pytest.raises(ToolError, match=r"the first has \d classes and the second \d: without labels in both"):
            Classes(first, second)
