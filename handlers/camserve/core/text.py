"""Text for messages: values as a message may repeat them, lists of names, and the names that are most like a wrong one."""

from __future__ import annotations

import difflib
import heapq
import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import islice, pairwise

_COMPARED = 100
"""Names that are compared in full."""

_LONGEST = 80
"""Characters of a name that are compared."""


def show(value: object, limit: int = 60) -> str:
    """Return `value` as a message may repeat it: ASCII, on one line, at most `limit` characters; JSON for a scalar."""
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, (bytes, bytearray)):
        value = bytes(value[: limit + 1]).decode("utf-8", "replace")
    if isinstance(value, str):
        value = value[: limit + 1]
    text = json.dumps(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def in_one_line(error: BaseException) -> str:
    """Say an exception in one line: its type and its message."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def join_names(names: Iterable[object], limit: int = 12, spell: Callable[[object], str] = str) -> str:
    """Join names to `a, b or c`, each as `spell` writes it; beyond `limit` names the rest is only counted: it may be millions."""
    rest = iter(names)
    words = [spell(name) for name in islice(rest, limit)]
    more = sum(1 for _ in rest)
    if more:
        return ", ".join(words) + f" or {more} more"
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def find_nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return the `count` names most like `name`, best first, whatever their case.

    Comparing 21,843 labels in full takes 281 ms, in which no other request is answered. So only the `_COMPARED` names that
    share most letters and pairs of letters with `name` are compared in full (19 ms), and of each only the beginning.
    """
    wanted = name.casefold()[:_LONGEST]
    by_folded, masks = _folded(tuple(names))
    keys: list[str] = list(by_folded)
    if len(keys) > _COMPARED:
        mask = _mask(wanted)
        shares = [(mask & each).bit_count() / ((mask | each).bit_count() or 1) for each in masks]
        keys = [keys[place] for place in heapq.nlargest(_COMPARED, range(len(keys)), key=shares.__getitem__)]
    return [by_folded[key] for key in difflib.get_close_matches(wanted, keys, n=count, cutoff=0.5)]


@lru_cache(maxsize=8)
def _folded(names: tuple[str, ...]) -> tuple[dict[str, str], list[int]]:
    """Return each name by its beginning in lower case, and the letter masks of those beginnings, in the same order."""
    by_folded: dict[str, str] = {}
    for name in names:
        by_folded.setdefault(name.casefold()[:_LONGEST], name)
    return by_folded, [_mask(key) for key in by_folded]


def _mask(text: str) -> int:
    """Return the set of `text`'s letters and pairs of letters as 512 bits; those that share a bit count as the same."""
    mask = 0
    for letter in text:
        mask |= 1 << ord(letter) % 128
    for first, second in pairwise(f" {text} "):
        mask |= 1 << 128 + (ord(first) * 31 + ord(second)) % 384
    return mask
