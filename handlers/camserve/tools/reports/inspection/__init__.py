"""What can be explained in a model, drawn and measured: layers, methods, and how far their maps are borne out."""
