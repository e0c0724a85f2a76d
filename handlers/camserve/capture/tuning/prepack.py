"""Convolutions on a CPU whose weights are in oneDNN's own memory format: otherwise oneDNN reorders them in every pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Undo = Callable[[], None]

Shapes = Mapping[str, tuple[int, ...]]
"""The inputs `[N, C, H, W]` of convolutions, by the modules' names."""


class PrepackedConv:
    """Replaces a convolution's `_conv_forward` where no gradient flows through it.

    The module's own `_conv_forward` runs where a gradient does, and where the weights are no longer those that were reordered:
    other parameters, other memory, or changed in place. Limitation: writes through `weight.data` do not bump the version counter
    and go unnoticed.

    It uses torch's private operators `mkldnn::_convolution_pointwise` and `mkldnn::_reorder_convolution_weight`, to which
    Inductor compiles convolutions. They have no gradients, and give maps in channels_last for any input. Copies and pickles of
    the module have torch's own convolution.

    Args:
        conv: with float32 weights on the CPU, and padded with a fixed number of zeros.
        shape: `[N, C, H, W]`, N at least 2, of the input that the weights are reordered for; other inputs take a little longer.

    Raises:
        RuntimeError, AttributeError: this torch lacks the operators, or they do not take this convolution.
    """

    def __init__(self, conv: nn.Conv2d, shape: tuple[int, ...]) -> None:
        self._conv = conv
        self._own = conv._conv_forward
        self._geometry = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        self._weight = conv.weight
        self._state = _state(conv.weight)
        self._many = self._reorder(shape)
        # a convolution of 1 x 1 is a product of matrices, for which oneDNN orders weights otherwise with a single picture
        self._one = self._reorder((1, *shape[1:])) if conv.kernel_size == (1, 1) else self._many

    def __call__(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve maps `[N, C, H, W]`; `weight` and `bias` are the module's."""
        unchanged = weight is self._weight and _state(weight) == self._state
        simple = maps.dim() == 4 and maps.dtype == torch.float32 and maps.device.type == "cpu" and maps.numel() > 0
        if not unchanged or not simple or _needs_gradient(maps, weight, bias) or torch.is_autocast_enabled("cpu"):
            own: Tensor = self._own(maps, weight, bias)
            return own
        reordered = self.weight_for(len(maps))
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(maps, reordered, bias, *self._geometry, "none", [], "")
        return result

    def weight_for(self, count: int) -> Tensor:
        """Return the reordered weight that convolves `count` maps at once."""
        return self._one if count == 1 else self._many

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._conv, "_conv_forward")

    def _reorder(self, shape: tuple[int, ...]) -> Tensor:
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        reordered: Tensor = reorder(self._weight.detach(), *self._geometry, list(shape))
        return reordered


def _state(weight: Tensor) -> tuple[int, int]:
    return weight._version, weight.data_ptr()


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def prepack(model: nn.Module, pictures: Tensor) -> Undo | None:
    """Reorder the weights of all convolutions that allow it, for the shapes of a run on `pictures`.

    The reordered weights take as much memory again. A convolution stays as it is where its class computes in its own way, where
    its weights are parametrised or not float32 on the CPU, and where torch lacks the operators or they refuse it.

    Args:
        pictures: `[N, 3, H, W]` of the weights' type, N at least 2.

    Returns:
        A function that undoes it; None where nothing was done.
    """
    replaced: list[nn.Module] = []
    modules = dict(model.named_modules())
    for name, shape in _shapes(model, modules, pictures).items():
        conv: Any = modules[name]
        try:
            conv._conv_forward = PrepackedConv(conv, shape)
        except (AttributeError, RuntimeError):
            continue
        replaced.append(conv)

    def undo() -> None:
        for conv in replaced:
            del conv._conv_forward

    return undo if replaced else None


def _shapes(model: nn.Module, modules: Mapping[str, nn.Module], pictures: Tensor) -> Shapes:
    """Return the shapes of the inputs of those convolutions that may be replaced."""
    replaceable = {name: module for name, module in modules.items() if _is_replaceable(module)}
    if not replaceable or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return {}
    shapes: dict[str, tuple[int, ...]] = {}

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() == 4:
                shapes[name] = tuple(inputs[0].shape)

        return hook

    handles = [module.register_forward_pre_hook(hook_for(name)) for name, module in replaceable.items()]
    try:
        with torch.no_grad():
            model(pictures)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _is_replaceable(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or "weight" not in module._parameters or "_conv_forward" in module.__dict__:
        return False
    own = type(module).forward is nn.Conv2d.forward and type(module)._conv_forward is nn.Conv2d._conv_forward
    zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return own and zeros and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu"
