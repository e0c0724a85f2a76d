"""The kinds of models that can be explained: eager modules, TorchScript, and programs of `torch.export`."""
