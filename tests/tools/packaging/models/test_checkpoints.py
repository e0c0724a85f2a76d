"""Checkpoints as training scripts leave them: which weights are found, and what is said of the rest."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.models.tiny import Tiny, state
from torch import Tensor, nn

from camserve.tools.console import ToolError
from camserve.tools.packaging.models.checkpoints import Ignored, read_state_dict
from camserve.tools.packaging.models.weights import load_into

State = dict[str, Tensor]


def under(prefix: str, weights: State) -> State:
    """The weights with a prefix before each name."""
    return {prefix + name: tensor for name, tensor in weights.items()}


def counted(weights: State) -> State:
    """As what counts a network's operations leaves its state dict."""
    modules = {name.rpartition(".")[0] for name in weights}
    return weights | {f"{each}.{what}": torch.zeros(1) for each in modules for what in ("total_ops", "total_params")}


def averaged(weights: State) -> State:
    """As `torch.optim.swa_utils.AveragedModel` saves it."""
    net = Tiny()
    net.load_state_dict(weights)
    return torch.optim.swa_utils.AveragedModel(net).state_dict()


SPACE = argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs/1"), best=np.float32(0.5), kind=np.dtype("int64"))
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3, 4), "step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}

LEFT: dict[str, tuple[Callable[[State, State], Any], str | None, str]] = {
    "namespace": (lambda w, _: {"model": w, "args": SPACE, "epoch": 3}, None, "its entry model is used"),
    "paths": (lambda w, _: {"model": w, "to": pathlib.PureWindowsPath("a"), "from": Path("b")}, None, "entry model"),
    "numpy": (lambda w, _: {"model": w, "acc": np.float64(0.9), "n": np.int64(3), "ok": np.bool_(1)}, None, "entry model"),
    "only": (lambda w, _: {"network": w, "optimizer": OPTIMIZER, "epoch": 3}, None, "its entry network is used"),
    "only, inside": (lambda w, _: {"state": {"weights": w, "epoch": 3}}, None, r"its entry state\.weights is used"),
    "averaged beside": (lambda w, o: {"model": w, "model_ema": o}, None, r"averaged weights \(model_ema\); --weights-key"),
    "averaged wanted": (lambda w, o: {"model": o, "model_ema": w}, "model_ema", "its entry model_ema is used, as asked"),
    "not the averaged": (lambda w, o: {"student": w, "student_ema": o}, None, "its entry student is used"),
    "other weights beside": (lambda w, o: {"net": w, "discriminator": o}, None, r"other weights \(discriminator\)"),
    "averaged model": (lambda w, _: averaged(w), None, "no weights of the model's: n_averaged"),
    "counted": (lambda w, _: counted(w), None, "no weights of the model's: .*total_ops.* and 1 more"),
    "numbers among them": (lambda w, _: w | {"epoch": 3, "lr": np.float64(0.1)}, None, "no tensors: epoch, lr"),
    "a loss": (
        lambda w, _: {"state_dict": under("net.", w) | {"criterion.weight": torch.ones(3)}},
        None,
        r"the prefix net\. was taken off .* no weights of the model's: criterion.weight",
    ),
    "prefix": (lambda w, _: under("any.thing.", w), None, r"the prefix any\.thing\. was taken off"),
    "two, one averaged": (lambda w, o: under("model.", w) | under("ema_model.", o), None, r"averaged ones, under ema_model\."),
    "two, one wanted": (lambda w, o: under("student.", w) | under("teacher.", o), "student.", r"begin with student\. are used"),
}


@pytest.mark.parametrize("name", LEFT)
def test_the_models_weights_are_found_in_what_a_training_script_left(tmp_path: Path, name: str) -> None:
    """The very tensors, not others that lie beside them; and it is said what was done."""
    make, key, message = LEFT[name]
    torch.save(make(state(1), state(2)), tmp_path / "c.pth")
    found, notes = read_state_dict(tmp_path / "c.pth", key)
    model = Tiny()
    notes += load_into(model, found, "Tiny")
    assert all(torch.equal(tensor, state(1)[name]) for name, tensor in model.state_dict().items())
    assert re.search(message, "; ".join(notes)), notes


