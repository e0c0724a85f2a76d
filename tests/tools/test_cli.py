"""The command `camserve`: how it is called, and its help."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from camserve.tools import console
from camserve.tools.cli import COMMANDS, place_of
from camserve.tools.console import Progress

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_call_themselves_as_they_are_called(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the repository by their script, and elsewhere by the installed command."""
    parser = importlib.import_module(place_of(command)).parser
    assert parser().prog == f"scripts/{command}.py"
    monkeypatch.setattr(console, "__file__", "/usr/lib/python3/site-packages/camserve/tools/console.py")
    assert parser().prog == f"camserve {command}"


def test_help_is_quick() -> None:
    """No command imports what takes seconds before its command line is read."""
    code = """
import sys
from importlib import import_module
for name in ("torch", "torchvision", "cv2", "ts", "captum"):
    sys.modules[name] = None
from camserve.tools.cli import COMMANDS, place_of, usage
print(len(usage()) and min(len(import_module(place_of(name)).parser().format_help()) for name in COMMANDS))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT / "handlers")
    assert ran.stderr == ""
    assert int(ran.stdout) > 200


def test_a_long_step_shows_which_part_is_being_done() -> None:
    """On a terminal, with the seconds so far; nothing elsewhere."""
    for terminal in (True, False):
        shown = io.StringIO()
        progress = Progress(Console(file=shown, force_terminal=terminal, width=120, color_system=None))
        with progress.step("Find the layers") as tell:
            tell("trying 3 maps")
            progress.console.print("")  # draws the line anew
        assert ("Find the layers (0 s): trying 3 maps ..." in shown.getvalue()) is terminal
        assert ("✓ Find the layers" in shown.getvalue()) is terminal
