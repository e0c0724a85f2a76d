"""A network of two layers, its file, and the flags that package it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from camserve.tools.commands import package
from camserve.tools.console import Progress
from camserve.tools.packaging import packager

MODEL = '''
from torch import nn
{imports}

class Tiny(nn.Module):
    """Four channels of eight-pixel cells, then three classes."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU())
        self.fc = nn.Linear(4, 3)
        {start}

    def forward(self, x):
        {step}
        return self.fc(self.features(x).mean((2, 3)))
'''


LABELS = {"0": "ant", "1": "bee", "2": "cat"}
SMALL = ["--resize", "64", "--crop", "64", "--channels-last", "false"]


class Tiny(nn.Module):
    """The same network as in `MODEL`."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU())
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        """Class scores."""
        return self.fc(self.features(x).mean((2, 3)))


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights for it."""
    torch.manual_seed(seed)
    return Tiny().state_dict()


def write_model(folder: Path, imports: str = "", start: str = "", step: str = "") -> list[str]:
    """Writes `tiny.py`, `tiny.pth` and `labels.json`; the flags that package them."""
    (folder / "tiny.py").write_text(MODEL.format(imports=imports, start=start or "pass", step=step or "pass"))
    torch.save(state(), folder / "tiny.pth")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    model = ["--model-file", str(folder / "tiny.py"), "--weights", str(folder / "tiny.pth")]
    return [*model, "--labels", str(folder / "labels.json"), "--export-path", str(folder), *SMALL]


def package_model(arguments: list[str]) -> tuple[Path, str]:
    """Packages as the command does; the archive, and what was printed."""
    console = Console(record=True, quiet=False, file=open("/dev/null", "w"), width=400)  # noqa: PTH123, SIM115
    with console.file:
        path = packager.package(package.parse(arguments), Progress(console))
        return path, console.export_text()
