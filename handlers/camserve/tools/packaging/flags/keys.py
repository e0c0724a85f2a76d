"""Command-line flags for the configuration's keys: one each, by the same name."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from camserve.core.config import FORMATS, KEYS, MEMORY_FORMATS, MORE_FORMATS, defaults, read_value
from camserve.core.errors import ConfigError

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "how pictures are prepared": (
            *("channels", "resize", "crop", "fit", "fill", "interpolation"),
            *("scale", "mean", "std", "exif", "fast_jpeg"),
        ),
        "what the model's scores are": ("output", "scores", "threshold"),
        "how they are explained": ("layers", "method", "checks", "colormap", "opacity"),
        "how the model runs": ("precision", "channels_last", "memory_format", "runtime", "token_grid", "monitor", "evidence"),
    }
)
"""The keys that a newcomer looks for first, by the title of their group; the others are limits."""

LIMITS = "limits of a request"

NUMBERS: Mapping[str, str] = MappingProxyType(
    {
        "resize": "PIXELS [PIXELS]",
        "crop": "PIXELS [PIXELS]",
        "fill": "SHARE [SHARE ...]",
        "mean": "N [N ...]",
        "std": "N [N ...]",
        "token_grid": "ROWS COLUMNS [BEFORE]",
    }
)
"""The keys that take several numbers, with their words on a command line. Commas may stand between them."""

WORDS: Mapping[str, str] = MappingProxyType(
    {
        **NUMBERS,
        **{name: f"{{{','.join(key.values.schema['enum'])}}}" for name, key in KEYS.items() if "enum" in key.values.schema},
        "layers": "NAME [NAME ...]",
        "allowed_hosts": "NAME [NAME ...]",
        "formats": f"{{{','.join((*FORMATS, *MORE_FORMATS))}}} [...]",
        "exif": "{true,false}",
        "fast_jpeg": "{true,false}",
        "checks": "{true,false}",
        "channels_last": "{true,false,null}",
        "memory_format": f"{{{','.join(MEMORY_FORMATS)},null}}",
        "opacity": "SHARE",
        "output": "NAME|N",
        "threshold": "SHARE",
        "scale": "FACTOR",
        "monitor": "VALUE",
        "evidence": "VALUE",
    }
)
"""What help shows behind a key's flag; `N` behind any other: a whole number."""


class HelpFormatter(argparse.HelpFormatter):
    """Shows a key's words as they are, where argparse would say `VALUE [VALUE ...]`."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.dest.startswith("key_"):
            return str(action.metavar)
        return super()._format_args(action, default_metavar)


RECORDED = frozenset({"random_weights"})
"""Keys that packaging writes by itself."""


def add_key_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--max-pixels` for `max_pixels` and so on, in groups, and `--layer`, repeatable, for `layers`."""
    parser.formatter_class = HelpFormatter
    grouped = {name for names in GROUPS.values() for name in names}
    for title, names in {**GROUPS, LIMITS: tuple(name for name in KEYS if name not in grouped | RECORDED)}.items():
        group = parser.add_argument_group(title)
        for name in names:
            flag = f"--{name.replace('_', '-')}"
            group.add_argument(flag, dest=f"key_{name}", nargs="+", metavar=WORDS.get(name, "N"), help=_help(name))
            if name == "layers":
                group.add_argument("--layer", action="append", metavar="NAME", help="one of --layers, repeatable")


def _help(name: str) -> str:
    key, value = KEYS[name], defaults()[name]
    default = " ".join(map(str, value)) if isinstance(value, tuple) else value if isinstance(value, str) else json.dumps(value)
    chosen = WORDS.get(name, "").startswith("{")
    accepted = "" if chosen else f": {key.values.accepts}"  # choices stand behind the flag
    return f"{key.meaning}{accepted} ({default or 'the last layer with a map'})".replace("%", "%%")


def read_keys(options: argparse.Namespace) -> dict[str, Any]:
    """Reads the keys that flags set, each as the worker will read it.

    Raises:
        ConfigError: a value that is not accepted.
    """
    words = {name: getattr(options, f"key_{name}") for name in KEYS if name not in RECORDED}
    if options.layer:
        words["layers"] = [*options.layer, *(words["layers"] or ())]
    return {name: _read(name, texts) for name, texts in words.items() if texts}


def _read(name: str, texts: Sequence[str]) -> Any:
    """Words are JSON (`224`, `true`, `null`) where the key accepts that, else they stand for themselves (layer `1`)."""
    if name in NUMBERS and len(texts) == 1 and "," in texts[0] and not texts[0].startswith("["):
        texts = texts[0].split(",")
    several = len(texts) > 1 or isinstance(defaults()[name], tuple)
    parsed = [_parse(text) for text in texts]
    try:
        return read_value(name, parsed if several else parsed[0])
    except ConfigError as error:
        try:
            return read_value(name, list(texts) if several else texts[0])
        except ConfigError:
            raise error from None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
