"""The handlers that others build on."""
