"""Puts the rooms together: batches of calls in, replies out."""
