"""How far the statistics of a time are from what is to be expected, and which pictures moved them."""
