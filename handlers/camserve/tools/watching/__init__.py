"""What the watching of a server rests on: the reference of good pictures, and the doctor's checks."""
