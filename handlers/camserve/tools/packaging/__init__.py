"""From a model, a file of weights or an older archive to a new archive (.mar)."""
