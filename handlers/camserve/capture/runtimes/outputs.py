"""A model as a runtime takes it: its scores, and beside them what some of its modules give."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from camserve.capture.survey.layout import extract_tensor
from camserve.capture.survey.outputs import Path, follow_path, list_entries, read_scores

SCORES = "scores"
"""The name of the first output, which holds the model's own values."""

AT = "at:"
"""How the names of a graph's other outputs begin: a module may be called `scores`, `pictures` or `4`, which no graph takes."""

Place = tuple[str, int]
"""A module's path, and which of its calls, from 1."""


class Outputs(nn.Module):
    """Gives a model's scores, and then what its modules give at some places, as a tuple of tensors.

    Args:
        model: eager, in eval mode; it is copied, and the copy shares its weights.
        places: under which name which call's output is given.
        path: where the scores lie in what the model gives.
    """

    def __init__(self, model: nn.Module, places: Mapping[str, Place], path: Path) -> None:
        super().__init__()
        self.model = copy_sharing(model)
        self._places = tuple(places.values())
        self._path = path
        self._kept: dict[Place, Tensor] = {}
        self._calls: dict[str, int] = {}
        for name in {name for name, _ in self._places}:
            self.model.get_submodule(name).register_forward_hook(self._hook(name))
        # a compiler counts what it compiles by the code, and gives up where many models share it
        own = FunctionType(Outputs.forward.__code__.replace(), globals(), "forward", Outputs.forward.__defaults__)
        self.forward = MethodType(own, self)  # type: ignore[method-assign]
        self.eval()

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Run the model over `[N, C, H, W]`; return its own values, and the places' outputs as the model lays them out."""
        self._kept.clear()
        self._calls.clear()
        scores = follow_path(self.model(pictures), self._path)
        kept = tuple(self._kept[place] for place in self._places)
        self._kept.clear()
        return (scores, *kept)

    def _hook(self, name: str) -> Any:
        wanted = {call for path, call in self._places if path == name}

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            call = self._calls.get(name, 0) + 1
            self._calls[name] = call
            tensor = extract_tensor(output)
            if call in wanted and tensor is not None:
                self._kept[name, call] = tensor.clone()  # what is behind may write into it

        return hook


def copy_sharing(model: nn.Module) -> nn.Module:
    """Copy a module's structure; parameters and buffers are the model's own."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(each): each for each in shared})


def find_path(model: nn.Module, pictures: Tensor, path: Path | None, width: int | None) -> Path:
    """Return where the scores of pictures `[N, C, H, W]` lie in what a model gives.

    Raises:
        ValueError: there are none.
    """
    if path is not None:
        return path
    with torch.no_grad():
        given = model(pictures)
    scores = read_scores(given, len(pictures), path, width)
    same = (entry.path for entry in list_entries(given) if entry.tensor.data_ptr() == scores.data_ptr())
    return next(same, ())


class _ScalarWatch(TorchDispatchMode):
    """Context manager that sees whether a value of a tensor becomes a number of Python's, by which code may decide."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: bool = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def decides_by_values(model: nn.Module, pictures: Tensor) -> bool:
    """Return whether the model's code looks at values while it runs over pictures `[N, C, H, W]`, and not only at shapes.

    What it decides by them is fixed in a graph: other pictures would go the way of those that it was written with.
    """
    watch = _ScalarWatch()
    with torch.no_grad(), watch:
        model(pictures)
    return watch.seen


def find_moving_axes(module: nn.Module, pictures: Tensor) -> list[dict[int, str]]:
    """Return, for each output, the axes whose length goes with the number of pictures, with a name for each."""
    with torch.no_grad():
        one, two = (module(pictures[:count]) for count in (1, 2))
    return [_moving(a.shape, b.shape, place) for place, (a, b) in enumerate(zip(one, two, strict=True))]


def _moving(one: Sequence[int], two: Sequence[int], place: int) -> dict[int, str]:
    return {axis: f"n{place}_{axis}" for axis, (a, b) in enumerate(zip(one, two, strict=True)) if a != b}
