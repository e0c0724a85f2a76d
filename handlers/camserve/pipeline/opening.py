"""Makes a loaded classifier ready to be asked: where it is, what prepares its pictures, which method and layers are tried."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from camserve.capture.backend import Backend
from camserve.capture.models.programs.graphs.module import load_graph
from camserve.capture.survey.layout import find_spread
from camserve.core.config import REFINECAM, Config
from camserve.core.errors import ConfigError, RequestError
from camserve.core.labels import Labels
from camserve.core.text import join_names
from camserve.explain.explainer import Explainer
from camserve.explain.methods import check_method, choose_method
from camserve.explain.ranking import Task
from camserve.pictures.files.formats import find_missing
from camserve.pictures.preprocess import Preprocess

logger = logging.getLogger(__name__)

PROBE = (256, 256)
"""The picture, (width, height), whose tensor says how large the model's input is where it follows the picture's size."""


def prepare_module(module: Any, device: torch.device | str | None) -> tuple[Any, torch.device]:
    """Return a classifier in evaluation mode, read from its graph's file where that is given, and where it is.

    Args:
        module: as `Model` takes it.
        device: None: where its parameters are.
    """
    if isinstance(module, (str, Path)):
        module = load_graph(Path(module), device or "cpu")
    if isinstance(module, nn.Module):
        module.eval()
    return module, torch.device(device) if device is not None else find_device(module)


def find_device(module: Any) -> torch.device:
    """Return where a model's parameters are; the CPU where it has none."""
    first = next(module.parameters(), None) if isinstance(module, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def check_formats(config: Config) -> None:
    """Raise ConfigError where a picture format is listed that nothing here opens."""
    missing = find_missing(config.formats)
    if missing:
        raise ConfigError(f"explain: formats: {missing}")


def take_method(config: Config, backend: Backend) -> Config:
    """Return the configuration with the method that suits the default layer, where neither is given."""
    method = choose_method(config, backend.uneven, backend.cancels)
    if method == config.method:
        return config
    logger.info("camserve: method %s, since %s", method, backend.uneven)
    return replace(config, method=method)


def tell_backend(backend: Backend) -> str:
    """Say in one line which layers are offered and how the model runs."""
    why = f" ({backend.why})" if backend.why else ""
    runs: list[str] = [backend.memory_format]
    if backend.compiled:
        runs.append("compiled")
    elif backend.runtime.name != "torch":
        runs.append(backend.runtime.name)
    return f"layers {', '.join(backend.layers)}{why}, {', '.join(runs)}"


def log_findings(backend: Backend) -> None:
    """Say in the log what opening the model has found, and what is doubtful of its layers."""
    for note in backend.notes:
        logger.log(logging.WARNING if note.startswith("Warning") else logging.INFO, "camserve: %s", note)
    for layer, doubt in backend.doubts.items():
        logger.warning("camserve: layer %s: %s", layer, doubt)


def index_labels(labels: Sequence[str] | Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return labels by their index as text, as `index_to_name.json` has them."""
    if labels is None or isinstance(labels, Mapping):
        return labels
    return {str(index): label for index, label in enumerate(labels)}


def take_channels(config: Config, channels: int) -> Config:
    """Return the configuration with the channels that the preprocessing makes.

    Raises:
        ConfigError: it says others.
    """
    if channels != config.channels and "channels" in config.given:
        raise ConfigError(f"explain: channels: {config.channels} was given, but the preprocessing makes {channels}")
    return replace(config, channels=channels)


def make_steps(preprocess: Preprocess | Callable[[Image.Image], Tensor] | None, config: Config) -> Preprocess:
    """Return the steps that were given, or those of the configuration."""
    if isinstance(preprocess, Preprocess):
        return preprocess
    return Preprocess(config) if preprocess is None else Preprocess.from_callable(preprocess)


def make_explainer(backend: Backend, device: torch.device, labels: Labels, config: Config, listed: int) -> Explainer:
    """Return what explains pictures as the configuration says; `listed`: how many classes a prediction lists."""
    method, threshold, most = config.method, config.threshold, config.max_targets
    return Explainer(backend, device, labels, method=method, listed=listed, threshold=threshold, most=most)


def tell_unwatched(config: Config, backend: Backend, undeclared: Sequence[str]) -> str:
    """Say why nothing is monitored though the archive does not forbid it; "" where nothing speaks against it.

    Args:
        config: has `monitor`.
        backend: the model as it runs.
        undeclared: metrics that the server does not export.
    """
    if backend.compiled and backend.runtime.name != "compile" and "monitor" not in config.given:
        return (
            "that would run the model uncompiled, for its compiler does not take it with its layers' outputs; "
            "monitor: {rate: 0.05} takes a sample"
        )
    return f"the server's metrics_config does not declare {undeclared[0]}" if undeclared else ""


def try_layers(explainer: Explainer, config: Config, size: tuple[int, int]) -> tuple[str, ...]:
    """Explain one synthetic picture of (height, width) at every layer, and at all together.

    Returns:
        The layers that can be taken together, in the order in which they run; none, or two at least.

    Raises:
        ConfigError: the answer is not a whole explanation, or the configured method takes several layers and there is one.
    """
    backend = explainer.backend
    together = backend.placed
    check_method(config, together)
    noise = np.random.default_rng(0).normal(size=(config.channels, *size)).astype(np.float32)
    picture = noise * np.float32(find_spread(config))
    alone = explainer.method if config.method == REFINECAM else config.method
    for layer in backend.layers:
        fault = find_fault(explainer, picture, Task(layer, alone))
        if fault:
            raise ConfigError(f"explain: the self-test at layer {layer} failed: {fault}")
    if len(backend.layers) < 2 or backend.reader.kind == "none":
        return ()
    if len(together) < 2:
        apart = join_names([layer for layer in backend.layers if layer not in together])
        logger.warning("camserve: method %s is not offered: no trial tells where the cells of %s lie", REFINECAM, apart)
        return ()
    fault = find_fault(explainer, picture, Task(together, REFINECAM))
    if fault and config.method == REFINECAM:
        raise ConfigError(f"explain: the self-test of {REFINECAM} at {join_names(together)} failed: {fault}")
    if fault:
        names = join_names(together)
        logger.warning("camserve: method %s is not offered: %s cannot be taken together: %s", REFINECAM, names, fault)
    return () if fault else together


def find_fault(explainer: Explainer, picture: NDArray[np.float32], task: Task | None) -> str:
    """Explain one normalised tensor `[channels, H, W]`, or only predict it; return what is wrong, or ""."""
    try:
        (prediction,) = explainer.explain([torch.from_numpy(picture)], [task])
    except Exception as error:  # noqa: BLE001  # a layer may fail in any way; the worker says so and does not start
        return f"{type(error).__name__}: {error}".split("\n", 1)[0]
    if isinstance(prediction, RequestError):
        return prediction.message
    return "the map is not finite" if any("not_finite" in each.warnings for each in prediction.explanations) else ""