class Wrapped(nn.Module):
    """As our own advice says: a module around the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Tiny()


@pytest.mark.parametrize("save", [dict, averaged])
def test_weights_of_what_is_wrapped_are_found(tmp_path: Path, save: Callable[[State], State]) -> None:
    """The prefix is put before each name, and that is said."""
    torch.save(save(state(1)), tmp_path / "c.pth")
    found, _ = read_state_dict(tmp_path / "c.pth")
    model = Wrapped()
    assert load_into(model, found, "Wrapped")[0] == "the prefix model. was put before each of the weights' names"
    assert all(torch.equal(tensor, state(1)[name]) for name, tensor in model.model.state_dict().items())


NOT_FOUND: dict[str, tuple[Callable[[State, State], Any], str | None, str]] = {
    "several": (
        lambda w, o: {"generator": w, "critic": o},
        None,
        r"several state dicts \(generator, critic\), .*--weights-key gen",
    ),
    "no such entry": (lambda w, o: {"model": w}, "ema", r"--weights-key ema: .* holds no such state dict; it holds model$"),
    "no such prefix": (lambda w, o: w, "ema.", r"--weights-key ema\.: .* holds no such state dict; it is a state dict itself"),
    "no network": (
        lambda w, o: {"optimizer": OPTIMIZER, "best": {"acc": torch.ones(())}},
        None,
        "no state dict but a dictionary",
    ),
    "two prefixes": (
        lambda w, o: under("a.", w) | under("b.", o),
        None,
        r"several networks that fit, under a\., b\.; --weights-key a\.",
    ),
    "a head beside": (
        lambda w, o: under("body.", w) | {"head.weight": torch.ones(5, 3)},
        None,
        r"prefix body\. .* 1 unknown .*head\.w",
    ),
    "a matrix in a loss": (lambda w, o: w | {"loss.weight": torch.ones(3, 4)}, None, r"1 unknown to the model \(loss\.weight"),
    "other classes": (
        lambda w, o: under("m.", w) | {"m.fc.weight": torch.ones(5, 4), "m.fc.bias": torch.ones(5)},
        None,
        r"the prefix m\. was taken off .*: 2 of another shape \(fc\.weight: \[5, 4\], not \[3, 4\], fc\.bias",
    ),
}


@pytest.mark.parametrize("name", NOT_FOUND)
def test_what_may_be_another_network_is_refused(tmp_path: Path, name: str) -> None:
    """Where nothing tells which weights are the model's, or some of them would be lost."""
    make, key, message = NOT_FOUND[name]
    torch.save(make(state(1), state(2)), tmp_path / "c.pth")
    with pytest.raises(ToolError, match=message):
        load_into(Tiny(), read_state_dict(tmp_path / "c.pth", key)[0], "Tiny")


class Opener:
    """Pickled as a call of something."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (datetime.date(2020, 1, 1), "datetime.date"),
        (np.ones(2), r"numpy\._?core\.multiarray\._reconstruct"),
        (Opener(eval, ("1",)), "eval"),
        (Opener(Path.read_text, (Path("/etc/hostname"),)), "getattr|pathlib.*read_text"),
    ],
)
def test_no_other_objects_are_read(tmp_path: Path, value: Any, name: str) -> None:
    """Only those of torch's own list, and the few that training scripts leave beside weights."""
    torch.save({"model": state(), "more": value}, tmp_path / "c.pth")
    with pytest.raises(ToolError, match=rf"holds Python objects besides tensors \(the first is a ({name})\)"):
        read_state_dict(tmp_path / "c.pth")


def test_nothing_but_tensors_is_built(tmp_path: Path) -> None:
    """What is read of a namespace, a path or a number is thrown away, and torch's own list is afterwards what it was."""
    torch.serialization.add_safe_globals([Opener])
    before = torch.serialization.get_safe_globals()
    torch.save({"w": torch.ones(2, 2), "args": SPACE, "b": torch.ones(1)}, tmp_path / "c.pth")
    found, notes = read_state_dict(tmp_path / "c.pth")
    assert list(found) == ["w", "b"]
    assert notes == ["left out, since they are no tensors: args"]
    assert vars(Ignored(1, a=2)) == {}
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_what_only_training_needs_may_be_missing() -> None:
    """Files of old releases do not count batches, and a tensor with two names may be there under one."""
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    model = nn.Sequential(nn.BatchNorm2d(3), first, second)
    weights = {
        "0.weight": torch.ones(3),
        "0.bias": torch.ones(3),
        "0.running_mean": torch.ones(3),
        "0.running_var": torch.ones(3),
    }
    with pytest.raises(ToolError, match=r"2 of the model's tensors missing \(1\.weight, 2\.weight\)"):
        load_into(model, weights, "it")
    assert load_into(model, {**weights, "1.weight": torch.full((3, 3), 2.0)}, "it") == []
    assert torch.equal(second.weight, torch.full((3, 3), 2.0))
