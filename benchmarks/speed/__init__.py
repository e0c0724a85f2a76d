"""How fast the engine and a server are, beside the plain forward pass, the stock handler and other libraries."""
