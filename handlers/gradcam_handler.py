"""The TorchServe handler: the stock image classifier, plus Grad-CAM++ explanations. The only module that knows TorchServe.

An archive names this file as its handler. TorchServe wants exactly one class in it.
"""

from __future__ import annotations

import datetime
import inspect
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from camserve.capture import is_exported, load_exported
from camserve.capture.tuning.glibc import collect_rarely, keep_freed_memory
from camserve.capture.tuning.imports import defer_compiler, without_captum
from camserve.core.config import Config
from camserve.core.config.switch import overrule_evidence
from camserve.core.errors import ConfigError
from camserve.core.messages import Call
from camserve.core.version import __version__
from camserve.monitoring.metrics import undeclared
from camserve.pictures.bounds.reading import silence_decoders
from camserve.pictures.preprocess import Preprocess, is_stateless
from camserve.pipeline.loading import digest_file, find_graph, half_timeout, is_compiled, load_served_graph
from camserve.pipeline.model import Model
from camserve.pipeline.opening import tell_backend
from camserve.pipeline.prepare import Hooks
from camserve.protocol.accept import HOSTS, allow_hosts
from camserve.protocol.body import SparingJson
from camserve.protocol.parser import comes_from_management, keep_repeats, read_call

defer_compiler()
with without_captum():  # our explanations need none
    from ts.torch_handler.image_classifier import ImageClassifier

logger = logging.getLogger(__name__)

INSTEAD = {
    "model": "change the model in _load_pickled_model() or _load_torchscript_model(), or in the model's file",
    "mapping": "put the labels into index_to_name.json",
    "topk": "call set_max_result_classes() before super().initialize()",
}
"""What a subclass may not change any more once `GradCAMHandler.initialize` has run, and what to do."""


