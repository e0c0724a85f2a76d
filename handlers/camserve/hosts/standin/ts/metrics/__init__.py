"""What handlers import to report metrics of their own."""
