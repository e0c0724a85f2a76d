"""In which precision a model runs, and full float32 for trials."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def disable_tf32() -> Iterator[None]:
    """Context manager that disables TF32 for matrix products and cuDNN convolutions: with it, two ways to the same scores differ.

    TorchServe turns TF32 on for matrix products, and cuDNN uses it by default. Its operands have a mantissa of 10 bits, so that
    a trial would take equal results for different ones. Where torch's newer switches (`fp32_precision`) are in use, which do
    not mix with the older ones, convolutions stay as they are.
    """
    matrices, convolutions = torch.get_float32_matmul_precision(), None
    with suppress(RuntimeError):  # set by the newer switches
        convolutions = torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions


def find_dtype(weights: Iterable[Tensor]) -> torch.dtype | None:
    """Return the type of the first floating weight, which is the type of pictures that the model takes; None: there is none."""
    return next((weight.dtype for weight in weights if weight.is_floating_point()), None)


def cast_input(model: nn.Module, pictures: Tensor) -> Tensor:
    """Convert pictures `[N, 3, H, W]` to the type of the model's parameters, or of its buffers where it has no parameters."""
    return pictures.to(find_dtype(chain(model.parameters(), model.buffers())) or pictures.dtype)


def precision_context(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Return what makes the context in which the model runs: autocast for half precision, nothing for float32."""
    if precision == "float32":
        return nullcontext
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    return lambda: torch.autocast(device.type, dtype)
