"""From an alert to the pictures behind it: what was kept, beside what is normal."""

VERDICTS = ("right", "wrong", "bad_input")
"""What a kept map can be marked: right; it looked at the wrong thing; the picture is none that the model should get."""
