"""HTML pages and sheets of many explanations, and what they compare."""
