"""The configuration: every key validated, nothing unknown accepted, one line that says what is wrong."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest

from camserve.core.config import KEYS, Config, defaults
from camserve.core.errors import ConfigError


def test_an_empty_section_gives_the_documented_defaults() -> None:
    """Nothing under `explain:` means the contract's defaults."""
    config = Config.from_mapping(None)

    assert config == Config.from_mapping({})
    assert (config.method, config.resize, config.crop, config.interpolation) == ("gradcam++", 256, 224, "bilinear")
    assert (config.mean, config.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (config.exif, config.colormap, config.opacity) == (False, "viridis", 0.5)
    assert (config.max_pixels, config.max_picture_side, config.max_response_bytes) == (50_000_000, 1600, 6_000_000)
    assert (config.max_request_pixels, config.max_targets, config.max_instances) == (200_000_000, 10, 64)
    assert config.max_batch == 32
    assert config.formats == ("jpeg", "png", "webp", "gif", "tiff", "bmp")
    assert config.precision == "float32"


def test_every_field_is_a_key_and_every_key_a_field() -> None:
    """The table of keys and the dataclass cannot drift apart."""
    assert {item.name for item in fields(Config)} - {"given", "overruled"} == set(KEYS)
    assert list(defaults()) == [name for name in (item.name for item in fields(Config)) if name in KEYS]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("layers", "layer4", ("layer4",)),
        ("layers", ["layer4", "layer3", "layer4"], ("layer4", "layer3")),
        ("resize", [300, 400], (300, 400)),
        ("resize", None, None),
        ("crop", 7, 7),
        ("mean", [0, 0.5, 1], (0.0, 0.5, 1.0)),
        ("mean", [-1, -1, 127 / 255], (-1.0, -1.0, 127 / 255)),
        ("formats", ["png", "jpeg"], ("png", "jpeg")),
        ("opacity", 1, 1.0),
        ("channels_last", None, None),
        ("memory_format", None, None),
        ("memory_format", "prepacked", "prepacked"),
        ("method", "contrast", "contrast"),
        ("monitor", {"rate": 1, "budget": 0.1}, {"rate": 1.0, "budget": 0.1}),
    ],
)
def test_good_values_are_read(key: str, value: object, expected: object) -> None:
    """Values are kept as the code uses them: names once, sizes as tuples, numbers as floats."""
    config = Config.from_mapping({key: value})

    assert getattr(config, key) == expected
    assert config.given == {key}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers", [""]),
        ("layers", [3]),
        ("layers", 3),
        ("method", "grad"),
        ("method", ["gradcam"]),
        ("resize", 0),
        ("resize", 9000),
        ("resize", [1, 2, 3]),
        ("resize", True),
        ("resize", "256"),
        ("crop", 1.5),
        ("interpolation", "cubic"),
        ("mean", [0.5]),
        ("mean", [0.485, 0.456, 0.406, True]),
        ("mean", {"red": 0.5, "green": 0.5, "blue": 0.5}),
        ("mean", "abc"),
        ("mean", [0.5, 0.5, float("nan")]),
        ("mean", 0.5),
        ("mean", [0.5, 0.5, 1.01]),
        ("std", [0.5, 0.5, 0]),
        ("std", [0.5, 0.5, "a"]),
        ("std", ["x", 0.2, 0.2, 0.2]),
        ("std", [0.5, 0.5, 10**400]),
        ("layers", {"features": 1}),
        ("formats", {"png": None}),
        ("token_grid", "88"),
        ("token_grid", [8, 8, -1]),
        ("token_grid", [8, 8, 1, 1]),
        ("token_grid", {8: 1, 9: 1}),
        ("exif", "yes"),
        ("formats", []),
        ("formats", ["eps"]),
        ("colormap", "magma"),
        ("opacity", 1.01),
        ("opacity", True),
        ("max_pixels", 0),
        ("max_request_pixels", 0),
        ("max_targets", 2.0),
        ("max_batch", -1),
        ("precision", "int8"),
        ("channels_last", "auto"),
        ("memory_format", "auto"),
        ("monitor", {"budget": 0}),
        ("monitor", {"budget": 1.5}),
        ("checks", "yes"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_with_key_value_and_what_is_accepted(key: str, value: object) -> None:
    """The line names the key, repeats the value and says what would do."""
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping({key: value})

    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"explain: {key}: expected {KEYS[key].values.accepts}, got ")


def test_two_keys_for_the_memory_format_are_one_too_many() -> None:
    """One of them would be ignored."""
    with pytest.raises(ConfigError, match="channels_last and memory_format: expected one of the two, got both"):
        Config.from_mapping({"channels_last": True, "memory_format": "contiguous"})
    assert Config.from_mapping({"channels_last": None, "memory_format": "contiguous"}).memory_format == "contiguous"


def test_a_mean_above_1_is_refused_with_the_remedy() -> None:
    """It is for values from 0 to 255; other faults of it say nothing of that."""
    with pytest.raises(ConfigError, match=r"got \[123.7, 116.8, 103.9\]; values are 0 to 1 here; .* divide both by 255$"):
        Config.from_mapping({"mean": [123.7, 116.8, 103.9]})
    with pytest.raises(ConfigError, match=r"got \[0.5\]$"):
        Config.from_mapping({"mean": [0.5]})


def test_unknown_keys_are_refused_with_the_nearest() -> None:
    """A misspelt key is never ignored."""
    with pytest.raises(ConfigError, match=r'unknown key "colourmap"; did you mean colormap\?'):
        Config.from_mapping({"colourmap": "jet"})
    with pytest.raises(ConfigError, match="the keys are layers, token_grid, method, "):
        Config.from_mapping({"zzz": 1})


def test_checks_that_no_limit_allows_are_refused() -> None:
    """Every explanation would be."""
    with pytest.raises(ConfigError, match="checks: expected false with max_checks: 0"):
        Config.from_mapping({"checks": True, "max_checks": 0})
    assert Config.from_mapping({"checks": False, "max_checks": 0}).max_checks == 0


def test_all_faults_are_told_at_once() -> None:
    """Mending one mistake does not uncover the next."""
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping({"opacity": 2, "nonsense": 1, "method": "x"})

    assert str(caught.value).count(";") >= 2
    assert all(word in str(caught.value) for word in ("opacity", "nonsense", "method"))


@pytest.mark.parametrize("section", [[], "layer4", 3])
def test_a_section_that_is_no_mapping_is_refused(section: object) -> None:
    """`explain: layer4` is not a configuration."""
    with pytest.raises(ConfigError, match="expected a mapping"):
        Config.from_mapping(section)


def test_the_configuration_is_frozen() -> None:
    """Nothing changes a limit while the worker runs."""
    with pytest.raises(FrozenInstanceError):
        Config().max_pixels = 1  # type: ignore[misc]
