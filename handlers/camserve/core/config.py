"""The `explain:` section of an archive's `model-config.yaml`: read once, validated, frozen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from camserve.core.errors import ConfigError
from camserve.core.text import find_nearest, join_names, show
from camserve.core.values import FLAG, Values, choice, choices, integer, number, read_list

METHODS = ("gradcam++", "gradcam", "hirescam", "layercam", "xgradcam", "contrast")
METHOD_ALIASES = MappingProxyType({"finercam": "contrast"})
"""Other names that settings and requests may use; answers and metadata keep to `METHODS`."""

FORMATS = ("jpeg", "png", "webp", "gif", "tiff", "bmp")
COLORMAPS = ("viridis", "inferno", "turbo", "jet", "gray")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
PRECISIONS = ("float32", "bfloat16", "float16")

Size = int | tuple[int, int] | None


@dataclass(frozen=True)
class Key:
    """One key of the configuration: what it means, and the values it accepts, read as `Config` holds them."""

    meaning: str
    values: Values


class _TooLargeError(ValueError):
    """The message says what to do."""


def _read_names(value: Any) -> tuple[str, ...]:
    chosen = read_list(value)
    if not all(isinstance(name, str) and name for name in chosen):
        raise ValueError
    return tuple(dict.fromkeys(chosen))


def _read_size(value: Any) -> Size:
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        height, width = value
        return _SIDE.read(height), _SIDE.read(width)
    side: int = _SIDE.read(value)
    return side


def _read_grid(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    rows, columns = read_list(value)
    return _SIDE.read(rows), _SIDE.read(columns)


def _read_channels(low: float) -> Callable[[Any], tuple[float, float, float]]:
    def read(value: Any) -> tuple[float, float, float]:
        if any(isinstance(channel, (bool, str)) for channel in read_list(value)):
            raise TypeError
        red, green, blue = (float(channel) for channel in value)
        if not all(math.isfinite(channel) and channel >= low for channel in (red, green, blue)):
            raise ValueError
        return red, green, blue

    return read


def _read_mean(value: Any) -> tuple[float, float, float]:
    mean = _read_channels(-math.inf)(value)
    if max(mean) > 1:
        raise _TooLargeError("values are 0 to 1 here; where mean and std are for 0 to 255, divide both by 255")
    return mean


def _read_optional_flag(value: Any) -> bool | None:
    return None if value is None else FLAG.read(value)


def _read_monitor(value: Any) -> bool | dict[str, float]:
    """The value as it stands, checked: YAML and JSON write it again."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, Mapping) or not set(value) <= set(_MONITOR):
        raise ValueError
    return {name: _MONITOR[name].read(given) for name, given in value.items()}


_MONITOR = {"rate": number(0, 1), "interval": number(0.1, 3600), "budget": number(0.001, 1)}
_MONITOR_ACCEPTS = ", ".join(f"{name}: {values.accepts}" for name, values in _MONITOR.items())
_SIDE = integer(1, 8192)
_SIZE = Values("a whole number of pixels from 1 to 8192, [height, width], or null for none", _read_size)

KEYS: Mapping[str, Key] = MappingProxyType(
    {
        "layers": Key("layers that may be asked for; the first is the default", Values("a list of layer names", _read_names)),
        "token_grid": Key(
            "rows and columns of a transformer's tokens, where they cannot be told from the picture's size",
            Values("[rows, columns] or null", _read_grid),
        ),
        "method": Key("default method", choice(METHODS, METHOD_ALIASES)),
        "resize": Key("resize the shorter side to this, or to [height, width]", _SIZE),
        "crop": Key("then crop this square, or [height, width], from the centre", _SIZE),
        "interpolation": Key("how resizing interpolates", choice(INTERPOLATIONS)),
        "mean": Key("subtracted from each channel (0 to 1)", Values("three numbers", _read_mean)),
        "std": Key("each channel is then divided by this", Values("three numbers above 0", _read_channels(1e-12))),
        "exif": Key("apply the EXIF orientation", FLAG),
        "formats": Key("picture formats that are opened", choices(FORMATS)),
        "colormap": Key("colour map of overlays", choice(COLORMAPS)),
        "opacity": Key("opacity of overlays", number(0, 1)),
        "max_pixels": Key("largest picture, in pixels", integer(1, 2_000_000_000)),
        "max_request_pixels": Key(
            "largest sum of the pictures of one KServe request, in pixels; never below max_pixels", integer(1, 10**12)
        ),
        "max_picture_side": Key("longest side of an overlay, in pixels", integer(16, 16_384)),
        "max_response_bytes": Key("largest answer, in bytes", integer(1_000, 2_000_000_000)),
        "max_targets": Key("most targets of one picture", integer(1, 1_000)),
        "max_instances": Key("most instances of one KServe request", integer(1, 10_000)),
        "max_batch": Key("most pictures in one forward pass", integer(1, 4_096)),
        "precision": Key("what the model computes in; maps are always float32", choice(PRECISIONS)),
        "channels_last": Key(
            "memory format; null: the fastest one with equal answers", Values("true, false or null", _read_optional_flag)
        ),
        "monitor": Key(
            "metrics, and what the model looks at in this share of the predictions, told every interval of seconds",
            Values(f"true, false or {{{_MONITOR_ACCEPTS}}}", _read_monitor),
        ),
    }
)


