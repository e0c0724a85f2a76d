"""Archives that are served, and the load on them."""
