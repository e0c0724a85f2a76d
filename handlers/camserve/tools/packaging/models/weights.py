"""Puts weights into a model: finds the prefix with which their names fit, and says in a user's terms why they do not."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from camserve.core.text import find_nearest
from camserve.tools.console import ToolError
from camserve.tools.packaging.models.checkpoints import StateDict, is_averaged, is_counter

LOSS = re.compile(r"loss|criteri|metric", re.IGNORECASE)
"""A module of a training script's that is no part of the network: what it keeps are numbers and lists of them."""

UNUSED = "num_batches_tracked"
"""The last part of names of numbers that only training needs, and old files do not have."""


def match_names(state: StateDict, own: StateDict) -> tuple[StateDict, list[str]]:
    """Takes off, or puts before every name, the one prefix with which all of a model's names are there.

    Where the names fit as they are, nothing is changed; where no prefix makes all fit, the one that makes most. `own` is the
    model's state dict, and may be on the meta device. Also returns what was done.

    Raises:
        ToolError: several networks in `state` fit, by different prefixes.
    """
    if _count(state, own) == len(_wanted(own)):
        return state, []
    renamed = {label: _rename(state, label) for label in _find_prefixes(state, own)}
    full = [label for label, each in renamed.items() if _count(each, own) == len(_wanted(own))]
    exact = [label for label in full if not _find_misshapen(renamed[label], own)] or full
    chosen = [label for label in exact if not is_averaged(label[1])] if len(exact) > 1 else exact
    if len(exact) > 1 and len(chosen) != 1:
        prefixes = [prefix for _, prefix in exact]
        raise ToolError(
            f"the weights hold several networks that fit, under {', '.join(prefixes)}; --weights-key {prefixes[0]} chooses one"
        )
    if not chosen:
        best = max(renamed, key=lambda label: _count(renamed[label], own), default=None)
        if best is None or _count(renamed[best], own) <= max(_count(state, own), len(own) // 2):
            return state, []
        chosen = [best]
    way, prefix = chosen[0]
    others = [each for _, each in exact if each != prefix]
    done = "taken off the weights' names" if way == "off" else "put before each of the weights' names"
    notes = [f"the prefix {prefix} was {done}"]
    if others:
        notes.append(f"the weights also hold averaged ones, under {', '.join(others)}; --weights-key {others[0]} takes those")
        state = {name: each for name, each in state.items() if not name.startswith(tuple(others))}
    return _rename(state, chosen[0]), notes


def _wanted(own: Mapping[str, object]) -> list[str]:
    return [name for name in own if name.rpartition(".")[2] != UNUSED]


def _count(state: Mapping[str, object], own: Mapping[str, object]) -> int:
    """How many of the model's names are there."""
    return sum(name in state for name in _wanted(own))


def _find_misshapen(state: StateDict, own: StateDict) -> list[str]:
    both = [name for name in state if isinstance(state[name], Tensor) and isinstance(own.get(name), Tensor)]
    return [name for name in both if state[name].shape != own[name].shape]


def _find_prefixes(state: Collection[str], own: Collection[str]) -> list[tuple[str, str]]:
    """The prefixes that make some name fit: `("off", prefix)` of the weights' names, `("before", prefix)` of the model's."""
    found: dict[tuple[str, str], None] = {}
    for way, longer, shorter in (("off", state, own), ("before", own, state)):
        for end in list(shorter)[:3]:
            for name in longer:
                if name.endswith(f".{end}"):
                    found[way, name.removesuffix(end)] = None
    return list(found)


def _rename(state: StateDict, label: tuple[str, str]) -> StateDict:
    way, prefix = label
    if way == "before":
        return {name if is_counter(name) else prefix + name: tensor for name, tensor in state.items()}
    inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    outer = {name: tensor for name, tensor in state.items() if not name.startswith(prefix) and name not in inner}
    return {**inner, **outer}


def load_into(model: nn.Module, state: StateDict, kind: str) -> list[str]:
    """Loads `state` into `model`, which its user knows as `kind`, and returns what was done to make it fit.

    One prefix is taken off or added where that makes every name fit. What is left over is left out where it is no weights:
    counters, and the numbers of a loss. A tensor that the model has under two names may be there under one.

    Raises:
        ToolError: tensors are missing, unknown or of another shape; all are counted and the first are named, unknown ones
            with the nearest name of the model's.
    """
    own = model.state_dict()
    state, notes = match_names(state, own)
    left = [name for name in state if name not in own and _is_no_weight(name, state[name])]
    if left:
        notes.append(f"left out, since they are no weights of the model's: {_name_some(left)}")
    if not hasattr(state, "_metadata") and any(not isinstance(each, Tensor) for each in state.values()):
        notes.append("the weights of quantized layers were written again, with the versions of their format, which were missing")
    state_kept = OrderedDict((name, tensor) for name, tensor in state.items() if name not in left)
    shapes = _find_misshapen(state_kept, own)
    fitting = OrderedDict((name, tensor) for name, tensor in state_kept.items() if name not in shapes)
    fitting._metadata = getattr(state, "_metadata", None) or own._metadata  # type: ignore[attr-defined]  # modules' versions
    result = model.load_state_dict(fitting, strict=False)
    missing = _find_missing([name for name in result.missing_keys if name not in shapes], fitting, own)
    unknown = list(result.unexpected_keys)
    parts = [
        _part(missing, "{} the model's tensors missing", str),
        _part(unknown, "{} unknown to the model", lambda name: _with_nearest(name, missing or list(own))),
        _part(shapes, "{} of another shape", lambda name: f"{name}: {list(state[name].shape)}, not {list(own[name].shape)}"),
    ]
    if any(parts):
        after = f" ({'; '.join(notes)})" if notes else ""
        raise ToolError(f"the weights do not fit {kind}{after}: " + "; ".join(part for part in parts if part))
    return notes


def _is_no_weight(name: str, tensor: Tensor) -> bool:
    """Says whether a name that the model does not know is a counter, or a number or list that a loss keeps.

    A matrix in a loss may be the head that the model lacks, so it is none of these.
    """
    return is_counter(name) or (
        isinstance(tensor, Tensor) and tensor.ndim < 2 and LOSS.search(name.partition(".")[0]) is not None
    )


def _find_missing(names: list[str], state: StateDict, own: Mapping[str, Any]) -> list[str]:
    """Those of the missing names that matter: neither unused, nor the second name of a tensor that is there."""
    places = {name: tensor.data_ptr() for name, tensor in own.items() if isinstance(tensor, Tensor)}  # a packed one has none
    there = {places[name] for name in state if name in places and own[name].numel()}
    return [name for name in names if name.rpartition(".")[2] != UNUSED and places.get(name) not in there]


def _name_some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _part(names: list[str], text: str, show: Callable[[str], str]) -> str:
    if not names:
        return ""
    what = text.format(f"{len(names)} of") if "model's" in text else text.format(len(names))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} ({', '.join(show(name) for name in names[:3])}{more})"


def _with_nearest(name: str, names: list[str]) -> str:
    near = find_nearest(name, names, 1)
    return f"{name}, nearest {near[0]}" if near else name


def count_classes(state: StateDict, default: StateDict, classes: int) -> int:
    """Counts the classes of a fine-tuned state dict: the rows of the tensor that has `classes` rows in `default`.

    `default` is the architecture's own state dict, and may be on the meta device. Returns `classes` where no tensor, or
    tensors in several ways, differ in their number of rows.
    """
    rows = {
        int(tensor.shape[0])
        for name, tensor in state.items()
        if name in default and tensor.ndim and default[name].ndim == tensor.ndim
        and default[name].shape[0] == classes and default[name].shape[1:] == tensor.shape[1:]
    }  # fmt: skip
    return rows.pop() if len(rows) == 1 else classes
