#!/usr/bin/env python3
"""Compares two archives on the same pictures: `scripts/compare.py --help`."""

from _entry import run

run("compare")
