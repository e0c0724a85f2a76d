"""The kinds of models: eager modules, TorchScript, and programs of `torch.export`; `kinds.open_model` tells them apart."""
