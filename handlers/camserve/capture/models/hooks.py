"""Forward hooks that live for one pass, and belong to the thread that runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from camserve.capture.survey.layers import Site
from camserve.capture.survey.layout import extract_tensor, replace_tensor

Replace = Callable[[str, Tensor], Tensor]
"""Takes the key of a layer's call (`Site.keys`) and its output, and returns the tensor that the model goes on with."""


@contextmanager
def hook_calls(
    model: nn.Module, sites: Mapping[str, Site], replace: Replace, modules: Mapping[str, Sequence[str]] | None = None
) -> Iterator[None]:
    """Context manager that calls `replace` at the calls of each layer that are taken, in this thread only.

    Args:
        modules: the paths of the modules of layers that go by another name.

    Raises:
        RuntimeError: a layer ran another number of times than when it was surveyed.
    """
    names = modules or {}
    hooks = [_TakenCalls(site, replace) for site in sites.values()]
    handles = []
    try:
        for hook in hooks:
            paths = names.get(hook.site.layer, (hook.site.layer,))
            handles += [model.get_submodule(path).register_forward_hook(hook) for path in paths]
        yield
    finally:
        for handle in handles:
            handle.remove()
    for hook in hooks:
        hook.check()


@contextmanager
def hook_parents(model: nn.Module, names: Collection[str], ended: Callable[[], None]) -> Iterator[None]:
    """Context manager that calls `ended`, in this thread only, when a module that holds one of the modules `names` ends."""
    thread = threading.get_ident()

    def hook(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        if threading.get_ident() == thread:
            ended()

    parents = {path for name in names for path in accumulate(name.split("."), "{}.{}".format)}.difference(names)
    handles = [model.get_submodule(path).register_forward_hook(hook) for path in parents]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def hook_every_call(model: nn.Module, record: Callable[[str, nn.Module, Any], Any]) -> Iterator[None]:
    """Context manager that calls `record` with the name, the module and the output of every call of a submodule.

    What it returns, where that is not None, the model goes on with.
    """

    def hook_for(name: str) -> Callable[..., None]:
        return lambda module, _inputs, output: record(name, module, output)

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _TakenCalls:
    """A forward hook that acts at a layer's last call, or at each of several that are taken together."""

    def __init__(self, site: Site, replace: Replace) -> None:
        self.site = site
        self._replace = replace
        self._thread = threading.get_ident()
        self._calls = 0

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        if threading.get_ident() != self._thread:
            return None
        self._calls += 1
        tensor, key = extract_tensor(output), self.site.keys.get(self._calls)
        if key is None or tensor is None:
            return None
        return replace_tensor(output, self._replace(key, tensor))

    def check(self) -> None:
        if self._calls != self.site.calls:
            raise RuntimeError(
                f"layer {self.site.layer} ran {self._calls} times in this pass, and {self.site.calls} times when the model was "
                "loaded: which call to explain is not known"
            )
