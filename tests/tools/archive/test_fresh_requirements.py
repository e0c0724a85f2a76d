"""What a file of requirements names, and what of that is installed."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from camserve.tools.archive.fresh.modules import server_modules
from camserve.tools.archive.fresh.requirements import read_requirements

TEXT = """\
# what the handler needs
scipy >= 1.0, \\
  < 99        # of the preprocessing
--index-url https://example.org/simple
-r more.txt
--requirement=more.txt
nosuch-distribution[extra]==1.2 --hash=sha256:0123
absent; python_version < "3"
git+https://example.org/x.git#egg=Named
wheels/given-1.0-py3-none-any.whl
-e git+https://example.org/y.git@main#subdirectory=a&egg=edited
./folder
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file in all of pip's forms, which names another one twice; that names the first one again."""
    (tmp_path / "more.txt").write_text("iniconfig\n-r requirements.txt\n")
    made = tmp_path / "requirements.txt"
    made.write_text(TEXT)
    return made


def test_names_are_read_in_all_of_pips_forms(file: Path) -> None:
    """Options, comments and what does not hold here are left out; an address is taken by its name, where it has one."""
    found = read_requirements(file)
    names = ["scipy", "iniconfig", "nosuch-distribution", "Named", "given", "edited"]
    assert [each.name for each in found.named] == names
    assert found.unnamed == ("./folder",)


def test_what_is_not_installed_is_told_from_what_is_in_another_version(tmp_path: Path, file: Path) -> None:
    """The first cannot be tried, the second is tried in the version that is there."""
    assert read_requirements(file).missing == ["nosuch-distribution[extra]==1.2", "Named", "given", "edited"]
    assert read_requirements(file).others == []
    (tmp_path / "old.txt").write_text("scipy<0.1\niniconfig\n")
    assert read_requirements(tmp_path / "old.txt").missing == []
    assert read_requirements(tmp_path / "old.txt").others == [f"scipy<0.1 ({metadata.version('scipy')} is installed)"]


def test_modules_are_those_of_the_distributions_and_of_what_they_require(tmp_path: Path) -> None:
    """scikit-learn is called otherwise, and brings scipy; a server has neither."""
    (tmp_path / "r.txt").write_text("scikit-learn\n")
    found = read_requirements(tmp_path / "r.txt").modules
    assert {"sklearn", "scipy", "joblib"} <= found
    assert not {"sklearn", "scipy", "joblib"} & server_modules()
    assert "rich" not in found
