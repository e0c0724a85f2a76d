"""Forward hooks that live for one pass, and belong to the thread that runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from camserve.capture.survey.layers import Site
from camserve.capture.survey.layout import extract_tensor, replace_tensor

Keep = Callable[[str, Tensor], Tensor]
"""Takes a layer's name and output, and returns what the head is to go on with."""


@contextmanager
def hook_last_calls(
    model: nn.Module, sites: Mapping[str, Site], keep: Keep, modules: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Calls `keep` at the last call of each layer, in this thread only; the hooks are gone afterwards.

    Raises:
        RuntimeError: a layer ran another number of times than when it was surveyed.
    """
    names = modules or {}
    hooks = [_LastCall(site, keep) for site in sites.values()]
    handles = []
    try:
        for hook in hooks:
            module = model.get_submodule(names.get(hook.site.layer, hook.site.layer))
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
    for hook in hooks:
        hook.check()


@contextmanager
def hook_parents(model: nn.Module, names: Collection[str], ended: Callable[[], None]) -> Iterator[None]:
    """Calls `ended`, in this thread only, when a module ends in which one of the modules `names` runs."""
    thread = threading.get_ident()

    def hook(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        if threading.get_ident() == thread:
            ended()

    holders = {path for name in names for path in accumulate(name.split("."), "{}.{}".format)}.difference(names)
    handles = [model.get_submodule(path).register_forward_hook(hook) for path in holders]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def hook_every_call(model: nn.Module, look: Callable[[str, nn.Module, Any], None]) -> Iterator[None]:
    """Shows `look` the name, the module and the output of every call of a submodule."""

    def hook_for(name: str) -> Callable[..., None]:
        return lambda module, _inputs, output: look(name, module, output)

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _LastCall:
    """A forward hook that acts at the call that was the last one when the layer was surveyed."""

    def __init__(self, site: Site, keep: Keep) -> None:
        self.site = site
        self._keep = keep
        self._thread = threading.get_ident()
        self._calls = 0

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        if threading.get_ident() != self._thread:
            return None
        self._calls += 1
        tensor = extract_tensor(output)
        if self._calls != self.site.calls or tensor is None:
            return None
        return replace_tensor(output, self._keep(self.site.layer, tensor))

    def check(self) -> None:
        if self._calls != self.site.calls:
            raise RuntimeError(
                f"layer {self.site.layer} ran {self._calls} times in this pass, and {self.site.calls} times when the model was "
                "loaded: which call to explain is not known"
            )
