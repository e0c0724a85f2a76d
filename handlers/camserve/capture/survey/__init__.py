"""What one run through a model tells about its layers: which have a map, and how it lies in memory."""
