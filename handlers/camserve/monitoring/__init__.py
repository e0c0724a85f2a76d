"""Monitoring in production: statistics of maps and inputs, counters, and the reference that drift is measured against."""
