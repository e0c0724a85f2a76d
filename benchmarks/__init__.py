"""What was measured, by room; `README.md` has the figures."""
