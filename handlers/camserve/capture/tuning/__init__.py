"""A faster forward pass with the same result: folded batch normalisation, prepacked weights, the memory format."""
