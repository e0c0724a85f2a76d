"""A real TorchServe under everything that goes wrong in production."""
