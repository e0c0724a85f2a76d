"""Loads a model with its weights: an architecture of torchvision's, a user's files, or the demo."""
