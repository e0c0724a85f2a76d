"""Command-line flags for the configuration's keys: one each, by the same name."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from camserve.core.config import KEYS, defaults, read_value
from camserve.core.errors import ConfigError


def add_flags(group: Any) -> None:
    """Adds `--max-pixels` for `max_pixels` and so on to a parser or a group, and `--layer`, repeatable, for `layers`."""
    for name, key in KEYS.items():
        default = "the last layer with a map" if name == "layers" else json.dumps(defaults()[name])
        text = f"{key.meaning}: {key.values.accepts} ({default})".replace("%", "%%")
        group.add_argument(f"--{name.replace('_', '-')}", dest=f"key_{name}", nargs="+", metavar="VALUE", help=text)
    group.add_argument("--layer", action="append", metavar="NAME", help="one of --layers, repeatable")


def given_keys(options: argparse.Namespace) -> dict[str, Any]:
    """The keys that flags set, each read as the worker will read it.

    Raises:
        ConfigError: a value that is not accepted.
    """
    words = {name: getattr(options, f"key_{name}") for name in KEYS}
    if options.layer:
        words["layers"] = [*options.layer, *(words["layers"] or ())]
    return {name: _read(name, texts) for name, texts in words.items() if texts}


def _read(name: str, texts: Sequence[str]) -> Any:
    """Words are JSON (`224`, `true`, `null`) where the key accepts that, else they stand for themselves (layer `1`)."""
    several = len(texts) > 1 or isinstance(defaults()[name], tuple)
    parsed = [_scalar(text) for text in texts]
    try:
        return read_value(name, parsed if several else parsed[0])
    except ConfigError as error:
        try:
            return read_value(name, list(texts) if several else texts[0])
        except ConfigError:
            raise error from None


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
