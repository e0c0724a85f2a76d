"""Packaging says how a model's scores are read, records it, and names the classes of a single logit."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from camserve import Model
from camserve.core.errors import ConfigError
from camserve.core.messages import Call
from camserve.pipeline.archive import unpack
from camserve.tools.commands import inspect_model
from camserve.tools.console import Progress, ToolError
from camserve.tools.packaging import packager
from camserve.tools.packaging.flags import package

SOURCE = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 4, 1), torch.nn.ReLU())
        self.kind, self.colour, self.one = torch.nn.Linear(8, 5), torch.nn.Linear(8, 3), torch.nn.Linear(8, 1)

    def forward(self, x):
        f = self.body(x).mean((2, 3))
        return {gives}
"""


def written(folder: Path, gives: str) -> list[str]:
    """The flags of a model's file that gives this, and its weights."""
    source = SOURCE.replace("{gives}", gives)
    (folder / "net.py").write_text(source)
    scope: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(source, scope)
    torch.save(scope["Net"]().state_dict(), folder / "net.pth")
    small = ["--resize", "32", "--crop", "32", "--memory-format", "contiguous"]
    return ["--model-file", str(folder / "net.py"), "--weights", str(folder / "net.pth"), "--export-path", str(folder), *small]


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive that was built is not asked in a fresh process: other tests do."""
    monkeypatch.setattr(packager, "try_archive", lambda *_: {"explanations": [{"warnings": []}]})
    monkeypatch.setattr(packager, "find_needed_modules", lambda *_, **__: {})


def packaged(folder: Path, gives: str, *flags: str) -> tuple[str, dict[str, Any], Model]:
    """What packaging says, the archive's settings, and its model."""
    console = Console(record=True, file=io.StringIO(), width=400)
    path = packager.package(package.parse([*written(folder, gives), *flags]), Progress(console))
    with unpack(path) as opened:
        settings = opened.config["explain"]
    return console.export_text(), settings, Model.from_archive(path, device="cpu")


def predictions(model: Model) -> dict[str, float]:
    """Of a picture."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(file, "PNG")
    (reply,) = model.run([Call(False, {}, {"body": file.getvalue()})])
    read: dict[str, float] = json.loads(reply.body)
    return read


CASES: dict[str, tuple[str, list[str], str, dict[str, Any], list[str]]] = {
    "features first": ("f, self.kind(f)", [], "1 is served, as it is computed from the others", {"output": 1}, list("01234")),
    "by name": ('{"embedding": f, "out": self.kind(f)}', [], "out is served, by its name", {"output": "out"}, list("01234")),
    "two heads": ("self.kind(f), self.colour(f)", [], "Warning: .* --output 1 serves the other", {"output": 0}, list("01234")),
    "the other head": ("self.kind(f), self.colour(f)", ["--output", "1"], "1 is served, as asked", {"output": 1}, list("012")),
    "one logit": ("self.one(f)", ["--positive", "ill"], "Labels: 2 classes, from not ill to ill", {}, ["ill", "not ill"]),
    "labels": (
        "self.kind(f)",
        ["--scores", "sigmoid", "--threshold", "0.3"],
        "",
        {"scores": "sigmoid", "threshold": 0.3},
        list("01234"),
    ),
    "sigmoid inside": ("self.kind(f).sigmoid()", [], "ends in a sigmoid", {"scores": "sigmoid"}, list("01234")),
    "a value": ("self.one(f)[:, 0]", ["--scores", "none"], "", {"scores": "none"}, ["0"]),
}


@pytest.mark.parametrize(("gives", "flags", "note", "recorded", "labels"), CASES.values(), ids=CASES)
def test_how_scores_are_read_is_said_and_recorded(
    tmp_path: Path, gives: str, flags: list[str], note: str, recorded: dict[str, Any], labels: list[str]
) -> None:
    """So that a worker comes to no other result; its answers have these classes."""
    said, settings, model = packaged(tmp_path, gives, *flags)
    assert re.search(note, said)
    assert {name: settings[name] for name in ("output", "scores", "threshold") if name in settings} == recorded
    assert sorted(predictions(model)) == labels
    assert inspect_model.main([str(tmp_path / "net.mar"), "--trust", "--rounds", "1"]) == 0


def test_labels_tell_the_output(tmp_path: Path) -> None:
    """Their number."""
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    said, _, model = packaged(tmp_path, "self.kind(f), self.colour(f)", "--labels", str(tmp_path / "labels.txt"))
    assert "1 is served, as it has as many values as there are labels, 3" in said
    assert set(predictions(model)) == {"red", "green", "blue"}


def test_one_name_is_the_positive_class(tmp_path: Path) -> None:
    """In a file of labels too."""
    (tmp_path / "labels.json").write_text('{"0": "pneumonia"}')
    _, _, model = packaged(tmp_path, "self.one(f)", "--labels", str(tmp_path / "labels.json"))
    assert set(predictions(model)) == {"not pneumonia", "pneumonia"}


@pytest.mark.parametrize(
    ("gives", "flags", "message"),
    [
        ("self.kind(f)", ["--positive", "ill"], "--positive names the class of a model of one logit; this one has 5 outputs"),
        ("self.kind(f), self.colour(f)", ["--output", "kind"], "no output 'kind'; the model gives 0 .* and 1"),
        ("self.kind(f)", ["--scores", "both"], "scores: expected softmax, sigmoid or none, got"),
        ("self.kind(f)", ["--threshold", "0.4"], "threshold: 0.4: it says from where a label counts"),
        ("self.kind(f).softmax(1)", ["--scores", "sigmoid"], "scores: sigmoid: a trial shows that the model ends in a softmax"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path: Path, gives: str, flags: list[str], message: str) -> None:
    """With what would; nothing is left behind."""
    with pytest.raises((ToolError, ConfigError), match=message):
        packaged(tmp_path, gives, *flags)
    assert not (tmp_path / "net.mar").exists()


def test_positive_and_labels_exclude_each_other() -> None:
    """Both name the classes."""
    with pytest.raises(ToolError, match="--positive: expected one name, and no --labels"):
        package.parse(["--torchvision", "resnet18", "--positive", "ill", "--labels", "x.json"])
