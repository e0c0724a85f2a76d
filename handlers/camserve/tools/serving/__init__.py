"""Starts, watches and stops a TorchServe of one's own."""
