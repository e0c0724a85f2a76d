"""The `explain:` section of an archive's `model-config.yaml`: read once, validated, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from camserve.core.config.watching import EVIDENCE, MONITOR, Evidence, Monitoring
from camserve.core.errors import ConfigError
from camserve.core.text import find_nearest, join_names, show
from camserve.core.values import (
    FLAG,
    HOSTS,
    Values,
    choice,
    choices,
    integer,
    number,
    numbers,
    read_grid,
    read_names,
    read_optional_flag,
    read_output,
    read_size,
)

METHODS = ("gradcam++", "gradcam", "hirescam", "layercam", "xgradcam", "contrast")
REFINECAM = "refinecam"
"""The method that takes several layers together; each of `METHODS` takes one."""
METHOD_ALIASES = MappingProxyType({"finercam": "contrast"})
"""Other names of methods, which settings and requests may use, and answers and metadata do not."""

FORMATS = ("jpeg", "png", "webp", "gif", "tiff", "bmp")
MORE_FORMATS = ("avif", "heic", "dicom")
"""Those that are opened only where the configuration lists them: they need what not every installation has."""
COLORMAPS = ("viridis", "inferno", "turbo", "jet", "gray")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
MEMORY_FORMATS = ("contiguous", "channels_last", "prepacked")
SCORES = ("softmax", "sigmoid", "none")
RUNTIMES = ("torch", "auto", "compile", "onnxruntime", "openvino", "tensorrt", "aot")
PRECISIONS = ("float32", "bfloat16", "float16")
FITS = ("crop", "squash", "pad")

Size = int | tuple[int, int] | None
Channels = tuple[float, ...]
"""One number for each channel."""


@dataclass(frozen=True)
class Key:
    """One key of the configuration: what it means, and the values it accepts, read as `Config` holds them."""

    meaning: str
    values: Values


def _read_memory_format(value: Any) -> str | None:
    return None if value is None else str(choice(MEMORY_FORMATS).read(value))


_SIZE = Values("a whole number of pixels from 1 to 8192, [height, width], or null for none", read_size)

KEYS: Mapping[str, Key] = MappingProxyType(
    {
        "layers": Key("layers that may be asked for; the first is the default", Values("a list of layer names", read_names)),
        "token_grid": Key(
            "rows and columns of a transformer's tokens, and how many others stand before them, where no trial tells",
            Values("[rows, columns], [rows, columns, before] or null", read_grid),
        ),
        "method": Key("default method", choice((*METHODS, REFINECAM), METHOD_ALIASES)),
        "channels": Key("what the model takes: 1 grey, 3 RGB; of any other number tensors only", integer(1, 1024)),
        "resize": Key("resize the shorter side to this, or to [height, width]; see fit", _SIZE),
        "crop": Key("then crop this square, or [height, width], from the centre; what lies beyond is filled", _SIZE),
        "fit": Key(
            "what resize makes of another shape: the shorter side (crop), both sides (squash), or the longer one (pad)",
            choice(FITS),
        ),
        "fill": Key(
            "what lies around a padded picture: 0 black, 1 white", numbers("a number from 0 to 1, or one for each channel", 0, 1)
        ),
        "interpolation": Key("how resizing interpolates", choice(INTERPOLATIONS)),
        "scale": Key("values from 0 to 1 are first multiplied by this", number(1e-6, 1e6)),
        "mean": Key("then subtracted from each channel (0 to scale)", numbers("one number for each channel")),
        "std": Key("each channel is then divided by this", numbers("one number above 0 for each channel", 1e-12)),
        "output": Key(
            "which of the model's outputs holds the class scores, where it gives several",
            Values("its name, its place from 0, or null: the one that is found", read_output),
        ),
        "scores": Key(
            "what the scores are: of one class (softmax), of several labels at once (sigmoid), or values (none); by default what "
            "a trial shows",
            choice(SCORES),
        ),
        "threshold": Key("probability from which on a label counts, with scores: sigmoid or one logit", number(0, 1)),
        "random_weights": Key("the weights were never trained, so answers mean nothing; as packaging with them says", FLAG),
        "exif": Key("apply the EXIF orientation", FLAG),
        "fast_jpeg": Key(
            "decode a JPEG at a half, a quarter or an eighth where that leaves twice the pixels that the model gets", FLAG
        ),
        "formats": Key("picture formats that are opened", choices((*FORMATS, *MORE_FORMATS))),
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
        "max_checks": Key("most explanations of a batch that are checked; its requests share it", integer(0, 10_000)),
        "max_batch": Key("most pictures in one forward pass", integer(1, 4_096)),
        "max_work": Key(
            "most work on the pictures of a batch, in milliseconds of one core by their headers; requests share it",
            integer(100, 10**9),
        ),
        "max_seconds": Key("longest time of a batch; never above half the server's responseTimeout", number(0.1, 86_400)),
        "precision": Key("what the model computes in; maps are always float32", choice(PRECISIONS)),
        "channels_last": Key(
            "memory format; null: the fastest one with equal answers", Values("true, false or null", read_optional_flag)
        ),
        "memory_format": Key(
            "how weights and maps lie in memory, as packaging measured it: replicas that agree on it answer alike; null: each "
            "worker measures",
            Values(f"{join_names(MEMORY_FORMATS)}, or null", _read_memory_format),
        ),
        "runtime": Key(
            "what computes the model up to its layers, as packaging recorded it; auto: the fastest one with equal answers; torch "
            "runs where it cannot be had",
            choice(RUNTIMES),
        ),
        "allowed_hosts": Key(
            "host names by which the server may be asked, beside addresses and localhost; null: as the server says",
            HOSTS,
        ),
        "monitor": Key(
            "metrics, and what the model looks at in this share of the predictions, told every interval of seconds",
            MONITOR,
        ),
        "evidence": Key("keep a sample of the watched predictions, and unusual ones, with picture and map", EVIDENCE),
        "checks": Key("how far each heatmap is borne out is checked, unless a request says `check: false`", FLAG),
    }
)


@dataclass(frozen=True)
class Config:
    """The validated configuration. Sizes are pixels: an int (shorter side, or a square), (height, width), or None."""

    layers: tuple[str, ...] = ()
    token_grid: tuple[int, ...] | None = None
    method: str = "gradcam++"
    channels: int = 3
    resize: Size = 256
    crop: Size = 224
    fit: str = "crop"
    fill: Channels = (0.0,)
    interpolation: str = "bilinear"
    scale: float = 1.0
    mean: Channels = (0.485, 0.456, 0.406)
    std: Channels = (0.229, 0.224, 0.225)
    output: int | str | None = None
    scores: str = "softmax"
    threshold: float = 0.5
    random_weights: bool = False
    exif: bool = False
    fast_jpeg: bool = False
    formats: tuple[str, ...] = FORMATS
    colormap: str = "viridis"
    opacity: float = 0.5
    max_pixels: int = 50_000_000
    max_request_pixels: int = 200_000_000
    max_picture_side: int = 1600
    max_response_bytes: int = 6_000_000
    max_targets: int = 10
    max_instances: int = 64
    max_checks: int = 8
    max_batch: int = 32
    max_work: int = 8_000
    max_seconds: float = 30
    precision: str = "float32"
    channels_last: bool | None = None
    memory_format: str | None = None
    runtime: str = "torch"
    allowed_hosts: tuple[str, ...] | None = None
    monitor: bool | Mapping[str, float] = field(default=True, hash=False)
    evidence: bool | Mapping[str, Any] = field(default=False, hash=False)
    checks: bool = False
    given: frozenset[str] = field(default=frozenset(), compare=False)
    overruled: frozenset[str] = field(default=frozenset(), compare=False)

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
        given = frozenset(values)
        faults = faults or _complete(values, section)
        if faults:
            raise ConfigError("; ".join(faults))
        return cls(**values, given=given)

    @property
    def takes_pictures(self) -> bool:
        """Whether a picture becomes the model's input: grey or RGB. Of other channels it takes tensors alone."""
        return self.channels in (1, 3)

    @property
    def monitoring(self) -> Monitoring | None:
        """The settings that `monitor` asks for; None: no monitoring."""
        if isinstance(self.monitor, bool):
            return Monitoring() if self.monitor else None
        return Monitoring(**self.monitor)

    @property
    def keeping(self) -> Evidence | None:
        """The settings that `evidence` asks for; None: nothing is kept."""
        if isinstance(self.evidence, bool):
            return Evidence() if self.evidence else None
        return Evidence(**self.evidence)


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
        raise ConfigError(_expected(str(name), value)) from error


