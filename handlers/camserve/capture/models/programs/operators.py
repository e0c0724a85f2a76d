"""Operators outside of torch that a saved program may call: torchvision's, such as `nms` and `deform_conv2d`."""

from __future__ import annotations


def register_operators() -> None:
    """Import torchvision, which registers its operators.

    Only a file that holds a program needs it: code that calls them imports torchvision itself. It takes 150 MB and seconds, as
    it brings the tracer of torch.compile with it.
    """
    import torchvision  # noqa: F401, PLC0415 only where a program is loaded
