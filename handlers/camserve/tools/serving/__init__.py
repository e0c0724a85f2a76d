"""Runs a TorchServe of one's own: Java, configuration, archives, readiness, reasons of failure, and a clean end."""
