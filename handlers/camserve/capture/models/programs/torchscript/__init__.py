"""TorchScript modules: their graphs get further outputs when they are loaded.

torch has deprecated `torch.jit`; this folder goes when the oldest torch that is supported no longer has it.
"""
