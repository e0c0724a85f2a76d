"""Formats of picture files: how one is told, and the readers of those that Pillow does not open by itself."""
