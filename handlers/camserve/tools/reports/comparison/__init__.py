"""Compares two models on the same pictures: what they predict, and where they look."""
