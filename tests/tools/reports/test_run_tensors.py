"""Explaining tensors into a folder: `.npy` files, which have no picture to draw on."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from camserve.tools.reports.run import Run


class Asked:
    """Notes what it is asked for, and answers as a server does."""

    name = "m"
    identity: Mapping[str, Any] | None = None

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def ask(self, _picture: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
        """One answer, without overlays."""
        self.options.append(dict(options))
        facts = {"weights": "w", "version": "1", "method": "gradcam++", "layer": "l"}
        score = {"index": 0, "label": "a", "probability": 1.0}
        heat = {"heatmap": [[0.0, 1.0]], "range": [0.0, 1.0], "region": None, "warnings": []}
        explanation = {"target": 0, "label": "a", "probability": 1.0, **heat}
        return {**facts, "predictions": {"a": 1.0}, "classes": [score], "explanations": [explanation], "image": None}


def test_no_overlay_is_asked_of_a_tensor(tmp_path: Path) -> None:
    """Pictures beside it keep theirs."""
    file = io.BytesIO()
    np.save(file, np.zeros((5, 4, 4), np.float32))
    (tmp_path / "a.npy").write_bytes(file.getvalue())
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    source = Asked()
    (tmp_path / "out").mkdir()
    Run(source, tmp_path / "out", {"model": "m", "overlay": True}).explain([tmp_path / "a.npy", tmp_path / "b.png"], 1)
    assert source.options == [{}, {"overlay": True}]
    rows = [json.loads(line) for line in (tmp_path / "out" / "explanations.jsonl").read_text().splitlines()]
    assert all("error" not in row for row in rows)
