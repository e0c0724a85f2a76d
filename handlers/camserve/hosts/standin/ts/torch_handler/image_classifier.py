"""Classifies pictures."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from ..handler_utils.timer import timed
from ..utils.util import map_class_to_label
from .vision_handler import VisionHandler


@cache
def make_transforms() -> Any:
    """The stock handler's preprocessing."""
    from torchvision import transforms  # noqa: PLC0415 150 MB, and few archives need it

    return transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )


class _OnFirstUse:
    """An attribute of a class that is made when it is first read."""

    def __get__(self, instance: object, owner: type) -> Any:
        return make_transforms()


class ImageClassifier(VisionHandler):
    """The stock handler: the most probable classes of each picture."""

    topk = 5
    image_processing = _OnFirstUse()

    def set_max_result_classes(self, topk: int) -> None:
        self.topk = topk

    def get_max_result_classes(self) -> int:
        return self.topk

    @timed
    def postprocess(self, data: Any) -> Any:
        probabilities, classes = torch.topk(torch.softmax(data, dim=1), self.topk, dim=1)
        return map_class_to_label(probabilities.tolist(), self.mapping, classes.tolist())
