"""Tries a finished archive: it explains a picture in a fresh process that has only TorchServe's environment."""

from __future__ import annotations

import io
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from camserve.capture import synthesize_pictures
from camserve.core.config import FORMATS, Config
from camserve.core.geometry import input_size
from camserve.pipeline.opening import PROBE
from camserve.tools.archive import fresh_process
from camserve.tools.archive.archive import open_archive
from camserve.tools.console import ToolError

DRAWN = frozenset((*FORMATS, "avif"))
"""Formats in which Pillow writes a picture."""


def try_archive(archive: Path, config: Config) -> dict[str, Any]:
    """Unpacks an archive, explains a picture with it in a fresh process, and returns the answer.

    It is the archive's file that is tried, not the folder that it was made of: that is what a server gets.

    Raises:
        ToolError: in the worker's own words, why there is no answer.
    """
    with open_archive(archive) as opened, tempfile.NamedTemporaryFile(prefix="camserve-") as picture:
        drawn = config.takes_pictures and set(config.formats) & DRAWN
        picture.write(draw_test_picture(config) if drawn else make_test_tensor(config))
        picture.flush()
        response = fresh_process.run_fresh("explain", str(opened.directory), picture.name)
    if "error" in response:
        raise ToolError(f"the archive does not work in a fresh process: {response['error']}")
    answer = json.loads(response["body"]) if response["status"] == 200 else response["body"]
    if not isinstance(answer, dict) or not answer.get("explanations"):
        raise ToolError(f"the archive does not explain a picture in a fresh process: {response['status']} {response['body']}")
    return answer


def make_test_tensor(config: Config) -> bytes:
    """Makes an `.npy` file of a tensor of the size that the configuration stands for."""
    side = input_size(*PROBE, config.resize, config.crop, config.fit)
    file = io.BytesIO()
    np.save(file, synthesize_pictures(side, 1, config=config)[0].numpy())
    return file.getvalue()


def draw_test_picture(config: Config) -> bytes:
    """Draws a picture that the archive accepts: encoded in one of its formats, and within its limit of pixels."""
    side = min(256, math.isqrt(config.max_pixels))
    across = np.linspace(0, 6, side)
    waves = np.stack([np.sin(across[:, None] * k + across[None, :]) for k in (1, 2, 3)], axis=2)
    file = io.BytesIO()
    Image.fromarray((127.5 + 127.5 * waves).astype(np.uint8)).save(file, next(name for name in config.formats if name in DRAWN))
    return file.getvalue()
