"""Opens pictures."""

from __future__ import annotations

import base64
import io
from abc import ABC
from typing import Any

import torch
from PIL import Image

from ..handler_utils.timer import timed
from .base_handler import BaseHandler


class VisionHandler(BaseHandler, ABC):
    """The base of the handlers of pictures. Its explanations need captum, and so TorchServe's own."""

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        if not context.system_properties.get("limit_max_image_pixels"):
            Image.MAX_IMAGE_PIXELS = None

    @timed
    def preprocess(self, data: Any) -> Any:
        """Turn each row into a tensor: bytes are a picture, text is base64 of one, a list is a tensor."""
        tensors = []
        for row in data:
            value = row.get("data") or row.get("body")
            if isinstance(value, str):
                value = base64.b64decode(value)
            if isinstance(value, (bytearray, bytes)):
                step: Any = self.image_processing  # type: ignore[attr-defined]
                tensors.append(step(Image.open(io.BytesIO(value))))
            else:
                tensors.append(torch.FloatTensor(value))
        return torch.stack(tensors).to(self.device)

    def get_insights(self, tensor_data: Any, _: Any, target: int = 0) -> Any:
        raise NotImplementedError(
            "the stock handler's explanations need TorchServe and captum; camserve's handler brings its own"
        )
