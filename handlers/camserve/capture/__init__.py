"""Capture: one forward pass that keeps a layer's activation, and the gradients of chosen targets with respect to it."""

from camserve.capture.backend import Backend, open_backend
from camserve.capture.base import Capture, Captured, Model, Setting
from camserve.capture.eager import Eager, freeze
from camserve.capture.exported import is_exported, load_exported
from camserve.capture.kinds import default_layer, opened, survey
from camserve.capture.layers import LayerInfo, Site, Survey
from camserve.capture.layout import Layout, synthetic_picture
from camserve.capture.pooled import pooled_head

__all__ = [
    "Backend",
    "Capture",
    "Captured",
    "Eager",
    "LayerInfo",
    "Layout",
    "Model",
    "Setting",
    "Site",
    "Survey",
    "default_layer",
    "freeze",
    "is_exported",
    "load_exported",
    "open_backend",
    "opened",
    "pooled_head",
    "survey",
    "synthetic_picture",
]
