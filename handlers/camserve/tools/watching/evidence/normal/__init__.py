"""What is normal: references, and examples of the pictures that they were made of."""
