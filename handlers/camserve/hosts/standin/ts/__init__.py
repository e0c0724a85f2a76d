"""Stands in for TorchServe's package in a worker of a host of ours: the modules that image handlers import."""

__version__ = "0.12.0"
"""The release whose behaviour this follows."""
