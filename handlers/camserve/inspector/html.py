"""Self-contained HTML documents, and the Content-Security-Policy that allows just what is in them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

ASSETS = Path(__file__).with_name("assets")
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
"""Those of a page's answer, beside its policy."""


def fill(template: str, parts: Mapping[str, str]) -> str:
    """Replaces each `{{name}}` in one pass, so that no part is searched for the others' names."""
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def write_policy(style: str, scripts: Sequence[str], connect: str = "'none'") -> str:
    """Writes a Content-Security-Policy: this style sheet, these scripts, nothing from elsewhere, no text as HTML.

    `frame-ancestors` is left out, since only a header may hold it.

    Args:
        style: the text of the one `style` element.
        scripts: the texts of the `script` elements.
        connect: the sources that scripts may fetch from.
    """
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(_hash(script) for script in scripts),
        "style-src": _hash(style),
        "img-src": "data: blob:",
        "connect-src": connect,
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def write_script_json(value: object) -> str:
    """Writes JSON in ASCII that cannot end the script element it stands in, nor open a comment or a tag there."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
