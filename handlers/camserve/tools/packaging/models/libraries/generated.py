"""The file that builds an architecture of torchvision's in an archive; to know one, torchvision is not needed."""

from __future__ import annotations

import re

TEMPLATE = '''\
"""torchvision's {arch}, without weights."""

from torchvision.models import get_model


class {name}:
    """Builds the architecture; TorchServe then loads the archive's weights into it."""

    def __new__(cls):
        """The module."""
        return get_model("{arch}", weights=None{options})
'''


def is_generated(text: str) -> bool:
    """Tells whether a model's file is one that packaging writes, to the letter: it runs torchvision's code alone."""
    call = re.search(r'get_model\("([a-z0-9_]+)", weights=None((?:, [a-z_]+=(?:True|False|None|[0-9]+))*)\)', text)
    return call is not None and text == TEMPLATE.format(arch=call[1], name=name_class(call[1]), options=call[2])


def name_class(arch: str) -> str:
    """Names the class that builds an architecture."""
    return "".join(part.capitalize() for part in arch.split("_"))
