"""Pictures in and out: encoded bytes become the model's input, and heatmaps are drawn over pictures."""
