"""The layer that is explained by default, and the layers whose gradients need no backward pass."""
