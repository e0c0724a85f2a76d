"""What an archive asks TorchServe to install: what a model's library needs and an archive cannot carry."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from camserve.tools.console import ToolError
from camserve.tools.packaging.contents.requirements import add_requirements

SCIPY = f"scipy=={metadata.version('scipy')}\n"


def test_a_library_is_required_at_the_release_that_is_installed(tmp_path: Path) -> None:
    """In a file of its own, or behind what the user's asks for."""
    assert add_requirements(["scipy"], None, tmp_path).read_text() == SCIPY
    with pytest.raises(ToolError, match=r"another file of the archive is named requirements\.txt"):
        add_requirements(["scipy"], None, tmp_path)
    (tmp_path / "r.txt").write_text("numpy")
    assert add_requirements(["scipy"], tmp_path / "r.txt", tmp_path) == tmp_path / "r.txt"
    assert (tmp_path / "r.txt").read_text() == f"numpy\n{SCIPY}"
