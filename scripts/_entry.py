"""Runs one of the package's tools from a clone, with the clone's `.venv` where this Python lacks what the tools need."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(command: str, *arguments: str) -> None:
    """Runs `camserve COMMAND` with these arguments and this process's, and ends the process with its status."""
    python = ROOT / ".venv" / "bin" / "python"
    if find_spec("torch") is None or not (find_spec("model_archiver") or find_spec("uvicorn")):  # of the extras serve and asgi
        if not python.exists() or Path(sys.prefix) == ROOT / ".venv":
            sys.exit("error: this Python lacks what the tools need; scripts/setup.sh makes an environment that has it")
        os.execv(python, [str(python), *sys.argv])  # noqa: S606 the same script, in the other Python
    sys.path[0] = str(ROOT / "handlers")
    from camserve.tools.cli import main  # noqa: PLC0415 found only now

    sys.exit(main([command, *arguments, *sys.argv[1:]]))
