"""Capture: one forward pass that keeps a layer's activation, and the gradients of chosen targets with respect to it."""

from camserve.capture.backend import Backend, open_backend
from camserve.capture.base import Capture, Captured, Model, Setting
from camserve.capture.choose.pooled import pooled_head
from camserve.capture.models.eager import Eager, freeze
from camserve.capture.models.exported import is_exported, load_exported
from camserve.capture.models.kinds import opened
from camserve.capture.survey.layers import LayerInfo, Site, Survey
from camserve.capture.survey.layout import Layout, synthetic_picture

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
    "freeze",
    "is_exported",
    "load_exported",
    "open_backend",
    "opened",
    "pooled_head",
    "synthetic_picture",
]
