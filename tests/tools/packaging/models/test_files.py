"""Models of the user's own files: which class or function is taken, with which arguments, and which programs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models.tiny import write_model

from camserve.tools.archive.fresh.modules import Beside
from camserve.tools.console import ToolError
from camserve.tools.packaging.flags.model import ModelFlags
from camserve.tools.packaging.models.files import load_model_file
from camserve.tools.packaging.models.source import ModelSource


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines neither a torch.nn.Module nor a function that builds one; --class names what it imports"),
        ("class A: pass\nclass B: pass", "defines neither a torch.nn.Module"),
        (
            "class A:\n    def __init__(self, size): pass",
            r"A\(\) failed, .* without arguments \(A\(size\)\): TypeError.*; --model-args '\{\"size\": ...\}' gives arguments",
        ),
        ("class A: pass", r"A\(\) gives a A, not a torch\.nn\.Module"),
        ("import nosuchmodule", "does not load: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def build(): return 1", r"build\(\) gives a int, not a torch\.nn\.Module; --class names the class"),
    ],
)
def test_a_model_file_that_defines_no_model_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """With what to do."""
    write_model(tmp_path)
    (tmp_path / "tiny.py").write_text(text)
    with pytest.raises(ToolError, match=message):
        load_model_file(tmp_path / "tiny.py", tmp_path / "tiny.pth", tmp_path / "none")


@pytest.mark.parametrize("name", ["types", "torch", "camserve", "my-model"])
def test_a_model_file_that_would_hide_another_module_is_refused(tmp_path: Path, name: str) -> None:
    """An archive's folder comes before the standard library in a worker."""
    write_model(tmp_path)
    (tmp_path / "tiny.py").rename(tmp_path / f"{name}.py")
    with pytest.raises(ToolError, match="rename it"):
        load_model_file(tmp_path / f"{name}.py", tmp_path / "tiny.pth", tmp_path / "none")


NETS = """
import enum, torch
from torch import nn


class Kind(enum.Enum):
    A = 1


class Cell(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.c = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return self.c(x)


def make_cell():
    return Cell()


class Base(nn.Module):
    def forward(self, x):
        return self.fc(self.cell(self.c(x)).mean((2, 3)))


class Net(Base):
    def __init__(self, classes{default}):
        super().__init__()
        self.c, self.cell, self.fc = nn.Conv2d(3, 4, 8, 8), make_cell(), nn.Linear(4, classes)
"""

MORE = {
    "plain": "",
    "a loss beside": "\nclass Loss(nn.Module):\n    pass\n",
    "another network": "\nclass Wide(Base):\n    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(8, 3)\n",
    "a function": "\ndef build():\n    return _inner(3)\n\n\ndef _inner(n):\n    return Net(n)\n",
    "functions": "\ndef build():\n    return inner(3)\n\n\ndef inner(n=7):\n    return Net(n)\n",
}


def load(folder: Path, text: str, name: str | None = None, **arguments: Any) -> ModelSource:
    """Loads a file with this text, and with the weights of its `Net` of three classes."""
    (folder / "nets.py").write_text(text)
    with Beside([folder], ()):
        torch.manual_seed(0)
        module = importlib.import_module("nets")
        torch.save(module.Net(3).state_dict(), folder / "nets.pth")
    (folder / "work").mkdir(exist_ok=True)
    return load_model_file(
        folder / "nets.py", folder / "nets.pth", folder / "none", workdir=folder / "work", name=name, arguments=arguments
    )


@pytest.mark.parametrize(
    ("default", "more", "name", "arguments", "taken", "why"),
    [
        ("=3", "plain", None, {}, "Net()", "which is no part of another"),
        ("=3", "functions", None, {}, "Net()", "which is no part of another"),
        ("=3", "a loss beside", None, {}, "Net()", "the only one of Loss, Net that the weights fit"),
        ("=3", "another network", None, {}, "Net()", "the only one of Net, Wide that the weights fit"),
        ("", "plain", None, {"classes": 3}, "Net(**{'classes': 3})", "which is no part of another"),
        ("=7", "plain", "Net", {"classes": 3}, "Net(**{'classes': 3})", ""),
        ("", "a function", None, {}, "build()", "which is no part of another"),
        ("", "functions", None, {}, "build()", "which is no part of another"),
        ("=7", "functions", "inner", {"n": 3}, "inner(**{'n': 3})", ""),
    ],
)
def test_the_model_of_a_file_is_what_is_no_part_of_another(
    tmp_path: Path, default: str, more: str, name: str | None, arguments: dict[str, Any], taken: str, why: str
) -> None:
    """Or what the flags name; and TorchServe gets a file with one class that builds the same."""
    source = load(tmp_path, NETS.format(default=default) + MORE[more], name, **arguments)
    assert source.model_file == tmp_path / "work" / "model_of_nets.py"
    assert f"return nets.{taken}\n" in source.model_file.read_text()
    assert source.notes == ((f"nets.py: the model is {taken.partition('(')[0]}, {why}",) if why else ())
    with Beside([tmp_path / "work", tmp_path], ()):
        (only,) = [each for each in vars(importlib.import_module("model_of_nets")).values() if isinstance(each, type)]
        again = only()
    again.load_state_dict(torch.load(tmp_path / "nets.pth", weights_only=True))
    picture = torch.rand(1, 3, 16, 16)
    assert torch.equal(again.eval()(picture), source.model(picture))
    assert source.beside == tmp_path


@pytest.mark.parametrize(
    ("default", "more", "name", "arguments", "message"),
    [
        (
            "=3",
            "class Other(Net):\n    pass\n\n\nclass Third(Net):\n    pass\n",
            None,
            {},
            "defines Other, Third, and .*fit Other, Third; --class Other",
        ),
        (
            "=5",
            "class Wide(Base):\n    pass\n",
            None,
            {},
            "defines Net, Wide, and nothing tells .* fit none of them; --class Net",
        ),
        ("", "", None, {}, r"Net\(\) failed.*--model-args '\{\"classes\": ...\}'"),
        ("", "", None, {"wide": 3}, r"Net\(wide=3\) failed \(Net\(classes\)\): .*--model-args '\{\"classes\": ...\}'"),
        ("=3", "", "Nett", {}, r"--class Nett: .* has no class or function of that name; the nearest is Net$"),
        ("=3", "", "torch", {}, r"--class torch: .* has no class or function of that name"),
    ],
)
def test_where_nothing_tells_which_class_is_the_model_it_is_asked_for(
    tmp_path: Path, default: str, more: str, name: str | None, arguments: dict[str, Any], message: str
) -> None:
    """Two networks of the same weights may differ in what they do with them."""
    with pytest.raises(ToolError, match=message):
        load(tmp_path, NETS.format(default=default) + "\n\n" + more, name, **arguments)


def test_a_file_with_one_class_goes_into_the_archive_as_it_is(tmp_path: Path) -> None:
    """So do its weights."""
    write_model(tmp_path)
    source = load_model_file(tmp_path / "tiny.py", tmp_path / "tiny.pth", tmp_path / "none")
    assert (source.model_file, source.weights, source.notes) == (tmp_path / "tiny.py", tmp_path / "tiny.pth", ())


def test_class_and_arguments_go_with_a_models_file() -> None:
    """Others have none to choose."""
    for flags in ({"class_name": "Net"}, {"model_args": {"n": 3}}):
        with pytest.raises(ToolError, match="goes with --model-file"):
            ModelFlags(torchvision="resnet18", **flags).check()
