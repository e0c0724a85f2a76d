"""The process that runs an archive's handler, as TorchServe's worker does, and what the server tells it."""
