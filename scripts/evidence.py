#!/usr/bin/env python3
"""Shows what was kept of watched predictions: the pictures behind an alert: `scripts/evidence.py --help`."""

from _entry import run

run("evidence")
