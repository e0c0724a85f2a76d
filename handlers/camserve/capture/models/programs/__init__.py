"""Models that come as whole programs: of `torch.export`, TorchScript, and ONNX graphs."""
