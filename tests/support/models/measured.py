"""An archive whose layer and method were chosen by measuring, as its report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support import build

from camserve.pipeline.metadata import MEASURED
from camserve.pipeline.model import Model
from camserve.tools.reports.inspection.choice import choose
from camserve.tools.reports.inspection.fidelity import Measured

MADE = "2026-11-30T01:02:03+00:00"


def measured_archive(directory: Path, explain: dict[str, Any] | None = None, **changed: Any) -> Path:
    """An unpacked archive with a report of its own weights: of five pictures, gradcam has a support of 0.3, gradcam++ of -0.2, and
    its maps do not depend on the weights.

    Args:
        explain: as of `build.archive`.
        changed: members of the report that say something else.
    """
    build.archive(directory, explain)
    plain = Model.from_archive(directory)
    layer = plain.backend.layers[0]
    found = ((0.4, 0.3, 0.1), (0.1, -0.2, 0.9))
    best, other = (Measured([], [gain] * 5, [support] * 5, [], [alike] * 5) for gain, support, alike in found)
    report = choose({(layer, "gradcam"): best, (layer, "gradcam++"): other}, (layer, "gradcam++"))
    about = {"made": MADE, "weights": plain.weights, "input": plain.provenance.input, "pictures_digest": "d"}
    (directory / MEASURED).write_text(json.dumps({**report, **about, **changed}))
    return directory
