"""The inspector page as an answer: one self-contained HTML document."""

from __future__ import annotations

import base64
import html
import json
from typing import Any

from camserve.core.config import COLORMAPS
from camserve.core.labels import Labels
from camserve.core.messages import Reply, name_layer
from camserve.core.served import Served
from camserve.core.version import __version__
from camserve.explain.methods import find_method
from camserve.inspector.html import ASSETS, HEADERS, fill, write_policy, write_script_json
from camserve.pictures.render import write_colormap

SCRIPTS = ("heat.js", "theme.js", "server.js", "pictures.js", "panes.js", "area.js", "app.js", "controls.js")
"""In the order in which they run."""

LABELS_LIMIT = 100_000
"""Labels that take more characters of JSON are not sent along for completion; the server still knows them."""


def write_page(served: Served) -> Reply:
    """Writes the reply to a browser: the page of one archive, under a Content-Security-Policy of its own."""
    config, labels, layers, model = served.config, served.labels, served.layers, served.model
    facts = {
        "camserve": __version__,
        "model": model.name,
        "version": model.version,
        "weights": model.weights,
        "random_weights": config.random_weights,
        "classes": len(labels),
        "scores": served.scores,
        "threshold": config.threshold if served.scores == "sigmoid" else None,
        "labels": _completions(labels),
        "methods": [{"name": name, "use": find_method(name).use} for name in served.methods],
        "method": config.method,
        "layers": list(layers),
        "layer": name_layer(served.default_layer),
        "together": name_layer(served.together),
        "colormaps": {name: write_colormap(name) for name in COLORMAPS},
        "colormap": config.colormap,
        "opacity": config.opacity,
        "exif": config.exif,
        "max_targets": config.max_targets,
        "checks": config.max_checks > 0,
        "checked": config.checks,
        "tensors": 0 if config.takes_pictures else config.channels,
        "samples": _samples() if config.takes_pictures else [],
    }
    return _fill_template(f"{model.name}: camserve inspector", facts)


def _fill_template(title: str, facts: dict[str, Any]) -> Reply:
    """Puts the page together around `facts`, which its scripts read as JSON."""
    style = (ASSETS / "style.css").read_text("utf-8")
    scripts = [(ASSETS / name).read_text("utf-8") for name in SCRIPTS]
    parts = {
        "title": html.escape(title),
        "style": style,
        "facts": write_script_json(facts),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    body = fill((ASSETS / "inspector.html").read_text("utf-8"), parts)
    headers = {"content-security-policy": write_policy(style, scripts, connect="'self'") + "; frame-ancestors 'none'", **HEADERS}
    return Reply(200, "text/html; charset=utf-8", body.encode(), headers)


def _completions(labels: Labels) -> list[str] | None:
    names = list(labels.names) if labels.given else []
    return names if names and len(json.dumps(names)) <= LABELS_LIMIT else None


def _samples() -> list[dict[str, str]]:
    pictures = sorted((ASSETS / "samples").glob("*.jpg"))
    encoded = [base64.b64encode(picture.read_bytes()).decode() for picture in pictures]
    return [
        {"name": picture.name, "data": f"data:image/jpeg;base64,{text}"} for picture, text in zip(pictures, encoded, strict=True)
    ]
