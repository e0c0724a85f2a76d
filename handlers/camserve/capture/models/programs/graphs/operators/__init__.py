"""ONNX's operators in torch, with gradients: what each computes is in ONNX's own documentation, under its name."""
