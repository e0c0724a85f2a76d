"""Thousands of bad requests, and what each must be answered."""
