"""Grad-CAM++ explanations of image classifiers served with TorchServe."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camserve.tools.client import CamserveError, Client, Result

__version__ = "0.1.0"
__all__ = ["CamserveError", "Client", "Result", "__version__"]


def __getattr__(name: str) -> Any:
    """The client, loaded only when asked for: an archive holds this package without its tools."""
    if name in ("CamserveError", "Client", "Result"):
        return getattr(import_module("camserve.tools.client"), name)
    raise AttributeError(f"module camserve has no attribute {name}")
