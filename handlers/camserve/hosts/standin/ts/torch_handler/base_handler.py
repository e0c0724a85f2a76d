"""Loads a model, and takes a batch through its steps."""

from __future__ import annotations

import abc
import importlib
import logging
import time
from pathlib import Path
from typing import Any

import torch

from ..handler_utils.timer import timed
from ..utils.util import list_classes_from_module, load_label_mapping

logger = logging.getLogger(__name__)

if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
    torch.set_float32_matmul_precision("high")  # as TorchServe does


class BaseHandler(abc.ABC):
    """The base of TorchServe's handlers, for PyTorch models: state dicts with a model's file, TorchScript, `pt2:`."""

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: dict[str, str] | None = None
        self.device: Any = None
        self.initialized = False
        self.context: Any = None
        self.model_pt_path: str | None = None
        self.manifest: Any = None
        self.map_location: str | None = None
        self.explain = False
        self.target = 0
        self.profiler_args: dict[str, Any] = {}

    def initialize(self, context: Any) -> None:
        """Load the model that the manifest names to the device that the server chose.

        Raises:
            RuntimeError: the manifest names no weights that can be loaded.
        """
        self.model_yaml_config = context.model_yaml_config
        gpu = context.system_properties.get("gpu_id")
        on_gpu = torch.cuda.is_available() and gpu is not None
        self.map_location = "cuda" if on_gpu else "cpu"
        self.device = torch.device(f"cuda:{gpu}" if on_gpu else "cpu")
        self.manifest = context.manifest
        model, folder = self.manifest["model"], Path(context.system_properties["model_dir"])
        weights = model.get("serializedFile")
        self.model_pt_path = None if weights is None else str(folder / weights)
        if model.get("modelFile"):
            self.model = self._load_pickled_model(str(folder), model["modelFile"], self.model_pt_path)
            self.model.to(self.device)
            self.model.eval()
        elif self.model_pt_path is not None and self.model_pt_path.endswith(".pt"):
            self.model = self._load_torchscript_model(self.model_pt_path)
            self.model.eval()
        elif self.model_pt_path is not None and self.model_pt_path.endswith(".onnx"):
            self.model = self._open_session(self.model_pt_path)
        else:
            raise RuntimeError("No model weights could be loaded")
        self._compile()
        self.mapping = load_label_mapping(str(folder / "index_to_name.json"))
        self.initialized = True

    def _compile(self) -> None:
        """Compile the model as `pt2:` says; that is done when it first runs."""
        settings = (self.model_yaml_config or {}).get("pt2")
        if settings is None or (isinstance(settings, dict) and "export" in settings):
            return
        options = {"backend": settings} if isinstance(settings, str) else dict(settings)
        if "compile" in options:
            options = dict(options["compile"])  # type: ignore[arg-type]
            if not options.pop("enable"):
                return
        self.model = torch.compile(self.model, **options)

    def _open_session(self, model_pt_path: str) -> Any:
        import onnxruntime  # noqa: PLC0415 an extra

        providers = ["CUDAExecutionProvider"] if self.map_location == "cuda" else []
        return onnxruntime.InferenceSession(model_pt_path, providers=[*providers, "CPUExecutionProvider"])

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        import torchvision  # noqa: F401, PLC0415 registers the operators that a program may call

        return torch.jit.load(model_pt_path, map_location=self.device)  # type: ignore[no-untyped-call]

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        """Make the one class that a model's file defines, and load its state dict.

        Raises:
            RuntimeError: there is no such file.
            ValueError: it defines no class or several.
        """
        if not (Path(model_dir) / model_file).is_file():
            raise RuntimeError("Missing the model.py file")
        classes = list_classes_from_module(importlib.import_module(model_file.split(".", maxsplit=1)[0]))
        if len(classes) != 1:
            raise ValueError(f"Expected only one class as model definition. {classes}")
        model = classes[0]()
        if model_pt_path:
            model.load_state_dict(torch.load(model_pt_path, map_location=self.device))
        return model

    @timed
    def preprocess(self, data: Any) -> Any:
        return torch.as_tensor(data, device=self.device)

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    @timed
    def postprocess(self, data: Any) -> Any:
        return data.tolist()

    def handle(self, data: Any, context: Any) -> Any:
        """Answer a batch: preprocess, infer, postprocess; or describe, or explain, as its first request asks."""
        started = time.perf_counter()
        self.context = context
        if self._is_describe():
            output = [self.describe_handle()]
        else:
            prepared = self.preprocess(data)
            output = self.explain_handle(prepared, data) if self._is_explain() else self.postprocess(self.inference(prepared))
        context.metrics.add_time("HandlerTime", round((time.perf_counter() - started) * 1000, 2), None, "ms")
        return output

    def explain_handle(self, data_preprocess: Any, raw_data: Any) -> Any:
        """Hand the first request's input and target to `get_insights`, which a subclass brings."""
        row = raw_data[0]
        given = row if isinstance(row, dict) else {}
        insights: Any = self.get_insights  # type: ignore[attr-defined]
        return insights(data_preprocess, given.get("data") or given.get("body"), given.get("target") or 0)

    def describe_handle(self) -> Any:
        return None

    def _is_explain(self) -> bool:
        if self.context and self.context.get_request_header(0, "explain") == "True":
            self.explain = True
            return True
        return False

    def _is_describe(self) -> bool:
        return bool(self.context and self.context.get_request_header(0, "describe") == "True")