class GradCAMHandler(ImageClassifier):  # type: ignore[misc]
    """Predictions as the stock handler gives them, and explanations, from one forward pass of a mixed batch.

    A subclass may set `image_processing`, or override `preprocess` or `postprocess`: its predictions stay what they were,
    and are explained. (Where the crop is its own, `view` is null and the heatmap is drawn over the whole picture.)

    Attributes:
        face: the model as `camserve.Model`, which answers; `model` is TorchServe's name for the module itself.
    """

    face: Model

    def initialize(self, context: Any) -> None:
        """Load the model as the stock handler does, check the `explain:` section, and explain one synthetic picture.

        Raises:
            ConfigError: in one line, what in the archive's configuration is wrong and what is accepted.
        """
        refuse_envelope()
        adapt_worker()
        keep_freed_memory()
        collect_rarely()
        silence_decoders()
        self._turn = threading.RLock()  # image_processing may run inside preprocess
        config = self._load(context)
        started = time.perf_counter()
        weights = Path(self.model_pt_path) if self.model_pt_path else None
        self.face = face = Model(
            self.model,
            labels=self.mapping,
            preprocess=self.preprocess_of(config),
            device=self.device,
            name=str(context.model_name),
            version=str(context.manifest["model"].get("modelVersion", "")),
            weights=f"sha256:{digest_file(weights)}",
            config=config,
            hooks=self._hooks(),
            listed=self.get_max_result_classes(),
            tune=True,
            graph=find_graph(context.system_properties.get("model_dir")),
            directory=context.system_properties.get("model_dir"),
        )
        self.set_max_result_classes(min(self.get_max_result_classes(), face.backend.outputs))  # else the stock handler fails
        self._prepared = {"model": self.model, "mapping": self.mapping, "topk": self.topk}
        face.start_monitor(context.system_properties.get("model_dir"), undeclared(context.metrics.cache))
        logger.info("camserve %s: %s, ready in %.1f s", __version__, tell_backend(face.backend), time.perf_counter() - started)

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> Sequence[bytes | dict[str, Any]]:
        """Answer a batch that mixes predictions and explanations: for each row what it would have got alone.

        Raises:
            ConfigError: a subclass has changed, after this class's `initialize`, what was prepared there.
        """
        self.context = context
        self.check_unchanged()
        started = time.perf_counter()
        if len(data) == 1 and not data[0] and self._is_describe() and comes_from_management(context.get_all_request_header(0)):
            return [self.describe_handle()]
        bodies = self._answer([self._read_call(row, index) for index, row in enumerate(data)])
        context.metrics.add_time("HandlerTime", round((time.perf_counter() - started) * 1000, 2), None, "ms")
        return bodies

    def explain_handle(self, data_preprocess: Any, raw_data: Sequence[Mapping[str, Any]]) -> list[bytes]:  # noqa: ARG002
        """Explain every row of `raw_data`, whatever its own mode; `data_preprocess` is not needed."""
        headers = [self.context.get_all_request_header(index) if self.context else {} for index in range(len(raw_data))]
        return self._answer([read_call(row, {**head, "explain": "True"}) for row, head in zip(raw_data, headers, strict=True)])

    def describe_handle(self) -> dict[str, Any]:
        """Say what `GET /models/{model}?customized=true` shows as `customizedMetadata`; `time` is the worker's clock."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        device_type = (getattr(self, "model_yaml_config", None) or {}).get("deviceType")
        return {**self.face.metadata, "device_type": device_type, "time": now}

    def preprocess_of(self, config: Config) -> Preprocess:
        """Return the preprocessing of a configuration, or a subclass's own `image_processing`.

        Raises:
            ConfigError: both are given.
        """
        mine, stock = (inspect.getattr_static(each, "image_processing") for each in (type(self), ImageClassifier))
        if mine is stock:  # compared without being read: torchvision is imported on first use on other hosts
            return Preprocess(config)
        ours = sorted({"resize", "crop", "fit", "fill", "interpolation", "scale", "mean", "std"} & config.given)
        if ours:
            raise ConfigError(
                f"explain: {', '.join(ours)}: the handler {type(self).__name__} brings its own image_processing; "
                "give one or the other"
            )
        return Preprocess.from_callable(self._one_at_a_time(self.image_processing))

    def check_unchanged(self) -> None:
        """Refuse to answer with what a subclass meant to replace: it would be ignored without a word.

        Raises:
            ConfigError: it was replaced after `initialize`.
        """
        own = ("mapping", "topk") if self._hooks().predictions_of else ()  # its own postprocess may want others
        for name, prepared in self._prepared.items():
            now = getattr(self, name)
            if name not in own and now is not prepared and (name == "model" or now != prepared):
                raise ConfigError(
                    f"{type(self).__name__} changes self.{name} after GradCAMHandler.initialize() has prepared everything, "
                    f"so the change would have no effect; {INSTEAD[name]}"
                )

    def _load(self, context: Any) -> Config:
        """Load the model as the stock handler does; return the `explain:` section.

        Raises:
            ConfigError: TorchServe was to compile the model and did not, or the section is wrong.
        """
        settings = getattr(context, "model_yaml_config", None) or {}
        compiles = is_compiled(settings.get("pt2"))  # before TorchServe takes the switch out
        # Before anybody else opens it.
        graph = load_served_graph(context.manifest["model"], context.system_properties["model_dir"])
        super().initialize(context)
        if graph is not None:
            self.model = graph.to(self.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # what is asked of CUDA without a device is of this one, not of the first
        if compiles and not hasattr(self.model, "_orig_mod"):
            raise ConfigError(f"pt2: TorchServe could not compile the model with {settings['pt2']!r}; the lines above say why")
        config = overrule_evidence(Config.from_mapping(settings.get("explain")), os.environ)
        config = allow_hosts(config, os.environ.get(HOSTS))
        return replace(config, max_seconds=min(config.max_seconds, half_timeout(settings)))

    def _load_torchscript_model(self, model_pt_path: str) -> torch.nn.Module:
        """TorchServe takes every `.pt` file without a model's file for TorchScript; it may hold a program of torch.export."""
        if is_exported(model_pt_path):
            return load_exported(model_pt_path, self.device)
        module: torch.nn.Module = super()._load_torchscript_model(model_pt_path)
        return module

    def _read_call(self, row: Mapping[str, Any], index: int) -> Call:
        call = read_call(row, self.context.get_all_request_header(index))
        return replace(call, id=str(self.context.get_request_id(index) or ""))

    def _answer(self, calls: Sequence[Call]) -> list[bytes]:
        replies = self.face.run(calls)
        for index, reply in enumerate(replies):
            if self.context is None:
                continue
            if reply.status != 200:
                self.context.set_response_status(code=reply.status, phrase="", idx=index)
            self.context.set_response_content_type(index, reply.content_type)
            for name, value in reply.headers.items():
                self.context.set_response_header(index, name, value)
        return [reply.body for reply in replies]

    def _hooks(self) -> Hooks:
        """Return the stock steps that a subclass overrides."""
        own = type(self)
        return Hooks(
            tensor_of=self._own_tensor if own.preprocess is not ImageClassifier.preprocess else None,
            predictions_of=self._own_predictions if own.postprocess is not ImageClassifier.postprocess else None,
        )

    def _own_tensor(self, image: Any) -> torch.Tensor:
        batch = self._one_at_a_time(self.preprocess)([{"data": bytearray(image) if isinstance(image, bytes) else image}])
        tensor = torch.as_tensor(batch)[0].float().cpu()
        if tensor.ndim != 3:
            raise TypeError(f"preprocess: expected a batch [1, channels, height, width], got {[1, *tensor.shape]}")
        return tensor

    def _own_predictions(self, logits: torch.Tensor) -> Any:
        return self._one_at_a_time(self.postprocess)(logits[None])[0]

    def _one_at_a_time(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return a subclass's own step for one picture at a time, as TorchServe calls it: it may keep something in `self`.

        torchvision's transforms keep nothing, and may run in several threads.
        """
        if is_stateless(step):
            return step

        def locked(given: Any) -> Any:
            with self._turn:
                return step(given)

        return locked


def refuse_envelope() -> None:
    """Raise `ConfigError` inside of an envelope, which only TorchServe's loader knows of: every request would be a 503."""
    frame = inspect.currentframe()
    while frame is not None:
        envelope = frame.f_locals.get("envelope") if frame.f_globals.get("__name__") == "ts.model_loader" else None
        if envelope:
            raise ConfigError(
                f"service_envelope={envelope}: remove it from TorchServe's configuration; KServe's bodies need none"
            )
        frame = frame.f_back


def adapt_worker() -> None:
    """Have TorchServe's worker tell which fields a form repeats, and leave floods of JSON as they came.

    It parses bodies, and of a repeated field keeps the last without a word, before a handler is called.
    """
    try:
        from ts.protocol import otf_message_handler  # noqa: PLC0415 a host without TorchServe reads bodies itself
        from ts.service import Service  # noqa: PLC0415
    except ImportError:
        return
    Service.retrieve_data_for_inference = staticmethod(keep_repeats(Service.retrieve_data_for_inference))
    otf_message_handler.json = SparingJson()
