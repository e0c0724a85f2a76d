#!/usr/bin/env python3
"""Measures good pictures, and writes what is normal into an archive: `scripts/reference.py --help`."""

from _entry import run

run("reference")
