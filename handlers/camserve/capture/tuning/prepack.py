"""Convolutions whose weights lie as oneDNN computes with them, on a CPU: otherwise it rearranges all of them at every pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Undo = Callable[[], None]

Shapes = Mapping[str, tuple[int, ...]]
"""The inputs `[N, C, H, W]` of convolutions, by the modules' names."""


class PrepackedConv:
    """Stands in for a convolution's `_conv_forward` where no gradient flows through it; elsewhere that goes on as before.

    It goes on as before, too, where the weights are no longer those that were arranged: other parameters, other memory, or
    changed in place. A change in place through `weight.data` is the one that torch does not tell, and is not seen.

    What it rests on, `mkldnn::_convolution_pointwise` and `mkldnn::_reorder_convolution_weight`, are torch's private operators
    that Inductor compiles convolutions to. They have no gradients, and give maps in channels_last whatever they are given.
    Copies of the module, and what is pickled of it, have torch's own convolution.

    Args:
        conv: with weights of float32 on the CPU, and padded with a fixed number of zeros.
        shape: `[N, C, H, W]`, N at least 2, of an input that the weights are arranged for; others take a little longer.

    Raises:
        RuntimeError, AttributeError: this torch does not have what arranges weights, or it does not take this convolution.
    """

    def __init__(self, conv: nn.Conv2d, shape: tuple[int, ...]) -> None:
        self._conv = conv
        self._own = conv._conv_forward
        self._geometry = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        self._weight = conv.weight
        self._state = _state(conv.weight)
        self._many = self._arranged(shape)
        # one by one, a convolution is a product of matrices, and that of a lone picture has another arrangement
        self._one = self._arranged((1, *shape[1:])) if conv.kernel_size == (1, 1) else self._many

    def __call__(self, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of `given`; `weight` and `bias` are the module's."""
        known = weight is self._weight and _state(weight) == self._state
        simple = given.dim() == 4 and given.dtype == torch.float32 and given.device.type == "cpu" and given.numel() > 0
        if not known or not simple or _differentiated(given, weight, bias) or torch.is_autocast_enabled("cpu"):
            own: Tensor = self._own(given, weight, bias)
            return own
        packed = self._one if len(given) == 1 else self._many
        found: Tensor = torch.ops.mkldnn._convolution_pointwise(given, packed, bias, *self._geometry, "none", [], "")
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._conv, "_conv_forward")

    def _arranged(self, shape: tuple[int, ...]) -> Tensor:
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        arranged: Tensor = reorder(self._weight.detach(), *self._geometry, list(shape))
        return arranged


def _state(weight: Tensor) -> tuple[int, int]:
    return weight._version, weight.data_ptr()


def _differentiated(*given: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in given)


def prepack(model: nn.Module, pictures: Tensor) -> Undo | None:
    """Arranges the weights of all convolutions that allow it, as a run on `pictures` `[N, 3, H, W]` uses them; takes as much
    memory again as these weights do. Returns what takes it back; None where nothing was done.

    A convolution stays as it is where its class computes in its own way, where its weights are computed (parametrised) or not
    of float32 on the CPU, and where torch does not have or does not take what arranges weights.

    Args:
        pictures: of the weights' dtype, and N at least 2.
    """
    done: list[nn.Module] = []
    modules = dict(model.named_modules())
    for name, shape in _shapes(model, modules, pictures).items():
        conv: Any = modules[name]
        try:
            conv._conv_forward = PrepackedConv(conv, shape)
        except (AttributeError, RuntimeError):
            continue
        done.append(conv)

    def undo() -> None:
        for conv in done:
            del conv._conv_forward

    return undo if done else None


def _shapes(model: nn.Module, modules: Mapping[str, nn.Module], pictures: Tensor) -> Shapes:
    """What those convolutions were given that may be arranged."""
    suiting = {name: module for name, module in modules.items() if _suits(module)}
    if not suiting or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return {}
    found: dict[str, tuple[int, ...]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() == 4:
                found[name] = tuple(inputs[0].shape)

        return hook

    handles = [module.register_forward_pre_hook(keep(name)) for name, module in suiting.items()]
    try:
        with torch.no_grad():
            model(pictures)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _suits(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or "weight" not in module._parameters or "_conv_forward" in module.__dict__:
        return False
    own = type(module).forward is nn.Conv2d.forward and type(module)._conv_forward is nn.Conv2d._conv_forward
    zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return own and zeros and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu"
