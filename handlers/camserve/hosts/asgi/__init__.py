"""The contract's routes as applications of the ASGI standard."""
