"""Watches a running server: readiness, faults, outages, and requests in progress."""
