"""Alignment, by trial: a patch of the picture is changed at several places, and where a layer's cells change is looked up."""
