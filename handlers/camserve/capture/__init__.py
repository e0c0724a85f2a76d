"""Capture: one forward pass that keeps a layer's activation, and the gradients of chosen targets with respect to it."""

from camserve.capture.backend import Backend, open_backend
from camserve.capture.base import Capture, Captured, Site
from camserve.capture.eager import Eager, freeze
from camserve.capture.layout import Layout, synthetic_picture
from camserve.capture.pooled import pooled_head
from camserve.capture.survey import LayerInfo, Survey, default_layer, survey

__all__ = [
    "Backend",
    "Capture",
    "Captured",
    "Eager",
    "LayerInfo",
    "Layout",
    "Site",
    "Survey",
    "default_layer",
    "freeze",
    "open_backend",
    "pooled_head",
    "survey",
    "synthetic_picture",
]
