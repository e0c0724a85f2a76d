"""What a worker of TorchServe does not import."""

from __future__ import annotations

import copy
import importlib
import importlib.machinery
import os
import subprocess
import sys
from pathlib import Path
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


COMPILER = """
import sys
import gradcam_handler
import torch
from torchvision.ops import roi_align

assert not {"torch._dynamo", "torch._dynamo.utils", "sympy"} & set(sys.modules)
pictures, boxes = torch.arange(64.0).reshape(1, 1, 8, 8), torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
pooled = roi_align(pictures, boxes, 2)
assert "torch._dynamo" not in sys.modules
torch.use_deterministic_algorithms(True)
assert torch.equal(roi_align(pictures, boxes, 2), pooled)
supported = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
assert supported and sys.modules["torch._dynamo.utils"].is_compile_supported("cpu")
assert torch.equal(torch.compile(lambda given: given + 1, backend="eager")(pictures), pictures + 1)
assert sys.modules["torch._dynamo"].__file__ and sys.modules["torch._dynamo.utils"].__file__
"""


TAKEN = """
import sys
import torch
from camserve.capture.tuning import imports

sys.modules.update({name: imports._CompilerPlaceholder(name) for name in imports.COMPILER})
from torch._dynamo.utils import counters
import torch._dynamo.exc
assert type(counters).__name__ == "defaultdict" and torch._dynamo.exc.Unsupported
assert not any(isinstance(each, imports._CompilerPlaceholder) for each in sys.modules.values())
"""


@pytest.mark.parametrize("program", [COMPILER, TAKEN], ids=["operators", "all else"])
def test_torchvision_brings_no_compiler(program: str) -> None:
    """Until something of it is used, which then is torch's own: by torchvision's operators and torch.compile, and by releases of
    torchvision that import more."""
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root / "handlers"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
