"""Names of files in an archive: those that packaging writes itself, and those that no file may have."""

from __future__ import annotations

import shutil
from pathlib import Path

from camserve.capture.runtimes.packages import FILES
from camserve.tools.archive.fresh.modules import server_modules
from camserve.tools.console import ToolError

WEIGHTS = "weights.pth"
PROGRAM = "model.pt"
CONFIG = "model-config.yaml"
LABELS = "index_to_name.json"
OWN = ("camserve", "gradcam_handler.py", "licenses", "MAR-INF", WEIGHTS, PROGRAM, CONFIG, LABELS, *FILES)
"""Names in an archive's root that packaging itself writes."""

SKIPPED = shutil.ignore_patterns("__pycache__", "*.pyc")
"""What is left out where a folder is copied."""


def check_module_name(name: str, path: Path) -> None:
    """Refuses a module's name that cannot be imported, or that would hide another module in the worker."""
    if not name.isidentifier():
        raise ToolError(f"{path}: {name!r} is not a Python name, so TorchServe cannot import the file; rename it")
    if name in server_modules() or name in ("camserve", "gradcam_handler"):
        raise ToolError(f"{path}: in TorchServe's worker it would hide the module {name}; rename it")
