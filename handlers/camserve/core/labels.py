"""Classes by index and by label."""

from __future__ import annotations

from collections.abc import Mapping

from camserve.core.errors import ConfigError, RequestError
from camserve.core.text import find_nearest, join_names, show


class Labels:
    """The names of a model's `count` classes, from the mapping of `index_to_name.json`; without one, the index is the name.

    Args:
        count: number of the model's outputs.
        mapping: `{"0": "tench", ...}` as TorchServe loads it, or None.

    Raises:
        ConfigError: a class without a label, or a label without a class.
    """

    def __init__(self, count: int, mapping: Mapping[str, str] | None = None) -> None:
        self.names = tuple(str(index) for index in range(count))
        self.given = mapping is not None
        if mapping is not None:
            missing = [name for name in self.names if name not in mapping]
            surplus = sorted(set(mapping) - set(self.names))
            if missing or surplus:
                raise ConfigError(_mismatch(count, len(mapping), missing, surplus))
            self.names = tuple(mapping[name] for name in self.names)
        self._exact: dict[str, list[int]] = {}
        self._folded: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            self._exact.setdefault(name, []).append(index)
            self._folded.setdefault(name.casefold(), []).append(index)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> str:
        return self.names[index]

    def index(self, target: int | str) -> int:
        """The class index of an index or a label; labels match exactly, then case-insensitively.

        Raises:
            RequestError: 400 `InvalidOption` for an index out of range, 400 `UnknownLabel` for a label that is
                unknown (its nearest labels are named) or ambiguous (its indices are named).
        """
        if isinstance(target, int):
            if not 0 <= target < len(self):
                raise RequestError(
                    400, "InvalidOption", f"target: expected a class index from 0 to {len(self) - 1}, got {show(target)}"
                )
            return target
        indices = self._exact.get(target) or self._folded.get(target.casefold())
        if not indices:
            near = find_nearest(target, self.names)
            some = f"; give a class index from 0 to {len(self) - 1}, or a label such as {show(self.names[0])}"
            hint = f"; the nearest are {join_names(show(name) for name in near)}" if near else some
            if target.lstrip().startswith("[") or self._are_several(target):
                several = ", ".join(show(name) for name in self.names[:2])
                hint = f"; give several as a list: [{several}] (in headers and form fields too, as JSON){hint}"
            if _is_index(target, len(self)):
                hint += f"; for the class of this index send the number {int(target)}, not a string"
            raise RequestError(400, "UnknownLabel", f"target: no class has the label {show(target)}{hint}")
        if len(indices) > 1:
            raise RequestError(
                400,
                "UnknownLabel",
                f"target: the label {show(target)} is ambiguous; give its index: {join_names(indices)}",
            )
        return indices[0]

    def _are_several(self, target: str) -> bool:
        """Whether these are classes between commas, by label or index; a label may have commas itself."""
        parts = [part.strip() for part in target.split(",")]
        return len(parts) > 1 and all(part.casefold() in self._folded or _is_index(part, len(self)) for part in parts)


def _is_index(text: str, count: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) < count


def _mismatch(count: int, given: int, missing: list[str], surplus: list[str]) -> str:
    parts = [f"labels: the model has {count} outputs and the labels file {given} entries"]
    if missing:
        parts.append(f"no label for {join_names(missing, 5)}")
    if surplus:
        parts.append(f"no output for {join_names((show(key) for key in surplus), 5)}")
    return "; ".join(parts)
