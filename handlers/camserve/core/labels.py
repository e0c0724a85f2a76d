"""Classes by index and by label, and the files that name them."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

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

    def index_or_lowered(self, target: str) -> int:
        """The index of a label or of a decimal index; behind a `-`, unless a label begins so, `~index`: what lowers the value.

        Raises:
            RequestError: as `index` does.
        """
        if self._exact.get(target) or self._folded.get(target.casefold()):
            return self.index(target)
        lowered = target.startswith("-")
        name = target.removeprefix("-")
        known = self._exact.get(name) or self._folded.get(name.casefold())
        index = self.index(int(name) if not known and _is_index(name, len(self)) else name)
        return ~index if lowered else index

    def _are_several(self, target: str) -> bool:
        """Whether these are classes between commas, by label or index; a label may have commas itself."""
        parts = [part.strip() for part in target.split(",")]
        return len(parts) > 1 and all(part.casefold() in self._folded or _is_index(part, len(self)) for part in parts)


WRAPPERS = ("id2label", "label2id", "idx_to_class", "class_to_idx", "object_type_names", "label_names", "class_names", "classes")
"""Keys under which a larger JSON document holds the labels: a transformers `config.json`, for one."""

INSTEAD = 'write {"0": "cat", "1": "dog", ...}, a list ["cat", "dog", ...], or one name a line'

_NUMBERED = re.compile(r"(\d+)(?:\s*[:;=,]\s*|\s+)(\S.*)")
_BEHIND = re.compile(r"(.*\S)(?:\s*[:;=,]\s*|\s+)(\d+)")


def parse_labels(content: bytes) -> dict[str, str]:
    """Read a file of labels: index to name, in decimal digits, as `index_to_name.json` has it.

    Accepted: JSON of index to name (or to a list that ends in it, as TorchServe takes it), a list of names, or name to index as
    ImageFolder's `class_to_idx` has it; a document that holds one of these under one of `WRAPPERS`; text with one name a line.
    UTF-8, or UTF-16 with a byte order mark.

    Raises:
        ConfigError: none of these, or one that can be read in two ways; says what to write instead.
    """
    text = _decode(content).strip()
    if not text:
        raise ConfigError(f"the file is empty; {INSTEAD}")
    if text[0] not in "{[":
        return _number(_read_lines(text))
    try:
        document = json.loads(text, object_pairs_hook=_read_pairs)
    except ValueError as error:
        raise ConfigError(f"it is not valid JSON: {error}; {INSTEAD}") from error
    return _read_document(document)


def _decode(content: bytes) -> str:
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"it is not text in UTF-8 (byte {error.start}); save it as UTF-8") from error


def _read_pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ValueError(f"the key {show(twice)} stands there twice")
    return dict(pairs)


def _read_document(document: Any) -> dict[str, str]:
    if isinstance(document, list):
        return _number([_read_name(each, f"entry {index}") for index, each in enumerate(document)])
    held = {key: document[key] for key in WRAPPERS if isinstance(document.get(key), (dict, list)) and document[key]}
    if "id2label" in held:  # what transformers goes by; label2id beside it is often left as it was
        return _read_document(held["id2label"])
    readings = {key: _read_document(value) for key, value in held.items()}
    if len({tuple(sorted(each.items())) for each in readings.values()}) > 1:
        raise ConfigError(f"it holds labels under {join_names(readings)}, and they differ; {INSTEAD}")
    if readings:
        return next(iter(readings.values()))
    if document and all(isinstance(value, int) and not isinstance(value, bool) for value in document.values()):
        return _invert(document)
    wrong = next((key for key in document if not _is_decimal(key)), None)
    if wrong is not None or not document:
        raise ConfigError(f"expected an index before each name, got {show(wrong) if document else 'no entries'}; {INSTEAD}")
    names = {key: _read_name(value, f"the entry {show(key)}") for key, value in document.items()}
    indices = {str(int(key)): name for key, name in names.items()}
    if len(indices) < len(names):
        raise ConfigError(f"the same index stands there twice; {INSTEAD}")
    return indices


def _read_name(value: Any, place: str) -> str:
    last = value[-1] if isinstance(value, list) and value else value
    if not isinstance(last, str):
        raise ConfigError(f"{place}: expected a name, or a list whose last entry is one, got {show(value)}; {INSTEAD}")
    return last


def _invert(document: Mapping[str, int]) -> dict[str, str]:
    """Read name to index. Names that are numbers themselves count as such only in the order in which ImageFolder puts them."""
    if sorted(document.values()) != list(range(len(document))):
        raise ConfigError(
            f"it maps names to numbers, and these are not 0 to {len(document) - 1}, each once, so they are no classes' indices; "
            f"{INSTEAD}"
        )
    by_index = sorted(document, key=lambda name: document[name])
    if all(_is_decimal(name) for name in document) and by_index not in (sorted(document), sorted(document, key=int)):
        raise ConfigError(
            "it maps numbers to numbers, so either may be the index; write the index as a key and the name as a string: "
            f'{{"{document[by_index[0]]}": "{by_index[0]}", ...}}, or the other way round'
        )
    return _number(by_index)


def _read_lines(text: str) -> list[str]:
    """One name a line, or one index with its name."""
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    if "" in lines:
        raise ConfigError(f"line {lines.index('') + 1} is empty; one name a line, and a name for each class")
    if len(lines) == 1 and "," in text:
        raise ConfigError(f"it is one line with commas; {INSTEAD}")
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if sum(each is not None for each in numbered) < max(2, len(lines) - 1):
        _refuse_numbers_behind(lines)
        return lines
    indices = [int(each[1]) if each else -1 for each in numbered]
    if sorted(indices) != list(range(len(lines))):
        raise ConfigError(
            f"nearly every line begins with a number, and these are not 0 to {len(lines) - 1}, each once, so it is not known "
            f"whether they are the classes' indices or part of their names; {INSTEAD}"
        )
    by_index = {int(each[1]): each[2] for each in numbered if each}
    return [by_index[index] for index in range(len(lines))]


def _refuse_numbers_behind(lines: Sequence[str]) -> None:
    """Refuse lines that end in numbers which may be indices: each once, behind names that differ."""
    behind = [found for line in lines if (found := _BEHIND.fullmatch(line))]
    numbers, names = {int(each[2]) for each in behind}, {each[1] for each in behind}
    if len(lines) > 1 and len(behind) == len(numbers) == len(names) == len(lines):
        raise ConfigError(
            f"each line ends in a number, and it is not known whether that is the class's index or part of its name; {INSTEAD}"
        )


def _number(names: Sequence[str]) -> dict[str, str]:
    if not names:
        raise ConfigError(f"it names no class; {INSTEAD}")
    return {str(index): name for index, name in enumerate(names)}


def _is_decimal(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def name_both(mapping: Mapping[str, str]) -> Mapping[str, str]:
    """Name the two classes of a single logit of which one name is given, the positive one's."""
    if len(mapping) != 1:
        return mapping
    (positive,) = mapping.values()
    return {"0": f"not {positive}", "1": positive}


def _is_index(text: str, count: int) -> bool:
    return _is_decimal(text) and int(text) < count


def _mismatch(count: int, given: int, missing: list[str], surplus: list[str]) -> str:
    parts = [f"labels: the model has {count} outputs and the labels file {given} entries"]
    if missing:
        parts.append(f"no label for {join_names(missing, 5)}")
    if surplus:
        parts.append(f"no output for {join_names((show(key) for key in surplus), 5)}")
    if missing == ["0"] and surplus == [str(count)]:
        parts.append("the labels count from 1, and the classes from 0")
    return "; ".join(parts)
