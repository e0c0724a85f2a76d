"""ONNX graphs: read within limits, computed by torch where gradients are needed, and with further outputs for a runtime."""
