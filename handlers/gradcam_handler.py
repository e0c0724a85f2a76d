"""The TorchServe handler: the stock image classifier, plus Grad-CAM++ explanations. The only module that knows TorchServe.

An archive names this file as its handler. TorchServe wants exactly one class in it.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ts.torch_handler.image_classifier import ImageClassifier

from camserve.capture import is_exported, load_exported, open_backend
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.core.labels import Labels
from camserve.core.messages import Call, ModelInfo, Reply
from camserve.core.served import Served
from camserve.core.version import __version__
from camserve.explain.explainer import Explainer
from camserve.inspector.page import write_page
from camserve.monitoring.metrics import undeclared
from camserve.monitoring.monitor import Monitor, open_monitor
from camserve.monitoring.reference import Provenance, input_of
from camserve.monitoring.statistics import Scale
from camserve.pictures.decode import silence_decoders
from camserve.pictures.preprocess import Preprocess, keeps_nothing
from camserve.pipeline.glibc import keep_freed_memory
from camserve.pipeline.metadata import metadata
from camserve.pipeline.pipeline import Pipeline
from camserve.pipeline.prepare import Hooks
from camserve.protocol.parser import Parser
from camserve.protocol.reply import Responder

logger = logging.getLogger(__name__)

PROBE = (256, 256)
"""The picture, (width, height), whose tensor says how large the model's input is where it follows the picture's size."""


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
    """

    def initialize(self, context: Any) -> None:
        """Loads the model as the stock handler does, checks the `explain:` section, and explains one synthetic picture.

        Raises:
            ConfigError: in one line, what in the archive's configuration is wrong and what is accepted.
        """
        keep_freed_memory()
        silence_decoders()
        self._turn = threading.RLock()  # image_processing may run inside preprocess
        self.config = self._load(context)
        started = time.perf_counter()
        preprocess = self._preprocess_of(self.config)
        height, width = preprocess(Image.new("RGB", PROBE)).shape[1:]
        size = (height, width)
        self.backend = open_backend(self.model, self.config, size, self.device, tune=True)
        self.labels = Labels(self.backend.outputs, self.mapping)
        digest = _sha256(Path(self.model_pt_path)) if self.model_pt_path else ""
        version = str(context.manifest["model"].get("modelVersion", ""))
        self.info = ModelInfo(str(context.model_name), version, f"sha256:{digest[:12]}")
        own = type(self).image_processing is not ImageClassifier.image_processing or self._hooks().tensor_of
        self.scale = None if own else Scale(self.config.mean, self.config.std)
        self.made = Provenance(self.backend.layers[0], self.config.method, self.info.weights, input_of(self.config))
        monitor = self._monitor(context)
        listed = min(self.get_max_result_classes(), self.backend.outputs)
        self.set_max_result_classes(listed)  # the stock handler fails where there are fewer classes
        self._prepared = {"model": self.model, "mapping": self.mapping, "topk": self.topk}
        self.pipeline = self._pipeline(preprocess, size, monitor, listed)
        self.metadata = self._described(size, f"sha256:{digest}", monitor)
        self._self_test(size)
        if monitor:
            monitor.start()
        logger.info(
            "camserve %s: layers %s%s, %s%s, ready in %.1f s",
            __version__,
            ", ".join(self.backend.layers),
            f" ({self.backend.why})" if self.backend.why else "",
            self.backend.memory_format,
            ", compiled" if self.backend.compiled else "",
            time.perf_counter() - started,
        )

    def _load(self, context: Any) -> Config:
        """Loads the model as the stock handler does; the `explain:` section.

        Raises:
            ConfigError: TorchServe was to compile the model and did not, or the section is wrong.
        """
        settings = getattr(context, "model_yaml_config", None) or {}
        compiles = _compiles(settings.get("pt2"))  # before TorchServe takes the switch out
        super().initialize(context)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # what is asked of CUDA without a device is of this one, not of the first
        if compiles and not hasattr(self.model, "_orig_mod"):
            raise ConfigError(f"pt2: TorchServe could not compile the model with {settings['pt2']!r}; the lines above say why")
        return Config.from_mapping(settings.get("explain"))

    def _pipeline(self, preprocess: Preprocess, size: tuple[int, int], monitor: Monitor | None, listed: int) -> Pipeline:
        """The pipeline; `size` = (height, width) of the model's input, `listed`: how many classes a prediction lists."""
        served = self._served(size)
        return Pipeline(
            config=self.config,
            labels=self.labels,
            parser=Parser(served),
            explainer=Explainer(self.backend, self.device, self.config.method, monitor, listed=listed),
            preprocess=preprocess,
            responder=Responder(served),
            size=size,
            hooks=self._hooks(),
            observer=monitor,
            page=write_page(served),
        )

    def _served(self, size: tuple[int, int]) -> Served:
        listed = None if self._hooks().predictions_of else int(self.get_max_result_classes())
        return Served(self.config, self.labels, self.backend.layers, self.info, listed, size)

    def _described(self, size: tuple[int, int], weights: str, monitor: Monitor | None) -> dict[str, Any]:
        """The metadata; `weights` is the whole digest of the file."""
        return {
            **metadata(self._served(size), self.backend),
            "weights": weights,
            "device": str(self.device),
            "device_type": (getattr(self, "model_yaml_config", None) or {}).get("deviceType"),
            "monitor": monitor.describe() if monitor else None,
        }

    def _load_torchscript_model(self, model_pt_path: str) -> torch.nn.Module:
        """TorchServe takes every `.pt` file without a model's file for TorchScript; it may hold a program of torch.export."""
        if is_exported(model_pt_path):
            return load_exported(model_pt_path, self.device)
        module: torch.nn.Module = super()._load_torchscript_model(model_pt_path)
        return module

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> Sequence[bytes | dict[str, Any]]:
        """Answers a batch that mixes predictions and explanations: for each row what it would have got alone.

        Raises:
            ConfigError: a subclass has changed, after this class's `initialize`, what was prepared there.
        """
        self.context = context
        self._check_unchanged()
        started = time.perf_counter()
        if len(data) == 1 and not data[0] and self._is_describe() and from_management(context.get_all_request_header(0)):
            return [self.describe_handle()]
        calls = [call_of(row, context.get_all_request_header(index)) for index, row in enumerate(data)]
        bodies = self._answered(calls)
        context.metrics.add_time("HandlerTime", round((time.perf_counter() - started) * 1000, 2), None, "ms")
        return bodies

    def _check_unchanged(self) -> None:
        """Refuses to answer with what a subclass meant to replace: it would be ignored without a word."""
        own = ("mapping", "topk") if self._hooks().predictions_of else ()  # its own postprocess may want others
        for name, prepared in self._prepared.items():
            now = getattr(self, name)
            if name not in own and now is not prepared and (name == "model" or now != prepared):
                raise ConfigError(
                    f"{type(self).__name__} changes self.{name} after GradCAMHandler.initialize() has prepared everything, "
                    f"so the change would have no effect; {INSTEAD[name]}"
                )

    def explain_handle(self, data_preprocess: Any, raw_data: Sequence[Mapping[str, Any]]) -> list[bytes]:  # noqa: ARG002
        """Explains every row of `raw_data`, whatever its own mode; `data_preprocess` is not needed."""
        headers = [self.context.get_all_request_header(index) for index in range(len(raw_data))] if self.context else []
        headers = headers or [{}] * len(raw_data)
        calls = [call_of({**row}, {**header, "explain": "True"}) for row, header in zip(raw_data, headers, strict=True)]
        return self._answered(calls)

    def describe_handle(self) -> dict[str, Any]:
        """What `GET /models/{model}?customized=true` shows as `customizedMetadata`; `time` is the worker's clock."""
        now = datetime.datetime.now(datetime.timezone.utc)
        return {**self.metadata, "time": now.isoformat(timespec="seconds")}

    def _answered(self, calls: Sequence[Call]) -> list[bytes]:
        replies = self.pipeline.run(calls)
        for index, reply in enumerate(replies):
            self._write_head(index, reply)
        return [reply.body for reply in replies]

    def _write_head(self, index: int, reply: Reply) -> None:
        if self.context is None:
            return
        if reply.status != 200:
            self.context.set_response_status(code=reply.status, phrase="", idx=index)
        self.context.set_response_content_type(index, reply.content_type)
        for name, value in reply.headers.items():
            self.context.set_response_header(index, name, value)

    def _preprocess_of(self, config: Config) -> Preprocess:
        """The archive's preprocessing, or a subclass's own `image_processing`."""
        if type(self).image_processing is ImageClassifier.image_processing:
            return Preprocess(config)
        ours = sorted({"resize", "crop", "interpolation", "mean", "std"} & config.given)
        if ours:
            raise ConfigError(
                f"explain: {', '.join(ours)}: the handler {type(self).__name__} brings its own image_processing; "
                "give one or the other"
            )
        return Preprocess.from_callable(self._one_at_a_time(self.image_processing))

    def _monitor(self, context: Any) -> Monitor | None:
        """The monitor, where the archive asks for one and the server exports what it tells."""
        settings = self.config.monitoring
        if settings is None:
            return None
        if self.backend.compiled and "monitor" not in self.config.given:
            logger.info("camserve: nothing is monitored: that runs the model uncompiled; monitor: {rate: 0.05} takes a sample")
            return None
        missing = undeclared(context.metrics.cache)
        if missing:
            logger.info("camserve: nothing is monitored: the server's metrics_config does not declare %s", missing[0])
            return None
        return open_monitor(
            settings,
            name=self.info.name,
            version=self.info.version,
            scale=self.scale,
            directory=context.system_properties.get("model_dir"),
            provenance=self.made,
        )

    def _hooks(self) -> Hooks:
        """The stock steps that a subclass overrides."""
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
        """A subclass's own step, for one picture at a time, as TorchServe calls it: it may keep something in `self`.

        torchvision's transforms keep nothing, and may run in several threads.
        """
        if keeps_nothing(step):
            return step

        def locked(given: Any) -> Any:
            with self._turn:
                return step(given)

        return locked

    def _self_test(self, size: tuple[int, int]) -> None:
        """Explains one synthetic picture at every layer before the worker reports ready.

        Raises:
            ConfigError: the answer is not a whole explanation.
        """
        picture = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)
        for layer in self.backend.layers:
            fault = self.pipeline.self_test(picture, layer)
            if fault:
                raise ConfigError(f"explain: the self-test at layer {layer} failed: {fault}")


def _compiles(pt2: object) -> bool:
    """Whether the section asks TorchServe to compile: `{compile: {enable: true}}`, or in its older form a backend or options."""
    if not isinstance(pt2, Mapping):
        return isinstance(pt2, str)
    return pt2["compile"].get("enable") is True if "compile" in pt2 else "export" not in pt2


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def call_of(row: Mapping[str, Any], headers: Mapping[str, Any]) -> Call:
    """A row and its headers as a call; TorchServe keeps each parameter's content type among the headers, as a dict.

    Its own header is `explain`, in this case exactly: a client's `Explain` stands beside it.
    """
    plain = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    return Call(explain=headers.get("explain") == "True", headers=plain, fields=row)


def from_management(headers: Mapping[str, Any]) -> bool:
    """Whether a request without a body came to the management address.

    Most inference routes say `explain` of each request; `/invocations` and its like do not, and have no body where a form is
    empty.
    """
    form = any(name.lower() == "content-type" and "form" in str(value).lower() for name, value in headers.items())
    return "explain" not in headers and not form
