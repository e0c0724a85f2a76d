"""Models that take something else than pictures: each is refused with what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from camserve.capture import open_backend
from camserve.core.config import Config
from camserve.core.errors import ConfigError


class Base(nn.Module):
    """A small classifier of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


class Several(Base):
    """Takes numbers beside the picture."""

    def forward(self, pictures: Tensor, age: Tensor, sex: Tensor) -> Tensor:
        """Scores `[N, 3]`."""
        scores: Tensor = self.body(pictures)
        return scores + age + sex


class ByName(Base):
    """Takes its picture by name alone."""

    def forward(self, *, pixel_values: Tensor) -> Tensor:
        """Scores `[N, 3]`."""
        scores: Tensor = self.body(pixel_values)
        return scores


class ByAnyName(Base):
    """Takes whatever it is given by name."""

    def forward(self, **batch: Tensor) -> Tensor:
        """Scores `[N, 3]`."""
        scores: Tensor = self.body(batch["image"])
        return scores


class Dictionary(Base):
    """Takes a dictionary."""

    def forward(self, batch: Any) -> Tensor:
        """Scores `[N, 3]`."""
        scores: Tensor = self.body(batch["image"])
        return scores


class Items(Base):
    """Takes a dictionary, and asks it for an item."""

    def forward(self, batch: Any) -> Tensor:
        """Scores `[N, 3]`."""
        scores: Tensor = self.body(batch.get("image"))
        return scores


class FiveCrops(Base):
    """Takes five crops of each picture."""

    def forward(self, crops: Tensor) -> Tensor:
        """Scores `[N, 3]`."""
        count, several, channels, height, width = crops.shape
        scores: Tensor = self.body(crops.view(-1, channels, height, width)).view(count, several, -1).mean(1)
        return scores


def volumes() -> nn.Module:
    """A network of volumes, as MONAI's."""
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))


def videos() -> nn.Module:
    """A network of videos, as torchvision's r3d_18."""
    return nn.Sequential(nn.Conv3d(3, 4, (3, 7, 7)), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))


def signals() -> nn.Module:
    """A network of sounds or signals."""
    return nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("build", "advice"),
    [
        (volumes, r"volumes or videos, .*: package a model of single slices or frames; .*--channels N"),
        (videos, "volumes or videos"),
        (signals, "signals, which have no picture"),
        (Several, r"further inputs \('age' and 'sex'\), .* wrap it in a module whose forward takes pictures"),
        (ByName, r"takes its pictures by name: wrap it .* self\.model\(pixel_values=x\)"),
        (ByAnyName, "takes its pictures by name"),
        (Dictionary, r"a dictionary: wrap it .* self\.model\(\{'image': x\}\)"),
        (Items, "a dictionary"),
        (FiveCrops, "several crops of each picture .* package the model that runs on one crop"),
        (lambda: nn.Sequential(nn.Conv2d(5, 4, 3), nn.Flatten()), r"it takes 5 channels, .* channels: 5 \(--channels 5\)"),
    ],
)
def test_what_is_no_model_of_pictures_is_refused_with_what_to_do(build: Any, advice: str) -> None:
    """In one line, with what the model itself said."""
    torch.manual_seed(0)
    refuse(build().eval(), advice)


@pytest.mark.parametrize(
    ("build", "advice"),
    [
        (volumes, "volumes or videos"),
        (signals, "signals, which have no picture"),
        (Several, r"further inputs \('age'\), .* wrap it in a module whose forward takes pictures"),
        (ByName, "takes its pictures by name"),
        (FiveCrops, "several crops of each picture"),
    ],
)
def test_torchscript_is_refused_in_the_same_words(build: Any, advice: str) -> None:
    """Its own errors are others."""
    refuse(torch.jit.script(build().eval()), advice)


def refuse(model: Any, advice: str) -> None:
    """The model is refused with this advice, in one line."""
    with pytest.raises(ConfigError, match=advice) as caught:
        open_backend(model, Config(), (32, 32), torch.device("cpu"))
    assert "\n" not in str(caught.value)
