"""A state dict of quantized layers, whose weights torch packs with a type and a bias."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic

from camserve.tools.console import ToolError
from camserve.tools.packaging.models.checkpoints import read_state_dict
from camserve.tools.packaging.models.weights import load_into

pytestmark = pytest.mark.filterwarnings("ignore")  # torch announces where quantization moves to


def quantized(seed: int) -> nn.Module:
    """A convolution, and a linear layer that is quantized."""
    torch.manual_seed(seed)
    model: nn.Module = quantize_dynamic(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)), {nn.Linear})
    return model.eval()


@pytest.mark.parametrize("form", ["plain", "in a checkpoint", "renamed"])
def test_it_is_read_and_loaded(tmp_path: Path, form: str) -> None:
    """As the training script left it; a copy that lost the versions of its format is written again, since torch needs them."""
    state = quantized(0).state_dict()
    held = {"state_dict": state, "epoch": 3} if form == "in a checkpoint" else dict(state) if form == "renamed" else state
    torch.save(held, tmp_path / "weights.pth")
    read, notes = read_state_dict(tmp_path / "weights.pth")
    model = quantized(1)
    said = load_into(model, read, "Net")

    picture = torch.ones(1, 3, 4, 4)
    assert torch.equal(model(picture), quantized(0)(picture))
    assert any("written again" in note for note in said) == (form == "renamed")
    assert bool(notes) == (form == "in a checkpoint")


def test_a_model_that_is_not_quantized_does_not_take_it(tmp_path: Path) -> None:
    """The message names what is missing and what is unknown, and no packed weight breaks it."""
    torch.save(quantized(0).state_dict(), tmp_path / "weights.pth")
    read, _ = read_state_dict(tmp_path / "weights.pth")
    with pytest.raises(ToolError, match=r"2\.weight.*unknown to the model .*2\.scale"):
        load_into(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)), read, "Net")
