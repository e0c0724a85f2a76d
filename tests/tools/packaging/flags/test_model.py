"""The flags that say which model: which go together, what the model is called, and that its files are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from camserve.tools.console import ToolError
from camserve.tools.packaging.flags.model import ModelFlags

FILE = Path("folder/net.x")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (ModelFlags(), "give one of ARCHIVE, --torchvision ARCH, "),
        (ModelFlags(demo=True, torchvision="resnet18"), "give one of"),
        (ModelFlags(archive=FILE, exported=FILE), "give one of"),
        (ModelFlags(model_file=FILE), r"--model-file needs --weights FILE: a state dict, torch\.save"),
        (ModelFlags(demo=True, weights=FILE), "^--weights goes with --torchvision, --timm or --model-file; others bring"),
        (ModelFlags(exported=FILE, random_weights=True), "^--random-weights goes with --torchvision, --timm or --model-file"),
        (ModelFlags(transformers=FILE, weights=FILE), "^--weights goes with --torchvision, --timm or --model-file"),
        (ModelFlags(timm="resnet18", class_name="Net"), "^--class goes with --model-file"),
        (ModelFlags(exported=FILE, model_args={"n": 3}), "^--model-args goes with --model-file or --timm"),
        (ModelFlags(torchvision="resnet18", weights_key="ema"), "^--weights-key .* goes with --weights FILE"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags: ModelFlags, message: str) -> None:
    """Before any file is looked at."""
    with pytest.raises(ToolError, match=message):
        flags.check()


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (ModelFlags(torchvision="resnet18", weights=FILE), "resnet18"),
        (ModelFlags(model_file=FILE, weights=FILE), "net"),
        (ModelFlags(timm="test_vit.r160_in1k", random_weights=True), "test_vit.r160_in1k"),
        (ModelFlags(transformers=Path("folder/pets")), "pets"),
        (ModelFlags(torchscript=FILE), "net"),
        (ModelFlags(exported=FILE), "net"),
        (ModelFlags(archive=FILE), "net"),
        (ModelFlags(demo=True), "efficientnet_lite0"),
    ],
)
def test_a_model_is_called_by_its_architecture_or_its_file(flags: ModelFlags, name: str) -> None:
    """Where no flag names it."""
    flags.check()
    assert flags.default_name == name


@pytest.mark.parametrize("name", ["model_file", "weights", "torchscript", "exported", "labels"])
def test_each_file_must_be_there(tmp_path: Path, name: str) -> None:
    """A folder is none."""
    flag = f"--{name.replace('_', '-')}"
    cases: list[dict[str, Any]] = [{name: path} for path in (tmp_path / "none", tmp_path)]
    with pytest.raises(ToolError, match=f"{flag}: there is no file "):
        ModelFlags(**cases[0]).check_files()
    with pytest.raises(ToolError, match=f"{flag}: {tmp_path} is a folder, not a file"):
        ModelFlags(**cases[1]).check_files()
