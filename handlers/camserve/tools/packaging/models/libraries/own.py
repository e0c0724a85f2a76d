"""What a module of timm's or transformers' in a user's own file says of itself: labels, preparation and kind of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from camserve.tools.packaging.models.libraries.preparation import Preparation
from camserve.tools.packaging.models.libraries.timm_models import find_timm_labels, prepare_as_timm
from camserve.tools.packaging.models.libraries.transformers_models import (
    find_default_processor,
    find_pretrained,
    find_processor,
    find_scores,
    find_transformers_labels,
    prepare_as_transformers,
    quiet,
    tell_scores,
)


@dataclass(frozen=True)
class Own:
    """What a model says of itself: keys of the configuration, labels, and what the user should hear."""

    keys: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    notes: tuple[str, ...] = ()


def describe_own(model: nn.Module, folders: Sequence[Path]) -> Own:
    """Asks the one module of timm's or transformers' in a model, if there is one, for what it says of itself.

    Labels are taken where nothing in the model learns but this module; its classes are then the model's.

    Args:
        folders: where transformers' `preprocessor_config.json` may lie: beside the weights, beside the model's file.
    """
    pretrained = find_pretrained(model)
    if pretrained is not None:
        return _describe_transformers(model, pretrained, folders)
    timms = _find_timms(model)
    if timms is None:
        return Own()
    prepared = prepare_as_timm(timms, f"timm's transform of {type(timms).__name__}")
    labels = find_timm_labels(timms) if _is_all(timms, model) else None
    return Own(prepared.keys, labels, _tell(prepared, f"a {type(timms).__name__} of timm's"))


def _describe_transformers(model: nn.Module, pretrained: Any, folders: Sequence[Path]) -> Own:
    config, name = pretrained.config, type(pretrained).__name__
    with quiet():
        found = next((each for folder in folders if (each := find_processor(folder)[0]) is not None), None)
        processor = found or find_default_processor(config)
    whole = _is_all(pretrained, model)
    labels = find_transformers_labels(config) if whole else None
    scores = find_scores(config) if whole else {}
    if processor is None:
        return Own(scores, labels, tuple(tell_scores(scores)))
    prepared = prepare_as_transformers(processor, config)
    notes = (*_tell(prepared, f"a {name} of transformers'"), *tell_scores(scores))
    if prepared.flipped:
        notes += ("Warning: its image processor hands over blue, green, red; give the model x.flip(1) in forward",)
    if found is None:
        notes += (
            "Warning: no preprocessor_config.json lies beside the weights, so pictures are prepared as "
            f"{type(processor).__name__} does by default; --resize, --crop, --interpolation, --mean and --std say otherwise",
        )
    return Own({**prepared.keys, **scores}, labels, notes)


def _tell(prepared: Preparation, whose: str) -> tuple[str, ...]:
    if prepared.fault:
        return (f"Warning: {prepared.fault}; --resize, --crop, --interpolation, --mean and --std say how",)
    return (f"The model is {whose}, which says how pictures are prepared", *([prepared.note] if prepared.note else []))


def _is_all(inner: nn.Module, model: nn.Module) -> bool:
    """Says whether all that a model has learnt is in one module of it."""
    return sum(1 for _ in inner.parameters()) == sum(1 for _ in model.parameters())


def _find_timms(model: nn.Module) -> Any:
    """The one outermost module of timm's that says how pictures are prepared for it; None where there are none or several."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        ours = type(module).__module__.partition(".")[0] == "timm" and isinstance(getattr(module, "pretrained_cfg", None), dict)
        if ours and not any(name.startswith(f"{outer}." if outer else "") for outer, _ in found):
            found.append((name, module))
    return found[0][1] if len(found) == 1 else None
