"""Which layers of a model have a map, found by running it once, and which of them to explain by default."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture.base import Site
from camserve.capture.eager import Eager
from camserve.capture.layout import Layout, first_tensor, layout_of, logits_of
from camserve.errors import ConfigError, listed, nearest

PASS_THROUGH = (nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd, nn.AdaptiveAvgPool2d, nn.AvgPool2d)
"""Modules that compute nothing of their own, or that pool: the layer before them is the one to explain."""


@dataclass(frozen=True)
class LayerInfo:
    """One layer as the survey saw it at its last call.

    `layout` is None where the output is no map; `signed`: some activations were negative.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    calls: int
    layout: Layout | None
    signed: bool

    @property
    def cells(self) -> int:
        """Number of cells of the map; 0 without one."""
        return self.layout.height * self.layout.width if self.layout else 0

    @property
    def site(self) -> Site:
        """Where the capture takes the map from."""
        if self.layout is None:
            raise ConfigError(f"layer {self.name} has no spatial map: its output has the shape {list(self.shape)}")
        return Site(self.name, self.calls, self.layout)


@dataclass(frozen=True)
class Survey:
    """All layers that ran, in the order in which they last finished, and the number of the model's outputs."""

    layers: tuple[LayerInfo, ...]
    outputs: int

    @property
    def maps(self) -> tuple[LayerInfo, ...]:
        """The layers that have a map of more than one cell."""
        return tuple(info for info in self.layers if info.cells > 1)

    def site(self, name: str) -> Site:
        """The site of a layer.

        Raises:
            ConfigError: no such layer, or it has no spatial map; the nearest layers that have one are named.
        """
        by_name = {info.name: info for info in self.layers}
        if name in by_name and by_name[name].cells > 1:
            return by_name[name].site
        maps = [info.name for info in self.maps]
        near = nearest(name, maps) or maps[-3:]
        hint = f"; layers with a map: {listed(near)}" if near else "; this model has no layer with a map"
        if name in by_name:
            raise ConfigError(f"layer {name} has no spatial map: its output has the shape {list(by_name[name].shape)}{hint}")
        raise ConfigError(f"layer {name} does not exist, or does not run{hint}")


def survey(model: nn.Module, pictures: Tensor, token_grid: tuple[int, int] | None = None) -> Survey:
    """Runs `model` (frozen, in eval mode) once over `pictures` `[N, 3, H, W]`, N at least 2, and describes every layer."""
    size = (pictures.shape[2], pictures.shape[3])
    calls: dict[str, int] = {}
    seen: dict[str, LayerInfo] = {}

    def look(name: str, module: nn.Module, output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        tensor = first_tensor(output)
        seen.pop(name, None)
        if tensor is not None:
            layout = layout_of(tensor, pictures.shape[0], size, token_grid)
            signed = bool(tensor.is_floating_point() and (tensor < 0).any())
            seen[name] = LayerInfo(name, type(module).__name__, tuple(tensor.shape), calls[name], layout, signed)

    with torch.no_grad(), _watched(model, look):
        scores = logits_of(model(pictures))
    return Survey(tuple(seen.values()), scores.shape[1])


@contextmanager
def _watched(model: nn.Module, look: Any) -> Iterator[None]:
    handles = [
        module.register_forward_hook(lambda module, _inputs, output, name=name: look(name, module, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def default_layer(model: nn.Module, pictures: Tensor, found: Survey) -> tuple[str, str]:
    """The layer to explain where none is named, and why: the last one whose map still decides the prediction.

    Skipped are modules that only pool or pass on, maps of class scores, and maps that the top score does not depend on
    (a vision transformer's last block: only its class token is read).

    Raises:
        ConfigError: the model has no such layer.
    """
    modules = dict(model.named_modules())
    candidates = [info for info in found.maps if not isinstance(modules[info.name], PASS_THROUGH)]
    earlier = [info for info in candidates if info.layout and info.layout.channels != found.outputs]
    candidates = earlier or candidates
    for start in range(len(candidates), 0, -8):
        for info in reversed(_connected(model, pictures, candidates[max(0, start - 8) : start])):
            return info.name, _reason(info, found)
    raise ConfigError("this model has no layer with a spatial map that its prediction depends on")


def _connected(model: nn.Module, pictures: Tensor, infos: Sequence[LayerInfo]) -> list[LayerInfo]:
    """Those whose map changes the top score in more than one cell: where one token holds all, there is nothing to see."""
    picture = pictures[:1]
    sites = {info.name: info.site for info in infos}
    captured = Eager(model, sites).forward(picture, sites)
    row, target = torch.zeros(1, dtype=torch.long), captured.logits.argmax(1).cpu()
    connected = []
    for info in infos:
        try:
            gradient = captured.gradients(info.name, row.to(picture.device), target.to(picture.device))
        except RuntimeError:  # the scores do not depend on this layer at all
            continue
        if int((gradient != 0).any(1).sum()) > 1:
            connected.append(info)
    return connected


def _reason(info: LayerInfo, found: Survey) -> str:
    layout = info.site.layout
    calls = f", at the last of its {info.calls} calls" if info.calls > 1 else ""
    return (
        f"the last of {len(found.maps)} layers with a map that the prediction depends on: "
        f"{layout.channels} channels, {layout.height}x{layout.width} cells{calls}"
    )
