"""Files of weights: what is taken off them, what is refused, and how it is said that they do not fit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.support.models.tiny import Tiny, state

from camserve.tools.console import ToolError
from camserve.tools.packaging.models import checkpoints, weights


def test_weights_that_do_not_fit_are_named_with_their_nearest(tmp_path: Path) -> None:
    """Missing, unknown and mis-shaped tensors are counted, and the first are named."""
    other = state()
    other["features.0.weights"] = other.pop("features.0.weight")
    other["fc.bias"] = torch.zeros(5)
    with pytest.raises(ToolError) as caught:
        weights.load_into(Tiny(), other, "Tiny")
    assert str(caught.value) == (
        "the weights do not fit Tiny: 1 of the model's tensors missing (features.0.weight); "
        "1 unknown to the model (features.0.weights, nearest features.0.weight); 1 of another shape (fc.bias: [5], not [3])"
    )


@pytest.mark.parametrize("key", checkpoints.CHECKPOINT_KEYS)
def test_a_checkpoint_is_unwrapped_and_that_is_said(tmp_path: Path, key: str) -> None:
    """The state dict is found, and prefixes of wrappers are taken off."""
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in state().items()}
    torch.save({"epoch": 3, key: wrapped}, tmp_path / "c.pth")
    found, notes = checkpoints.read_state_dict(tmp_path / "c.pth")
    assert set(found) == set(state())
    assert notes == [
        f"c.pth is a checkpoint: its entry {key} is used",
        "the prefix module. was taken off every name in c.pth",
        "the prefix _orig_mod. was taken off every name in c.pth",
    ]


def test_files_that_are_no_state_dicts_are_refused_with_a_way_out(tmp_path: Path) -> None:
    """A whole pickled model is never executed; each message says what to save instead."""
    torch.save(Tiny(), tmp_path / "whole.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    way_out = r"save torch\.save\(model\.state_dict\(\), 'weights\.pth'\)"
    for name, message in {
        "whole": "holds Python objects besides tensors .the first is a .*Tiny., and loading those would run code",
        "other": "holds no state dict but a dictionary of epoch",
        "text": "not a file of weights that torch can read",
    }.items():
        with pytest.raises(ToolError, match=f"{message}.*{way_out}"):
            checkpoints.read_state_dict(tmp_path / f"{name}.pth")
    with pytest.raises(ToolError, match=r"no file .*none\.pth"):
        checkpoints.read_state_dict(tmp_path / "none.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, for making the file that is refused
def test_a_torchscript_file_is_named_as_such(tmp_path: Path) -> None:
    """It is no state dict."""
    torch.jit.trace(Tiny().eval(), torch.zeros(1, 3, 16, 16)).save(str(tmp_path / "script.pth"))
    with pytest.raises(ToolError, match="is a TorchScript archive"):
        checkpoints.read_state_dict(tmp_path / "script.pth")


def test_what_torch_wrote_is_read_whatever_its_name(tmp_path: Path) -> None:
    """Packaging itself keeps an old archive's name for the weights."""
    for zipped in (True, False):
        torch.save({"w": torch.ones(2)}, tmp_path / "m.safetensors", _use_new_zipfile_serialization=zipped)
        state, _ = checkpoints.read_state_dict(tmp_path / "m.safetensors")
        assert state["w"].tolist() == [1, 1]


def test_safetensors_that_cannot_be_read_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file, and one where the package is not installed: then with the line that converts it."""
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    with pytest.raises(ToolError, match=r"bad\.safetensors is not a file of safetensors, or is damaged"):
        checkpoints.read_state_dict(tmp_path / "bad.safetensors")
    with pytest.raises(ToolError, match="no file"):
        checkpoints.read_state_dict(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "net.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(
        ToolError, match=r"pip install safetensors; .* torch.save\(safetensors.torch.load_file\('net.safe.*'net.pth'\)"
    ):
        checkpoints.read_state_dict(tmp_path / "net.safetensors")
