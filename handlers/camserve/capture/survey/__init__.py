"""One run of a model tells which of its layers have a spatial map, and how it lies in memory."""
