"""Times a handler's steps where the archive's `handler: {profile: true}` asks for it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch


def timed(func: Callable[..., Any]) -> Callable[..., Any]:
    """Reports how long a step took, in milliseconds, as the metric `ts_handler_NAME`."""

    @functools.wraps(func)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        settings = getattr(self.context, "model_yaml_config", None) or {} if self.context else {}
        if not (settings.get("handler") or {}).get("profile"):
            return func(self, *args, **kwargs)
        started = time.perf_counter()
        result = func(self, *args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.context.metrics.add_time("ts_handler_" + func.__name__, (time.perf_counter() - started) * 1000)
        return result

    return wrapped
