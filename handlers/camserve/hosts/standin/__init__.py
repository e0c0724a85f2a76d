"""What handlers import of TorchServe, for machines where it is not installed; a worker finds it as `ts`."""
