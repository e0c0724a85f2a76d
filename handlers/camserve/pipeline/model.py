"""The face of the library: one classifier that predicts and explains. It knows no server; servers hand it calls."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camserve.capture.backend import open_backend
from camserve.core.config import REFINECAM, Config
from camserve.core.config.switch import tell_why_not
from camserve.core.errors import RequestError
from camserve.core.labels import Labels, name_both
from camserve.core.messages import Answer, Call, Item, ModelInfo, Options, Reply, Score
from camserve.core.served import Served
from camserve.explain.methods import draw_with
from camserve.explain.observer import NullObserver, Observer
from camserve.explain.ranking import TOP_CLASSES
from camserve.monitoring.evidence.records import Source
from camserve.monitoring.monitor import Monitor, open_monitor
from camserve.monitoring.reference import Provenance, describe_input
from camserve.monitoring.statistics import Scale
from camserve.pictures.files.mask import Area, spell_area
from camserve.pictures.inputs import Picture, open_again, read_pictures
from camserve.pictures.preprocess import Preprocess
from camserve.pipeline.archive import unpack
from camserve.pipeline.explanation import Explanation
from camserve.pipeline.loading import digest_file, find_graph, load_module, read_labels
from camserve.pipeline.metadata import describe, describe_watching, read_choice
from camserve.pipeline.opening import (
    PROBE,
    check_formats,
    index_labels,
    log_findings,
    make_explainer,
    make_steps,
    prepare_module,
    take_channels,
    take_method,
    tell_unwatched,
    try_layers,
)
from camserve.pipeline.pipeline import Pipeline
from camserve.pipeline.prepare import Hooks
from camserve.protocol.options import OptionReader

logger = logging.getLogger(__name__)


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
        config, hooks = config or Config.from_mapping(settings), hooks or Hooks()
        check_formats(config)
        module, self.device = prepare_module(module, device)
        self.weights = weights
        self.preprocess = make_steps(preprocess, config)
        channels, *sides = self.preprocess.input_shape(*PROBE)
        config, size = take_channels(config, channels), (sides[0], sides[1])
        names = index_labels(labels)
        count, draw = None if names is None else len(names), draw_with(config.method)
        self.backend = open_backend(module, config, size, self.device, tune=tune, classes=count, graph=graph, draw=draw)
        log_findings(self.backend)
        config = take_method(config, self.backend)
        reader, most = self.backend.reader, min(listed, self.backend.outputs)
        classes = Labels(self.backend.outputs, name_both(names) if names and reader.binary else names)
        measured, self._choice = read_choice(directory, weights, describe_input(config, reader.describe()))
        explainer = make_explainer(self.backend, self.device, classes, config, most)
        shown = None if hooks.predictions_of else most
        about = ModelInfo(name, version, weights[:19]), shown, size, reader.kind, reader.binary, measured
        together = try_layers(explainer, config, size)
        self.served = Served(config, classes, self.backend.layers, *about, together=together)
        self.pipeline = Pipeline(self.served, explainer, self.preprocess, hooks)
        self.scale = Scale.of(config) if type(self.preprocess) is Preprocess and not hooks.tensor_of else None
        self._reader = OptionReader(self.served)

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
        layer: str | Sequence[str] | None = None,
        check: bool | None = None,
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
            method, layer, check, colormap, opacity: None: as configured. Of several layers, those that are served by default,
                the method `refinecam` multiplies the maps.
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
            "layer": list(layer) if isinstance(layer, (list, tuple)) else layer,
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
        why = tell_unwatched(config, self.backend, undeclared) if config.monitoring else ""
        if why:
            logger.info("camserve: nothing is monitored: %s", why)
        if config.monitoring is None or why:
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
        watching = describe_watching(self.observer, self.served.config)
        return {**self._description, "weights": self.weights, "device": str(self.device), **watching, "choice": self._choice}

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
        given = describe_input(config, self.backend.reader.describe())
        method = self.pipeline.explainer.method if config.method == REFINECAM else config.method
        return Provenance(self.backend.layers[0], method, self.served.model.weights, given)

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
        said = self.served.measurement
        measured = said.describe(answer.layer, answer.method) if said else None
        return Explanation(answer, options, config.max_picture_side, reopen, measured)
