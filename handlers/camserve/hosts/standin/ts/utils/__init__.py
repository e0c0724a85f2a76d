"""Small things that handlers and their base classes use."""
