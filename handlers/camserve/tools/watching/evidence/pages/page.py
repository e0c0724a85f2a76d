"""The page: one HTML document that holds its report, as a file or as an answer."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camserve.core.messages import Reply
from camserve.inspector.html import ASSETS as INSPECTORS
from camserve.inspector.html import HEADERS, fill, write_policy, write_script_json

ASSETS = Path(__file__).with_name("assets")
SCRIPTS = (INSPECTORS / "heat.js", INSPECTORS / "theme.js", ASSETS / "evidence.js", ASSETS / "cards.js", ASSETS / "picture.js")
"""In the order in which they run."""
STYLES = (INSPECTORS / "style.css", ASSETS / "evidence.css")


def write_file(report: Mapping[str, Any], file: Path) -> None:
    """Writes a page that needs nothing but itself; its pictures are in the report."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)  # pictures of people, perhaps
    style, scripts = _read()
    policy = f'<meta http-equiv="content-security-policy" content="{write_policy(style, scripts)}">\n'
    file.write_text(_fill(report, style, scripts, policy), "utf-8")


def write_answer(report: Mapping[str, Any]) -> Reply:
    """Writes the page as an answer: it may ask its own server."""
    style, scripts = _read()
    policy = write_policy(style, scripts, connect="'self'").replace("img-src data: blob:", "img-src 'self' data: blob:")
    headers = {"content-security-policy": f"{policy}; frame-ancestors 'none'", **HEADERS}
    return Reply(200, "text/html; charset=utf-8", _fill(report, style, scripts, "").encode(), headers)


def _read() -> tuple[str, list[str]]:
    return "".join(each.read_text("utf-8") for each in STYLES), [each.read_text("utf-8") for each in SCRIPTS]


def _fill(report: Mapping[str, Any], style: str, scripts: list[str], policy: str) -> str:
    parts = {
        "policy": policy,
        "title": html.escape(f"{report['model']}: what moved"),
        "style": style,
        "report": write_script_json(report),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    return fill((ASSETS / "evidence.html").read_text("utf-8"), parts)
