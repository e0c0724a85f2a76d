"""What the running server tells: readiness, faults, outages, and whether requests are in progress."""
