"""What a check of a deployment comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: `ok`, `advice` (works, but not as well as it could) or `wrong`.
        message: what is the case.
        remedy: what to do about it; "" where nothing is to be done.
    """

    level: Literal["ok", "advice", "wrong"]
    message: str
    remedy: str = ""
