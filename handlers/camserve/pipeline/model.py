"""The face of the library: one classifier that predicts and explains. It knows no server; servers hand it calls."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from camserve.capture.backend import open_backend
from camserve.capture.models.programs.graphs.module import load_graph
from camserve.capture.survey.layout import find_spread
from camserve.core.config import Config
from camserve.core.errors import ConfigError, RequestError
from camserve.core.labels import Labels, name_both
from camserve.core.messages import Answer, Call, Item, ModelInfo, Options, Reply, Score
from camserve.core.served import Served
from camserve.explain.explainer import Explainer
from camserve.explain.methods import choose_method, draw_with
from camserve.explain.observer import NullObserver, Observer
from camserve.explain.ranking import TOP_CLASSES
from camserve.monitoring.evidence.records import Source
from camserve.monitoring.evidence.switch import tell_why_not
from camserve.monitoring.monitor import Monitor, open_monitor
from camserve.monitoring.reference import Provenance, input_of
from camserve.monitoring.statistics import Scale
from camserve.pictures.files.formats import find_missing
from camserve.pictures.files.mask import Area, spell_area
from camserve.pictures.inputs import Picture, open_again, read_pictures
from camserve.pictures.preprocess import Preprocess
from camserve.pipeline.archive import unpack
from camserve.pipeline.explanation import Explanation
from camserve.pipeline.loading import (
    digest_file,
    find_device,
    find_graph,
    index_labels,
    load_module,
    make_steps,
    read_labels,
    take_channels,
)
from camserve.pipeline.metadata import describe, read_choice
from camserve.pipeline.pipeline import Pipeline
from camserve.pipeline.prepare import Hooks
from camserve.protocol.options import OptionReader

logger = logging.getLogger(__name__)

PROBE = (256, 256)
"""The picture, (width, height), whose tensor says how large the model's input is where it follows the picture's size."""


class Model:
    """A classifier whose predictions can be explained.

    Attributes:
        served: what it offers: configuration, labels, layers, name, version.
        backend: the model as it runs, and what is known of its layers.
        pipeline: answers batches of calls.
        preprocess: a picture (PIL) to the model's input `[channels, H, W]`.
        scale: how the model's input was normalised; None where a step of a user's own makes it.

    Args:
        module: a classifier of pictures `[N, channels, H, W]` with logits `[N, K]`: an `nn.Module`, a TorchScript module, a
            program of `torch.export`, or the path of an ONNX graph. It is set to evaluation mode, and its parameters are frozen.
        labels: the names of its classes, as a list or by index (`{"0": "tench"}`); None: the indices.
        preprocess: takes a picture (PIL, RGB) to the model's input `[channels, H, W]`, in place of `resize`, `crop`, `mean`
            and the other settings of preprocessing.
        device: where the model is; None: where its parameters are.
        name, version, weights: of the model, as answers say them.
        config: the settings; None: they are given by name.
        hooks: steps of a server's handler.
        listed: how many classes a prediction lists.
        tune: fold norms and arrange weights for speed, where a trial shows equal answers. That changes the module.
        graph: the file of the model's graph for a runtime, as an archive holds it; None: it is made where one is needed.
        directory: of the unpacked archive, which may hold the report of how layer and method were chosen.
        settings: keys of an archive's configuration, such as `layers=["layer4"]`, `resize=256`, `crop=224`. With a `runtime`
            other than torch the weights are those that the module has now: later changes to it do not reach the runtime.

    Raises:
        ConfigError: a setting is wrong, a layer cannot be explained, none is found, or labels do not fit; in one line.
    """

    def __init__(
        self,
        module: Any,
        *,
        labels: Sequence[str] | Mapping[str, str] | None = None,
        preprocess: Preprocess | Callable[[Image.Image], Tensor] | None = None,
        device: torch.device | str | None = None,
        name: str = "model",
        version: str = "",
        weights: str = "",
        config: Config | None = None,
        hooks: Hooks | None = None,
        listed: int = TOP_CLASSES,
        tune: bool = False,
        graph: Path | None = None,
        directory: Path | str | None = None,
        **settings: Any,
    ) -> None:
        config = config or Config.from_mapping(settings)
        hooks = hooks or Hooks()
        missing = find_missing(config.formats)
        if missing:
            raise ConfigError(f"explain: formats: {missing}")
        if isinstance(module, (str, Path)):
            module = load_graph(Path(module), device or "cpu")
        place = torch.device(device) if device is not None else find_device(module)
        if isinstance(module, nn.Module):
            module.eval()
        steps = make_steps(preprocess, config)
        channels, *sides = steps.input_shape(*PROBE)
        config, size = take_channels(config, channels), (sides[0], sides[1])
        self.device = place
        self.weights = weights
        self._choice = read_choice(directory)
        self.preprocess = steps
        names = index_labels(labels)
        count = None if names is None else len(names)
        draw = draw_with(config.method)
        self.backend = open_backend(module, config, size, place, tune=tune, classes=count, graph=graph, draw=draw)
        reader = self.backend.reader
        self._log_findings()
        method = choose_method(config, self.backend.uneven, self.backend.cancels)
        if method != config.method:
            config = replace(config, method=method)
            logger.info("camserve: method %s, since %s", config.method, self.backend.uneven)
        classes = Labels(self.backend.outputs, name_both(names) if names and reader.binary else names)
        info = ModelInfo(name, version, weights[:19])
        most = min(listed, self.backend.outputs)
        shown = None if hooks.predictions_of else most
        self.served = Served(config, classes, self.backend.layers, info, shown, size, reader.kind, reader.binary)
        explainer = Explainer(
            self.backend, place, classes, method=config.method, listed=most, threshold=config.threshold, most=config.max_targets
        )
        self.pipeline = Pipeline(self.served, explainer, steps, hooks)
        self.scale = Scale.of(config) if type(steps) is Preprocess and not hooks.tensor_of else None
        self._reader = OptionReader(self.served)
        self._check_layers(size)

    @classmethod
    def from_archive(cls, path: Path | str, *, device: torch.device | str | None = None) -> Model:
        """Open an archive (`.mar`, `.tar.gz`, or an unpacked one) without TorchServe. This runs the archive's own code.

        Its modules are imported while it loads, and then set aside, so that two archives may have modules of one name: a
        model that imports its neighbours only when it runs is refused.

        Args:
            device: None: the GPU where there is one, else the CPU.

        Raises:
            ConfigError: it is no archive, its handler brings steps of its own, or its model or configuration is wrong.
        """
        with ExitStack() as stack:
            archive = stack.enter_context(unpack(path))
            place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            model = cls(
                load_module(archive, place),
                labels=read_labels(archive.directory),
                device=place,
                name=archive.name,
                version=archive.version,
                weights=f"sha256:{digest_file(archive.file('serializedFile'))}",
                config=Config.from_mapping(archive.config.get("explain")),
                tune=True,
                graph=find_graph(archive.directory),
                directory=archive.directory,
            )
            weakref.finalize(model, stack.pop_all().close)  # the model's code may read files of its own
        return model

    def explain(
        self,
        pictures: Picture | Iterable[Picture],
        *,
        target: int | str | Sequence[int | str] | None = None,
        top_k: int | None = None,
        method: str | None = None,
        layer: str | None = None,
        check: bool = False,
        inside: Area | None = None,
        contours: float | Sequence[float] | None = None,
        colormap: str | None = None,
        opacity: float | None = None,
    ) -> list[Explanation]:
        """Predict and explain pictures, in batches of up to the configured `max_batch`.

        Args:
            pictures: one or several, see `Picture`.
            target: a class index, a label, or several; None: the most probable class. Of several labels at once, each that
                reaches the threshold, which may be none; `"-age"` shows what lowers the value `age`.
            top_k: explain so many of the most probable classes instead.
            method, layer, colormap, opacity: None: as configured.
            check: ask the model how far each heatmap is borne out, see `Explanation.check`: some twenty pictures more for each.

            inside: tell what of each map lies inside an area of the picture, see `Area`.
            contours: levels of the heatmap, 0.01 to 0.99, whose contours are told, and drawn.

        Raises:
            RequestError: a picture cannot be opened or explained, or an option is wrong.
        """
        targets = list(target) if isinstance(target, (list, tuple)) else target
        given: dict[str, Any] = {
            "target": targets,
            "top_k": top_k,
            "method": method,
            "layer": layer,
            "colormap": colormap,
            "opacity": opacity,
        }
        given |= {"check": check, "inside": None if inside is None else spell_area(inside)}
        given["contours"] = list(contours) if isinstance(contours, tuple) else contours
        named = self._reader.from_values({name: value for name, value in given.items() if value is not None}, "json")
        options = self._reader.read(named, None, False)
        images = read_pictures(pictures, self.served.config.channels)
        answers = self._answer(images, options, explain=True)
        return [self._explanation(answer, image, options) for answer, image in zip(answers, images, strict=True)]

    def predict(self, pictures: Picture | Iterable[Picture]) -> list[tuple[Score, ...]]:
        """Return each picture's most probable classes, most probable first; of values all, in their own order.

        Raises:
            RequestError: a picture cannot be opened, or the model fails on it.
        """
        images = read_pictures(pictures, self.served.config.channels)
        return [answer.classes for answer in self._answer(images, self._reader.defaults, explain=False)]

    def run(self, calls: Sequence[Call]) -> list[Reply]:
        """Answer a server's batch: one reply for each call, in order. Never raises for what a call holds."""
        return self.pipeline.run(calls)

    def observe(self, observer: Observer | None) -> None:
        """Tell an observer of every answer from now on; None: nobody."""
        self.pipeline.explainer.observer = observer or NullObserver()

    @property
    def observer(self) -> Observer:
        """Who is told of the answers."""
        return self.pipeline.explainer.observer

    def start_monitor(self, directory: Path | str, undeclared: Sequence[str] = ()) -> Monitor | None:
        """Start the monitor that the archive asks for; None, with a line in the log, where nothing is monitored.

        Args:
            directory: of the unpacked archive, which may hold a reference.
            undeclared: metrics that the server does not export.

        Raises:
            ConfigError: evidence is to be kept, and it is not known where, or nothing here can open that.
        """
        config = self.served.config
        if config.monitoring is None:
            self._log_no_evidence()
            return None
        if self.backend.compiled and self.backend.runtime.name != "compile" and "monitor" not in config.given:
            logger.info(
                "camserve: nothing is monitored: that would run the model uncompiled, for its compiler does not take it with its "
                "layers' outputs; monitor: {rate: 0.05} takes a sample"
            )
            self._log_no_evidence()
            return None
        if undeclared:
            logger.info("camserve: nothing is monitored: the server's metrics_config does not declare %s", undeclared[0])
            self._log_no_evidence()
            return None
        model, method = self.served.model, self.pipeline.explainer.method
        source = Source(model.name, model.version, self.weights, method, self.backend.layers[0], self.served.scores, None)
        monitor = open_monitor(config, source, scale=self.scale, directory=directory, provenance=self.provenance)
        self.observe(monitor)
        monitor.start()
        return monitor

    @property
    def metadata(self) -> dict[str, Any]:
        """What the management API shows of the model, without what belongs to a server."""
        monitor = self.observer.describe() if isinstance(self.observer, Monitor) else None
        described = {**self._description, "weights": self.weights, "device": str(self.device), "monitor": monitor}
        return {**described, "evidence": self._describe_evidence(), "choice": self._choice}

    def _describe_evidence(self) -> dict[str, Any]:
        kept = self.observer.describe_evidence() if isinstance(self.observer, Monitor) else None
        return kept or {"kept": False, "why": tell_why_not(self.served.config)}

    def _log_no_evidence(self) -> None:
        if self.served.config.keeping is not None:
            logger.warning("camserve: no evidence is kept: %s", tell_why_not(self.served.config))

    @cached_property
    def _description(self) -> dict[str, Any]:
        return describe(self.served, self.backend)

    @property
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI 3.1 document of the model's routes."""
        document: dict[str, Any] = self.metadata["openapi"]
        return document

    @property
    def provenance(self) -> Provenance:
        """What a reference for drift holds for: layer, method, weights, input, and how the scores are read."""
        config = self.served.config
        given = " ".join(filter(None, (input_of(config), self.backend.reader.describe())))
        return Provenance(self.backend.layers[0], config.method, self.served.model.weights, given)

    def _answer(self, images: Sequence[Any], options: Options, *, explain: bool) -> list[Answer]:
        answers: list[Answer] = []
        step = self.served.config.max_batch
        for start in range(0, len(images), step):
            items = [Item(image, options) for image in images[start : start + step]]
            for place, outcome in enumerate(self.pipeline.answer(items, explain=explain), start):
                if isinstance(outcome, RequestError):
                    raise outcome.inside(f"picture {place}") if len(images) > 1 else outcome
                answers.append(outcome)
        return answers

    def _explanation(self, answer: Answer, image: Any, options: Options) -> Explanation:
        config = self.served.config
        reopen = None if isinstance(image, np.ndarray) else partial(open_again, image, config)
        return Explanation(answer, options, config.max_picture_side, reopen)

    def _log_findings(self) -> None:
        """Say in the log what opening the model has found, and what is doubtful of its layers."""
        for note in self.backend.notes:
            logger.log(logging.WARNING if note.startswith("Warning") else logging.INFO, "camserve: %s", note)
        for layer, doubt in self.backend.doubts.items():
            logger.warning("camserve: layer %s: %s", layer, doubt)

    def _check_layers(self, size: tuple[int, int]) -> None:
        """Explain one synthetic picture at every layer.

        Raises:
            ConfigError: the answer is not a whole explanation.
        """
        config = self.served.config
        noise = np.random.default_rng(0).normal(size=(config.channels, *size)).astype(np.float32)
        picture = noise * np.float32(find_spread(config))
        for layer in self.backend.layers:
            fault = self.pipeline.find_fault(picture, layer)
            if fault:
                raise ConfigError(f"explain: the self-test at layer {layer} failed: {fault}")
