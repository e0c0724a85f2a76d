"""Which probes a layer does not see: a part that is cut off, or patches that a deep network hardly answers."""

from __future__ import annotations

import pytest
import torch

from camserve.capture.alignment.sight import count_lost

PLACES = [((row + 0.5) / 6, (column + 0.5) / 6) for row in range(6) for column in range(6)]


@pytest.mark.parametrize(
    ("seen", "weak", "lost"),
    [
        (lambda row, _: row < 4 / 6, 1e-5, 12),
        (lambda row, column: 0.2 < row < 0.8 and 0.2 < column < 0.8, 1e-5, 20),
        (lambda row, column: round(6 * row + 6 * column) % 2 == 0, 1e-5, 0),
        (lambda row, column: round(6 * row + 6 * column) % 2 == 0, 0.0, 18),
        (lambda *_: True, 1e-5, 0),
    ],
    ids=["rows cut off", "all around cut off", "weak among others", "nothing among others", "all"],
)
def test_what_is_cut_off_lies_outside_or_changes_nothing(seen: object, weak: float, lost: int) -> None:
    """What is weak among others is seen: a network of many layers answers some patches a million times as much as others."""
    changes = torch.tensor([1.0 if seen(*place) else weak for place in PLACES])  # type: ignore[operator]
    assert count_lost(changes[:, None, None].expand(-1, 2, 2), PLACES) == lost
