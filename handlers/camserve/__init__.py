"""Grad-CAM++ explanations of image classifiers in production: `Model` explains in this process, `Client` asks a server."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from camserve.core.errors import require
from camserve.core.version import __version__

if TYPE_CHECKING:
    from camserve.pipeline.explanation import Explanation
    from camserve.pipeline.model import Model
    from camserve.tools.client.client import CamserveError, Client
    from camserve.tools.client.result import Result

__all__ = ["CamserveError", "Client", "Explanation", "Model", "Result", "__version__"]

_LAZY = {
    "CamserveError": "camserve.tools.client.client",
    "Client": "camserve.tools.client.client",
    "Explanation": "camserve.pipeline.explanation",
    "Model": "camserve.pipeline.model",
    "Result": "camserve.tools.client.result",
}
"""Where names stand that are loaded only when asked for: an archive holds this package without its tools."""


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for.

    Raises:
        MissingPackageError: the name is one of the extra `explain`, which is not installed.
    """
    if name in _LAZY:
        if _LAZY[name].startswith("camserve.pipeline."):
            require(f"camserve.{name}", "explain")
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module camserve has no attribute {name}")
