"""What a worker of TorchServe does not import."""

from __future__ import annotations

import copy
import importlib
import importlib.machinery
import sys
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import nn

HEAVY = ("captum", "gradcam_handler", "ts.torch_handler.image_classifier", "ts.torch_handler.vision_handler")


class Refusing:
    """Finds no captum, as where it is not installed."""

    def find_spec(self, name: str, *_: Any) -> None:
        """Refuses the name, or leaves it to others."""
        if name.partition(".")[0] == "captum":
            raise ModuleNotFoundError(f"No module named {name!r}")


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our handler's module, imported as in a new process where captum is not installed."""
    for name in [each for each in sys.modules if each in HEAVY or each.startswith("captum.")]:
        package, _, module = name.rpartition(".")
        if package in sys.modules:
            monkeypatch.setattr(sys.modules[package], module, getattr(sys.modules[package], module))
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
        yield importlib.import_module("gradcam_handler")


def test_the_handler_needs_no_captum(anew: Any) -> None:
    """And imports none: its explanations replace those that the stock handler makes with it. Who asks for those is told."""
    assert not [name for name in sys.modules if name.partition(".")[0] == "captum"]
    stock = sys.modules["ts.torch_handler.vision_handler"]
    made: Any = stock.IntegratedGradients(nn.Identity())
    copy.copy(made)
    with pytest.raises(ModuleNotFoundError, match="captum"):
        made.attribute(torch.zeros(1))


def test_a_subclass_may_explain_as_the_stock_handler_does(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With captum, once it asks: the same values."""
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[1:])
    torch.manual_seed(0)
    model, pictures = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Tanh()), torch.rand(2, 3, 2, 2)
    handler = anew.GradCAMHandler()
    handler.ig = sys.modules["ts.torch_handler.vision_handler"].IntegratedGradients(model)
    expected = IntegratedGradients(model).attribute(pictures, target=1, n_steps=15)
    assert torch.equal(torch.tensor(handler.get_insights(pictures, None, 1)), expected.float())
