"""Whether maps tell the truth."""
