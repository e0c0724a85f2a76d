#!/usr/bin/env python3
"""Explains many pictures: `scripts/explain.py --help`."""

from _entry import run

run("explain")
