"""Capture: one forward pass of any loaded model that keeps a layer's activation, and gradients of chosen classes there.

How the folders work together, from the lowest to the highest:

    survey: one run of the model tells which layers have a spatial map, and how it lies in memory (`Survey`).
    models: a kind of model each (eager; programs: TorchScript, exported, ONNX graphs). `open_model` recognises the kind.
    alignment: where a layer's cells lie in the picture, by trial.
    choose: the layer to explain, and whether its gradients are known without a backward pass.
    tuning: a faster forward pass with the same result.
    runtimes: what else than eager torch may compute the trunk (ONNX Runtime, OpenVINO, torch's compiler), the head behind it.
    backend: `open_backend` does all of this when a model is loaded, and gives the `Capture` that answers requests.

A new kind of model takes a module in `models` with a `Classifier` (`kind`, `batch`, `survey`, `capture`, `run_with`, `run_calls`,
`weights`)
and a `Capture` (`sites`, `forward`, which gives a `Captured`). `base` has these protocols, `models.passes` a `Captured` to use.
`kinds.open_model` must recognise it, and a row in the tests' `nets.KINDS` runs the shared tests on it.
"""

from camserve.capture.backend import Backend, open_backend
from camserve.capture.base import Capture, Captured, CaptureSettings, Classifier
from camserve.capture.choose.gradients import find_cam_weights
from camserve.capture.models.eager import EagerCapture
from camserve.capture.models.frozen import freeze
from camserve.capture.models.kinds import open_model
from camserve.capture.models.programs.exported import is_exported, load_exported
from camserve.capture.models.programs.graphs.module import load_graph
from camserve.capture.survey.layers import LayerInfo, Site, Survey
from camserve.capture.survey.layout import Layout, synthesize_pictures

__all__ = [
    "Backend",
    "Capture",
    "CaptureSettings",
    "Captured",
    "Classifier",
    "EagerCapture",
    "LayerInfo",
    "Layout",
    "Site",
    "Survey",
    "find_cam_weights",
    "freeze",
    "is_exported",
    "load_exported",
    "load_graph",
    "open_backend",
    "open_model",
    "synthesize_pictures",
]