def _expected(name: str, value: object, why: str = "") -> str:
    return f"explain: {name}: expected {KEYS[name].values.accepts}, got {_repeated(value)}{why}"


def _complete(values: dict[str, Any], section: Mapping[Any, Any]) -> list[str]:
    """Check what depends on several keys, and give what is padded and taken off each channel as many numbers as there are.

    A model of other than three channels has no published mean: where none is given, values stay from 0 to `scale`.

    Args:
        values: as they were read; completed in place.
        section: as they came.
    """
    channels, scale = values.get("channels", 3), values.get("scale", 1.0)
    faults = []
    if values.get("monitor") is False and values.get("evidence", False) is not False:
        faults.append("explain: evidence: what is not watched cannot be kept; monitor must not be false")
    if values.get("checks") and values.get("max_checks") == 0:
        faults.append("explain: checks: expected false with max_checks: 0, which allows none, got true")
    if None not in (values.get("channels_last"), values.get("memory_format")):
        faults.append("explain: channels_last and memory_format: expected one of the two, got both")
    if channels != 3:
        values.setdefault("mean", (0.0,) * channels)
        values.setdefault("std", (1.0,) * channels)
    elif scale != 1 and not {"mean", "std"} <= set(values):
        faults.append(f"explain: scale: {scale:g} goes with a mean and a std of its own; give both")
    for name in ("mean", "std", "fill"):
        count = len(values.get(name, ()))
        if count not in (0, channels) and not (name == "fill" and count == 1):
            faults.append(_expected(name, section[name], "" if channels == 3 else f" with channels: {channels}"))
    if not faults and max(values.get("mean", (0.0,))) > scale:
        way = "divide both by 255" if scale == 1 else "let scale say the range that they are for"
        why = f"; values are 0 to {scale:g} here; where mean and std are for 0 to 255, {way}"
        faults.append(_expected("mean", section["mean"], why))
    return faults


def _repeated(value: object) -> str:
    """A configuration is its author's own, so a short list is repeated as it stands."""
    text = " ".join(str(list(value) if isinstance(value, tuple) else value).split()).replace(".0,", ",").replace(".0]", "]")
    return text if isinstance(value, (list, tuple, dict)) and len(text) <= 60 else show(value)


def defaults() -> dict[str, Any]:
    """Each key's default value, in the order of the contract's table."""
    return {item.name: item.default for item in fields(Config) if item.name in KEYS}
