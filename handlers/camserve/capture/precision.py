"""Full float32 for trials: with TensorFloat-32, two ways to the same scores differ by more than float32's rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch


@contextmanager
def disable_tf32() -> Iterator[None]:
    """Context manager that disables TF32 for matrix products and cuDNN convolutions.

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
