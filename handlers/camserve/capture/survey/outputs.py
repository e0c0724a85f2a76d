"""What a model gives, taken apart into its tensors, and the class scores `[N, K]` among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from camserve.core.text import join_names

Path = tuple[int | str, ...]
"""Where a tensor lies in what a model gives: keys, names of fields and places, from the outside in."""

DEPTH = 3
"""How many tuples, lists, dictionaries and objects may lie inside each other."""

OUTPUT_FAULTS = (
    "the model's output must be class scores of shape",
    "the model must give one row of class scores for each picture",
)
"""How the messages of `read_scores` begin."""


@dataclass(frozen=True)
class Entry:
    """One tensor of what a model gives."""

    path: Path
    tensor: Tensor

    @property
    def name(self) -> str:
        """How the configuration names it: `logits`, `1`, `heads.0`."""
        return name_path(self.path)


def name_path(path: Path) -> str:
    """Return a path as the configuration has it."""
    return ".".join(map(str, path))


def list_entries(output: Any, path: Path = ()) -> list[Entry]:
    """List the tensors of what a model gives, in order: of tuples and lists by place, of others by key or name."""
    if isinstance(output, Tensor):
        return [Entry(path, output)]
    if len(path) == DEPTH:
        return []
    return [entry for part, value in _parts(output) for entry in list_entries(value, (*path, part))]


def _parts(output: Any) -> Iterator[tuple[int | str, Any]]:
    if isinstance(output, Mapping):
        yield from ((key, value) for key, value in output.items() if isinstance(key, (str, int)))
    elif isinstance(output, (tuple, list)):
        yield from zip(getattr(output, "_fields", range(len(output))), output, strict=True)
    elif not isinstance(output, (str, bytes, type(None))):
        named = {name: value for name, value in getattr(output, "__dict__", {}).items() if not name.startswith("_")}
        if hasattr(output, "logits"):
            named = {"logits": output.logits, **named}
        yield from named.items()


def follow_path(output: Any, path: Path) -> Any:
    """Return what lies at a path; None: nothing does."""
    for part in path:
        if isinstance(output, Mapping):
            output = output.get(part)
        elif isinstance(part, int):
            output = output[part] if isinstance(output, (tuple, list)) and part < len(output) else None
        else:
            output = getattr(output, part, None)
    return output


def as_rows(tensor: Tensor, count: int) -> Tensor | None:
    """Return a tensor as one row of scores `[N, K]` for each of `count` pictures; None: it is none.

    `[N]` is one score for each; of a single picture `[K]` is its row, and a single number its only score.
    """
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return None
    if tensor.ndim < 2:
        return tensor.reshape(count, -1) if count in (1, tensor.numel()) else None
    if len(tensor) != count or any(side != 1 for side in tensor.shape[2:]):
        return None
    return tensor.flatten(1)


def read_scores(output: Any, count: int, path: Path | None = None, width: int | None = None) -> Tensor:
    """Return the rows of scores `[N, K]` of what a model gives for `count` pictures.

    Args:
        path: where they lie; None: the first that there are.
        width: how many there must be for each picture; None: any number.

    Raises:
        ValueError: there are none there, or not as many rows.
    """
    found = (
        list_entries(output) if path is None else [Entry(path, each) for each in [follow_path(output, path)] if is_tensor(each)]
    )
    for entry in found:
        rows = as_rows(entry.tensor, count)
        if rows is not None and width in (None, rows.shape[1]):
            return rows
    raise ValueError(describe_fault(found, count))


def is_tensor(value: object) -> bool:
    """Return whether it is a tensor."""
    return isinstance(value, Tensor)


def describe_fault(entries: list[Entry], count: int) -> str:
    """Say why there are no rows of scores for `count` pictures in what a model gives."""
    if len(entries) == 1 and entries[0].tensor.is_floating_point():
        shape = entries[0].tensor.shape
        if len(shape) == 2 and 0 not in shape:
            return f"{OUTPUT_FAULTS[1]}, got {shape[0]} for {count}"
    if len(entries) > 1:
        return f"{OUTPUT_FAULTS[0]} [N, classes], got {list_shapes(entries)}"
    got = f"shape {list(entries[0].tensor.shape)}" if entries else "no tensor"
    if entries and not entries[0].tensor.is_floating_point():
        got += f" of {str(entries[0].tensor.dtype).removeprefix('torch.')}, which are no scores (perhaps it returns an argmax)"
    return f"{OUTPUT_FAULTS[0]} [N, classes], got {got}"


def list_shapes(entries: list[Entry], limit: int = 6) -> str:
    """Name entries with their shapes, of so many pictures: `0 [2, 32] and 1 [2, 5]`."""
    words = [f"{entry.name} {list(entry.tensor.shape)}" for entry in entries]
    return " and ".join(words) if len(words) < 3 else join_names(words, limit).replace(" or ", " and ")
