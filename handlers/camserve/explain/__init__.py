"""From activations and gradients to explanations: the formulas, what a chunk of pictures gets, and who is told of it."""
