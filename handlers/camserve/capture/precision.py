"""Trials in full float32: where TensorFloat-32 is on, two ways to the same scores differ by more than rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch


@contextmanager
def disable_tf32() -> Iterator[None]:
    """In which GPUs multiply float32 with all its bits, in matrices and in convolutions.

    TorchServe sets the precision of matrices to `high` on GPUs that have TensorFloat-32, and cuDNN uses it by default; its
    operands have 10 bits behind the point, so that a trial would refuse what is equal. What has been set by torch's newer
    switches (`fp32_precision`), which do not go together with these, stays as it is.
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
