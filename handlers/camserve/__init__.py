"""Grad-CAM++ explanations of image classifiers served with TorchServe."""

__version__ = "0.1.0"
