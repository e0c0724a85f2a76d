"""Servers of our own for archives, without TorchServe and without Java; none of this goes into an archive."""
