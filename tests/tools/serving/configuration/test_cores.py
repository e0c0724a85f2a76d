"""How many cores a server counts on."""

from __future__ import annotations

from pathlib import Path

from camserve.tools.serving.configuration import cores


def test_cores_of_a_container(tmp_path: Path) -> None:
    """A control group's limit counts, rounded up; without one, the machine's cores."""
    assert cores._quota(tmp_path, 7) == 7
    old = tmp_path / "cpu"
    old.mkdir()
    (old / "cpu.cfs_period_us").write_text("100000\n")
    for text, expected in [("250000\n", 3), ("-1\n", 7)]:
        (old / "cpu.cfs_quota_us").write_text(text)
        assert cores._quota(tmp_path, 7) == expected
    for text, expected in [("150000 100000", 2), ("max 100000", 7), ("nonsense", 7)]:
        (tmp_path / "cpu.max").write_text(text)
        assert cores._quota(tmp_path, 7) == expected
