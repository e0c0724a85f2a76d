"""Answers of a model, made up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from camserve.core.geometry import Rect
from camserve.tools.client.result import Explanation, Prediction, Result

GOOD = np.eye(4, dtype=np.float32)


WHOLE = Rect(0, 0, 40, 40)


def result(heatmap: NDArray[np.float32] = GOOD, warnings: tuple[str, ...] = (), view: Rect = WHOLE) -> Result:
    """An answer with one explanation."""
    explanation = Explanation(0, "bright", 0.5, heatmap, (0.0, 1.0), None, warnings)
    return Result((Prediction(0, "bright", 0.5),), (explanation,), (40, 40), view, "gradcam++", "f", "m", "1", "w")


SILENT = result(np.zeros_like(GOOD), ("zero",))
