"""Architectures of timm's by name: weights, classes, size of the pictures, preparation and labels."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from camserve.tools.archive.fresh.modules import Beside
from camserve.tools.console import ToolError
from camserve.tools.packaging.models.libraries.timm_models import TimmWeights, load_timm
from camserve.tools.packaging.models.source import ModelSource


def load(
    folder: Path, name: str, *, prefix: str = "", load_as: dict[str, Any] | None = None, **options: Any
) -> tuple[ModelSource, Any]:
    """An architecture loaded from a file of its weights, and the network that these are of."""
    torch.manual_seed(1)
    net = timm.create_model(name, **options).eval()
    torch.save({prefix + key: tensor for key, tensor in net.state_dict().items()}, folder / "w.pth")
    return load_timm(name, folder, TimmWeights(folder / "w.pth"), load_as or {}), net


def rebuild(source: ModelSource) -> Any:
    """What a worker builds."""
    assert source.model_file is not None
    with Beside([source.model_file.parent], ()):
        model = importlib.import_module(source.model_file.stem).Model()
    model.load_state_dict(source.model.state_dict())
    return model.eval()


@pytest.mark.parametrize(
    ("name", "options", "keys", "labels"),
    [
        (
            "test_resnet.r160_in1k",
            {},
            {"resize": 168, "crop": 160, "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5]},
            1000,
        ),
        ("test_vit", {"num_classes": 5, "img_size": 96}, {"resize": 101, "crop": 96, "mean": [0.5, 0.5, 0.5]}, None),
    ],
)
def test_an_architecture_is_built_for_its_weights(
    tmp_path: Path, name: str, options: dict[str, Any], keys: dict[str, Any], labels: int | None
) -> None:
    """And prepares pictures as its own configuration says; a worker builds the same."""
    source, net = load(tmp_path, name, **options)
    assert {key: source.preprocessing[key] for key in keys} == keys
    assert (source.notes, source.unprepared, source.weights) == ((), "", tmp_path / "w.pth")
    assert (source.labels and len(source.labels)) == labels
    assert not labels or source.labels[0] == "tench, Tinca tinca"  # type: ignore[index]
    side = keys["crop"]
    picture = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(rebuild(source)(picture), net(picture))


def test_arguments_and_prefixes_are_taken(tmp_path: Path) -> None:
    """What `create_model` takes, such as another pooling."""
    source, net = load(tmp_path, "test_resnet", prefix="model.", load_as={"global_pool": "max"}, num_classes=3, global_pool="max")
    assert source.notes == ("the prefix model. was taken off the weights' names",)
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(rebuild(source)(picture), net(picture))


def test_a_model_of_other_channels_must_be_told_how_pictures_are_prepared(tmp_path: Path) -> None:
    """timm publishes a mean for RGB alone."""
    source, _ = load(tmp_path, "test_resnet", load_as={"in_chans": 1}, in_chans=1, num_classes=3)
    with pytest.raises(ToolError, match=r"is for RGB pictures, .*; or say how with --resize, --crop"):
        source.choose_keys({"mean": (0.5,)})
    assert source.choose_keys({"mean": (0.5,), "std": (0.5,), "crop": 64})["crop"] == 64


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("test_vitt", {}, "has no architecture test_vitt; the nearest are .*test_vit"),
        ("test_vit.nonsense", {}, r"does not build test_vit.nonsense .*; its tags are test_vit\.r160_in1k"),
        ("test_vit", {"nonsense": 1}, "does not build test_vit with {'nonsense': 1}: TypeError"),
    ],
)
def test_what_timm_does_not_have_is_refused(tmp_path: Path, name: str, arguments: dict[str, Any], message: str) -> None:
    """With the nearest that it has."""
    with pytest.raises(ToolError, match=message):
        load_timm(name, tmp_path, TimmWeights(random=True), arguments)


def test_weights_that_cannot_be_downloaded_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with torchvision's."""

    def fail(*_: Any, pretrained: bool = False, **__: Any) -> Any:
        if pretrained:
            raise OSError("no network")
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ToolError, match=r"could not be loaded \(OSError: no network\); give a file of them with --weights FILE"):
        load_timm("resnet18", tmp_path, TimmWeights(), {})
