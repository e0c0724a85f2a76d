"""A flag for each key of the configuration: how words are read, and what help shows."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from camserve.core.config import (
    COLORMAPS,
    FORMATS,
    INTERPOLATIONS,
    KEYS,
    METHOD_ALIASES,
    METHODS,
    MORE_FORMATS,
    REFINECAM,
    defaults,
)
from camserve.core.errors import ConfigError
from camserve.tools.commands import inspect_model, package
from camserve.tools.packaging.flags.keys import GROUPS, LIMITS, RECORDED


@pytest.mark.parametrize("name", [name for name in KEYS if name not in {"layers", *RECORDED}])
def test_every_key_has_a_flag_that_takes_its_default(name: str) -> None:
    """The flag has the key's name, and what the worker reads is the default again."""
    default = defaults()[name]
    words = [
        word if isinstance(word, str) else json.dumps(word) for word in (default if isinstance(default, tuple) else [default])
    ]
    options = package.parse(["--demo", f"--{name.replace('_', '-')}", *words])
    assert options.keys == {name: default}


def test_random_weights_are_recorded() -> None:
    """So that the page and the doctor can say that the answers mean nothing."""
    assert package.parse(["--torchvision", "resnet18", "--random-weights"]).keys == {"random_weights": True}
    assert package.parse(["--torchvision", "resnet18"]).keys == {}


def test_layers_are_collected_in_order() -> None:
    """`--layer` comes before `--layers`; a number is a layer's name."""
    options = package.parse(["--demo", "--layer", "a", "--layer", "1", "--layers", "b", "2"])
    assert options.keys == {"layers": ("a", "1", "b", "2")}


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--mean", "0.1,0.2,0.3"], {"mean": (0.1, 0.2, 0.3)}),
        (["--mean", "0.1", "0.2", "0.3"], {"mean": (0.1, 0.2, 0.3)}),
        (["--resize", "24,32"], {"resize": (24, 32)}),
        (["--resize", "[24, 32]"], {"resize": (24, 32)}),
        (["--resize", "null"], {"resize": None}),
        (["--token-grid", "7,8"], {"token_grid": (7, 8)}),
        (["--token-grid", "7", "8", "1"], {"token_grid": (7, 8, 1)}),
        (["--layers", "a,b"], {"layers": ("a,b",)}),
    ],
)
def test_commas_may_stand_between_numbers(words: list[str], value: dict[str, object]) -> None:
    """But they are part of a layer's name."""
    assert package.parse(["--demo", *words]).keys == value


@pytest.mark.parametrize("word", ["0.1,,0.3", "a,b,c"])
def test_what_commas_part_must_be_numbers(word: str) -> None:
    """The message repeats what was read. How many there must be is said when the channels are known."""
    with pytest.raises(ConfigError, match="explain: mean: expected one number for each channel, got "):
        package.parse(["--demo", "--mean", word])


@pytest.mark.parametrize("tool", [package, inspect_model])
def test_help_shows_choices_and_how_many_words(tool: Any) -> None:
    """Of every key, in one group, the limits last."""
    text = tool.parser().format_help()
    for words in (
        f"--method {{{','.join([*METHODS, REFINECAM, *METHOD_ALIASES])}}}",
        f"--colormap {{{','.join(COLORMAPS)}}}",
        f"--interpolation {{{','.join(INTERPOLATIONS)}}}",
        f"--formats {{{','.join([*FORMATS, *MORE_FORMATS])}}} [...]",
        "--mean N [N ...]",
        "--resize PIXELS [PIXELS]",
        "--token-grid ROWS COLUMNS [BEFORE]",
        "--max-targets N",
        "--layers NAME [NAME ...]",
    ):
        assert re.search(re.escape(words) + "(\n|  )", text)
    assert all(text.count(f"\n  --{name.replace('_', '-')} ") == 1 for name in KEYS if name not in RECORDED)
    places = [text.index(f"\n{title}:") for title in ("the model, one of", "its weights", "its classes", *GROUPS, LIMITS)]
    assert places == sorted(places)
