"""The command `camserve`: how it is called, and its help."""

from __future__ import annotations

import importlib

import pytest

from camserve.tools import console
from camserve.tools.cli import COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_call_themselves_as_they_are_called(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the repository by their script, and elsewhere by the installed command."""
    parser = importlib.import_module(f"camserve.tools.commands.{command}").parser
    assert parser().prog == f"scripts/{command}.py"
    monkeypatch.setattr(console, "__file__", "/usr/lib/python3/site-packages/camserve/tools/console.py")
    assert parser().prog == f"camserve {command}"
