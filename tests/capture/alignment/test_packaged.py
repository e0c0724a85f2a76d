"""Networks whose cells lie elsewhere than one would think, through packaged archives in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.comparison import oracle
from tests.support.comparison.closeness import assert_close, unscaled
from tests.support.models import nets
from tests.support.processes.fork_server import ForkServer
from torch import Tensor, nn

from camserve.core.config import Config
from camserve.pictures.decode import open_picture
from camserve.pictures.preprocess import Preprocess
from camserve.tools.commands import package
from camserve.tools.console import Progress
from camserve.tools.packaging import packager
from camserve.tools.packaging.trial import draw_test_picture

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("forked")]

FLIPS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 12, 5, 4, 2), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return sum(self.fc(self.trunk(view).mean((2, 3))) for view in (x, x.flip(3))) / 2
"""

REGISTERS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.registers = nn.Parameter(torch.randn(1, 4, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0, activation="gelu", batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = self.layer(torch.cat([x, self.registers.expand(len(x), -1, -1)], 1))
        return self.fc(nn.functional.gelu(self.norm(x))[:, :-4].mean(1))
"""


def beside(first: Tensor, second: Tensor) -> Tensor:
    """The channels of both views, the mirrored one turned back."""
    return torch.cat([first, second.flip(3)], 1)[0].double()


def packaged(text: str, tmp_path: Path, fork_server: ForkServer, *flags: str) -> tuple[nn.Module, Tensor, Any]:
    """The model, the picture that its archive was tried with, and the answer."""
    (tmp_path / "net.py").write_text(text)
    space: dict[str, Any] = {}
    exec(text, space)
    torch.manual_seed(0)
    model = space["Net"]().eval()
    torch.save(model.state_dict(), tmp_path / "net.pth")
    named = ["--model-file", str(tmp_path / "net.py"), "--weights", str(tmp_path / "net.pth"), "--resize", "64", "--crop", "64"]
    packager.package(package.parse([*named, *flags, "--channels-last", "false", "--export-path", str(tmp_path)]), Progress())
    config = Config(resize=64, crop=64)
    picture = Preprocess(config)(open_picture(draw_test_picture(config), config))
    return model, picture[None], json.loads(fork_server.result["body"])


def test_a_mirrored_pair(tmp_path: Path, fork_server: ForkServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The sum of both views, each at its place; packaging says so."""
    model, picture, answer = packaged(FLIPS, tmp_path, fork_server)
    (found,) = answer["explanations"]
    calls = [nets.by_autograd(model, answer["layer"], picture, torch.tensor([found["target"]]), call)[1:] for call in (0, 1)]
    wanted = oracle.gradcam_plus_plus(beside(calls[0][0], calls[1][0]), beside(calls[0][1], calls[1][1]), rectify_sum=True)
    assert_close(unscaled(found["heatmap"], found["range"]), wanted, 1e-4)
    assert "its 2 calls see the picture each for itself" in " ".join(capsys.readouterr().out.split())


def test_registers_behind_the_patches(tmp_path: Path, fork_server: ForkServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The map is that of the patches' tokens."""
    model, picture, answer = packaged(REGISTERS, tmp_path, fork_server, "--layer", "layer")
    (found,) = answer["explanations"]
    assert answer["method"] == "gradcam++"  # registers are no class token
    _, output, slope = nets.by_autograd(model, "layer", picture, torch.tensor([found["target"]]))
    grids = [each[0, :64].T.reshape(16, 8, 8).double() for each in (output, slope)]
    assert_close(unscaled(found["heatmap"], found["range"]), oracle.gradcam_plus_plus(*grids, rectify_sum=True), 1e-4)
    assert np.shape(found["heatmap"]) == (8, 8)
    assert "its cells are tokens 0 to 63 of 68" in " ".join(capsys.readouterr().out.split())
