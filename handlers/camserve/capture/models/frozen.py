"""Brings an eager module into the state in which it is looked at: evaluation mode, frozen, nothing compiled."""

from __future__ import annotations

from torch import nn


def freeze(model: nn.Module) -> None:
    """Put the model into eval mode, and let no parameter require a gradient."""
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def run_eagerly(model: nn.Module) -> None:
    """Let compiled parts of a model run as they were before they were compiled: a compiler would compile every hook anew.

    Names and the keys of the state dict stay.
    """
    for module in model.modules():
        inner = module._modules.get("_orig_mod")
        if inner is not None:
            module.forward = inner.__call__
