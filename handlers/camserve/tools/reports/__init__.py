"""Reports on many explanations: a gallery, a contact sheet, a comparison of two models."""
