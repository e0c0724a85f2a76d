"""The pictures that a model is measured on: its inputs, and what the report says of the files, so that it can be made anew."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.pictures.decode import open_enough
from camserve.pictures.preprocess import Preprocess
from camserve.tools.console import ToolError

LEAST = 4
"""Pictures without which nothing is measured."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Inputs:
    """What is measured on.

    Attributes:
        tensors: the model's inputs `[C, H, W]`, all of one size.
        files: of each the file's `name`, below the folder that all lie in, and its SHA-256 in hexadecimal as `sha256`.
        left_out: of each file that is not measured its `name`, and `why`.
    """

    tensors: Sequence[Tensor]
    files: Sequence[dict[str, str]]
    left_out: Sequence[dict[str, str]]

    def describe(self) -> dict[str, Any]:
        """Describe the files for a report; `pictures_digest` is of their sorted digests, one a line."""
        lines = "".join(f"{digest}\n" for digest in sorted(each["sha256"] for each in self.files))
        digest = f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
        return {"pictures_digest": digest, "measured_on": list(self.files), "left_out": list(self.left_out)}


def read_inputs(paths: Sequence[Path], config: Config, preprocess: Preprocess, say: Say) -> Inputs:
    """Read pictures as the model's inputs; those of another size than most are left out, with a word, and those that come twice.

    Raises:
        ToolError: fewer than `LEAST` are left.
    """
    folder = Path(os.path.commonpath([path.resolve().parent for path in paths])) if paths else Path()
    read: list[tuple[Tensor, dict[str, str]]] = []
    left_out = []
    seen: dict[str, str] = {}

    def leave_out(name: str, why: str) -> None:
        left_out.append({"name": name, "why": why})
        say(f"{name} is left out: {why}")

    for path in paths:
        data, name = path.read_bytes(), path.resolve().relative_to(folder).as_posix()
        digest = hashlib.sha256(data).hexdigest()
        if digest in seen:
            leave_out(name, f"it is the same file as {seen[digest]}")
            continue
        seen[digest] = name
        try:
            opened = open_enough(data, config, enough=preprocess.enough if config.fast_jpeg else None)
            read.append((preprocess(*opened), {"name": name, "sha256": digest}))
        except RequestError as error:
            leave_out(name, error.message)
    shapes = [tuple(tensor.shape) for tensor, _ in read]
    usual = max(set(shapes), key=shapes.count, default=())
    for (_, file), shape in zip(read, shapes, strict=True):
        if shape != usual:
            leave_out(file["name"], f"its input is {shape[1]} x {shape[2]}, and most are {usual[1]} x {usual[2]}")
    kept = [each for each, shape in zip(read, shapes, strict=True) if shape == usual]
    if len(kept) < LEAST:
        raise ToolError(f"expected at least {LEAST} pictures to measure on, got {len(kept)}")
    return Inputs([tensor for tensor, _ in kept], [file for _, file in kept], left_out)