@dataclass(frozen=True)
class Monitoring:
    """Which share of the predictions is measured, and how many seconds lie between two reports.

    `budget`: how long backward passes for this alone may take, as a share of the other passes' time; 1: as long as they
    take; None: a share that depends on the batch.
    """

    rate: float = 1.0
    interval: float = 15.0
    budget: float | None = None


@dataclass(frozen=True)
class Config:
    """The validated configuration. Sizes are pixels: an int (shorter side, or a square), (height, width), or None."""

    layers: tuple[str, ...] = ()
    token_grid: tuple[int, int] | None = None
    method: str = "gradcam++"
    resize: Size = 256
    crop: Size = 224
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    exif: bool = False
    formats: tuple[str, ...] = FORMATS
    colormap: str = "viridis"
    opacity: float = 0.5
    max_pixels: int = 50_000_000
    max_request_pixels: int = 200_000_000
    max_picture_side: int = 1600
    max_response_bytes: int = 6_000_000
    max_targets: int = 10
    max_instances: int = 64
    max_batch: int = 32
    precision: str = "float32"
    channels_last: bool | None = None
    monitor: bool | Mapping[str, float] = field(default=True, hash=False)
    given: frozenset[str] = field(default=frozenset(), compare=False)

    @classmethod
    def from_mapping(cls, section: object) -> Config:
        """Reads the section as YAML gives it (None: all defaults); `given` holds the keys that it set.

        Raises:
            ConfigError: names every unknown key and bad value, with what is accepted, in one line.
        """
        if section is None:
            section = {}
        if not isinstance(section, Mapping):
            raise ConfigError(f"explain: expected a mapping of keys, got {show(section)}")
        values: dict[str, Any] = {}
        faults: list[str] = []
        for name, value in section.items():
            try:
                values[name] = read_value(name, value)
            except ConfigError as error:
                faults.append(str(error))
        if faults:
            raise ConfigError("; ".join(faults))
        return cls(**values, given=frozenset(values))

    @property
    def monitoring(self) -> Monitoring | None:
        """The settings that `monitor` asks for; None: no monitoring."""
        if isinstance(self.monitor, bool):
            return Monitoring() if self.monitor else None
        return Monitoring(**self.monitor)


def read_value(name: object, value: object) -> Any:
    """Reads the value of one key, as `Config` holds it.

    Raises:
        ConfigError: an unknown key, or a value that is not accepted.
    """
    key = KEYS.get(name) if isinstance(name, str) else None
    if key is None:
        near = find_nearest(str(name), KEYS, 1)
        hint = f"did you mean {near[0]}?" if near else f"the keys are {join_names(KEYS, 99)}"
        raise ConfigError(f"explain: unknown key {show(name)}; {hint}")
    try:
        return key.values.read(value)
    except (TypeError, ValueError, OverflowError) as error:
        hint = f"; {error}" if isinstance(error, _TooLargeError) else ""
        raise ConfigError(f"explain: {name}: expected {key.values.accepts}, got {_repeated(value)}{hint}") from None


def _repeated(value: object) -> str:
    """A configuration is its author's own, so a short list is repeated as it stands."""
    text = " ".join(str(value).split())
    return text if isinstance(value, (list, tuple, dict)) and len(text) <= 60 else show(value)


def defaults() -> dict[str, Any]:
    """Each key's default value, in the order of the contract's table."""
    return {item.name: item.default for item in fields(Config) if item.name in KEYS}
