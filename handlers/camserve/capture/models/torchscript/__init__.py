"""TorchScript modules: their graphs are given further outputs when they are loaded."""
