"""Which layer and method show where the object is: small networks of each family, trained on shapes among distractors."""
